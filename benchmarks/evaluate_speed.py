"""Frames per second of `segshift evaluate` and of cityscapesScripts on the same PNGs, measured in turns.

    python benchmarks/evaluate_speed.py [--frames 8] [--rounds 5]

Draws label and prediction maps of 1024x2048 with things of many sizes, writes them as a Cityscapes tree, and
runs both evaluations alternately, so that other load on the machine hits both. cityscapesScripts is measured
as its command runs (with the instance-weighted scores) and with those switched off, in its numpy form, on one
core: it has no other, and its Cython form has to be compiled by hand.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from segshift.config import EvaluateConfig
from segshift.data import frames, labels
from segshift.scoring import predictions
from segshift.stages.evaluate import evaluate


def draw(rng: np.random.Generator, size: tuple[int, int] = (1024, 2048)) -> tuple[np.ndarray, np.ndarray]:
    """Label ids uint8 and instance ids uint16, [H, W]: sky, buildings, road, and 150 blobs of all classes."""
    height, width = size
    label = np.full(size, 11, np.uint8)
    label[: height // 3], label[height // 2 :] = 23, 7
    instances = label.astype(np.int32)
    for number in range(150):
        id = int(rng.choice(labels.CITYSCAPES.ids))
        centre, radius = rng.uniform((0, 0), (width, height)), rng.uniform(5, 120)
        corners = (centre + rng.normal(0, radius, (12, 2))).astype(np.int32)
        cv2.fillPoly(label, [corners], id)
        cv2.fillPoly(instances, [corners], id * 1000 + number if id >= 24 else id)
    return label, instances.astype(np.uint16)


def write(root: Path, count: int) -> tuple[frames.Dataset, Path]:
    """A Cityscapes tree under root/data, and predictions that are wrong in patches under root/predictions."""
    rng = np.random.default_rng(0)
    for i in range(count):
        name = f"ulm_{i:06d}_000019"
        label, instances = draw(rng)
        image = np.zeros((8, 16, 3), np.uint8)  # no evaluation opens it
        for folder, kind, array in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", label),
            ("gtFine", "gtFine_instanceIds", instances),
        ):
            file = root / "data" / folder / "val/ulm" / f"{name}_{kind}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), array)
    data = frames.load(f"cityscapes:{root / 'data'}:val")
    for frame in data.frames:
        pred = frames.read_label(frame, data.space)
        pred[cv2.blur(rng.random(pred.shape), (15, 15)) > 0.53] = 8
        predictions.write(frames.place(data, frame, root / "predictions"), pred, data.space)
    return data, root / "predictions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    np.in1d = np.isin  # the name that cityscapesScripts calls; numpy dropped it in 2.4
    sys.argv = sys.argv[:1]
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    with tempfile.TemporaryDirectory() as folder:
        data, predicted = write(Path(folder), arguments.frames)
        truth = [str(frame.label) for frame in data.frames]
        official.args.quiet, official.args.JSONOutput = True, False
        official.args.predictionPath = str(predicted)
        pairs = [official.getPrediction(official.args, file) for file in truth]

        def theirs(instances: bool) -> float:
            official.args.evalInstLevelScore = instances
            return official.evaluateImgLists(pairs, truth, official.args)["averageScoreClasses"]

        config = EvaluateConfig(str(predicted), data.name)
        players = {
            "segshift": lambda: evaluate(config, Path(folder) / "out"),
            "cityscapesScripts": lambda: theirs(True),
            "cityscapesScripts, classes only": lambda: theirs(False),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in players}
        for _ in range(arguments.rounds):
            for name, run in players.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                spent = time.perf_counter() - wall, time.process_time() - cpu
                seconds[name].append((spent[0] / len(truth), spent[1] / len(truth)))
    middle = {
        name: [statistics.median(column) for column in zip(*times, strict=True)]
        for name, times in seconds.items()
    }
    print(f"{'':34} frames/s    segshift is ... times as fast    ... per second of one core")
    for name, (wall, cpu) in middle.items():
        ratio, per_core = wall / middle["segshift"][0], cpu / middle["segshift"][1]
        print(f"{name:34} {1 / wall:8.1f}    {ratio:29.1f}    {per_core:26.1f}")


if __name__ == "__main__":
    main()

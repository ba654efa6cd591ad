"""Evaluate: prediction PNGs against the ground truth, one confusion matrix per data set.

Writes OUT/metrics.json: the protocol string, mIoU, pixel accuracy, per-class IoU and confusion matrix over
all frames, the same for every domain, and mIoU and pixel accuracy of each frame. Ratios are fractions in [0,
1]; null stands for a class that is neither in the truth nor predicted. The numbers are computed again on
every call, so a result is never older than its PNGs. Beside it, OUT/frames.npz holds the confusion matrix of
each frame: `ids` [N], and
`confusion` int64 [N, C, C + 1] over the classes of metrics.json. Where the predictions come with maps of
confidence or uncertainty, metrics.json also holds the calibration of the confidence and each map's curve of
risk against coverage (`segshift.scoring.calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from segshift import execution, outputs, records, runs
from segshift.config import EvaluateConfig
from segshift.data import frames
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import LabelSpace, class_set
from segshift.scoring import calibration, metrics, predictions

PUBLISHED_SIZE = (512, 1024)
"""Height and width of the evaluation in ZoDi's published code (azuma164/ZoDi, eval_test.py)."""


def evaluate(config: EvaluateConfig, out: str | Path) -> Path:
    """Compare `config.predictions` with the labels of `config.data`; returns `out`, with metrics.json in it.

    Raises: InputError on missing, unreadable or mis-sized predictions, on a data set without labels, and on a
    class set that the label space has not.
    """
    execution.one_process("evaluate")
    data, folder = frames.load(config.data), Path(config.predictions)
    chosen = [c for c in class_set(config.classes, data.space, data.name) if c not in data.space.absent]
    kept, left_out = _labelled(config, data, folder)
    out = outputs.begin(
        out, "evaluate", config, free=("workers",), begun=lambda out: (out / "metrics.json").exists()
    )

    maps = sorted(path.name for path in (folder / "uncertainty").glob("*/"))

    def count(frame: Frame) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        matrix = _matrix(config, frame, frames.place(data, frame, folder), data.space)
        histograms = _histograms(config, data, frame, folder, maps, chosen) if maps else {}
        return metrics.restrict(matrix, chosen), histograms

    names = [data.space.names[c] for c in chosen]
    totals: dict[str, np.ndarray] = {}
    trust: dict[str, dict[str, np.ndarray]] = {}
    per_frame, matrices = [], []
    # Threads: OpenCV decodes and counts outside the interpreter lock, and nothing has to be started or
    # pickled.
    with (
        ThreadPoolExecutor(config.workers or runs.cpus()) as pool,
        runs.progress("evaluate", len(kept)) as bar,
    ):
        for frame, (matrix, histograms) in zip(kept, pool.map(count, kept), strict=True):
            totals[frame.domain] = totals.get(frame.domain, 0) + matrix
            trust[frame.domain] = _sum(trust.get(frame.domain, {}), histograms)
            matrices.append(matrix)
            score, accuracy = metrics.miou(matrix), metrics.pixel_accuracy(matrix)
            per_frame.append(
                {
                    "id": frame.id,
                    "domain": frame.domain,
                    "miou": metrics.plain(score),
                    "pixel_accuracy": metrics.plain(accuracy),
                }
            )
            bar.advance()
    model = runs.read_json(folder / "model.json", records.Model) if (folder / "model.json").exists() else None
    setting = _setting(config, data, len(kept), len(chosen), len(left_out))
    result = {
        "protocol": f"{setting}; {predictions.how(model)}",
        "setting": setting,
        "data": {
            "layout": data.layout,
            "subset": data.subset,
            "transferred": data.transferred,
            "space": data.space.name,
        },
        "model": model,
        "classes": names,
        "colours": {
            data.space.names[c]: "#{:02x}{:02x}{:02x}".format(*data.space.colours[c]) for c in chosen
        },
        **_scores(np.sum([*totals.values()], axis=0), names),
        **_trust(reduce(_sum, trust.values())),
        "domains": {
            domain: _scores(matrix, names) | _trust(trust[domain]) for domain, matrix in totals.items()
        },
        "frames": per_frame,
        "left_out": left_out,
    }
    with runs.atomic(out / "frames.npz") as temporary:
        np.savez_compressed(temporary, ids=[frame.id for frame in kept], confusion=np.stack(matrices))
    runs.write_json(out / "metrics.json", result)
    _print(result)
    return out


def _labelled(config: EvaluateConfig, data: Dataset, folder: Path) -> tuple[list[Frame], list[dict]]:
    """The frames to evaluate, and those that the protocol leaves out with the reason."""
    if not folder.is_dir():
        raise runs.InputError(
            f"no folder of predictions {folder}: run segshift predict, or give the folder it wrote"
        )
    frames.require_labels(data)
    kept, left_out = [], []
    for frame in data.frames:
        # The published loader takes fog frames of 1920x1080 only (datasets/acdc.py); other conditions are not
        # checked.
        if config.protocol == "as-published" and data.layout == "acdc" and frame.domain == "fog":
            height, width = frames.image_size(frame.image)
            if (height, width) != (1080, 1920):
                left_out.append({"id": frame.id, "reason": f"{width}x{height}, not 1920x1080"})
                continue
        kept.append(frame)
    if not kept:
        raise runs.InputError(
            f"none of the {len(data.frames)} frames of {data.name} is 1920x1080, which the as-published "
            "protocol expects of ACDC fog: take --protocol native"
        )
    missing = [frame for frame in kept if not frames.place(data, frame, folder).is_file()]
    if missing:
        raise runs.InputError(
            f"no prediction for {len(missing)} of {len(kept)} frames of {data.name}, the first is expected "
            f"at {frames.place(data, missing[0], folder)}: run segshift predict for this data set into "
            f"{folder}"
        )
    return kept, left_out


def _matrix(config: EvaluateConfig, frame: Frame, file: Path, space: LabelSpace) -> np.ndarray:
    """The confusion matrix of one frame and its prediction in `file`."""
    label, pred = predictions.read_plain(frame.truth), predictions.read_plain(file)
    if label is not None and pred is not None:
        # The fast way: count the files' own values, and map and check 256 of them instead of every pixel.
        counts = metrics.joint_counts(*_sized(config, frame, label, pred))
        there, predicted = np.flatnonzero(counts.any(1)), np.flatnonzero(counts.any(0))
        if not space.unknown(there, truth=True) and not space.unknown(predicted):
            return metrics.from_counts(counts, space.classes, space.to_train(np.arange(256)))
    label, pred = frames.read_label(frame, space), predictions.read(file, space)  # with their errors
    label, pred = _sized(config, frame, label, pred)
    return metrics.confusion_matrix(pred, label, space.classes)


def _sized(
    config: EvaluateConfig, frame: Frame, label: np.ndarray, pred: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Label and prediction [H, W] at the protocol's size. Raises: InputError when the sizes do not match."""
    published = config.protocol == "as-published"
    if pred.shape != label.shape and not (published and pred.shape == PUBLISHED_SIZE):
        raise runs.InputError(
            f"the prediction of frame '{frame.id}' is {pred.shape[1]}x{pred.shape[0]}, its label "
            f"{frame.label} is {label.shape[1]}x{label.shape[0]}: predict at the label's size, as segshift "
            "predict does"
        )
    if not published:
        return label, pred
    height, width = PUBLISHED_SIZE
    # NEAREST_EXACT takes the pixels that Pillow's NEAREST takes.
    label, pred = (
        cv2.resize(a, (width, height), interpolation=cv2.INTER_NEAREST_EXACT) for a in (label, pred)
    )
    return label, pred


def _histograms(
    config: EvaluateConfig,
    data: Dataset,
    frame: Frame,
    folder: Path,
    maps: Sequence[str],
    chosen: Sequence[int],
) -> dict[str, np.ndarray]:
    """H [2, K] of every map of a frame (`calibration`). Raises: InputError when there is none of the
    prediction's size.
    """
    pred = predictions.read(frames.place(data, frame, folder), data.space)
    label, sized = _sized(config, frame, frames.read_label(frame, data.space), pred)
    found = {}
    for name in maps:
        file = frames.place(data, frame, folder / "uncertainty" / name)
        cure = f"predict again with --uncertainty into a new folder, or delete {folder / 'uncertainty'}"
        with frames.open_picture(file, cure) as picture:
            values = frames.one_channel(picture)
        if values is None or values.dtype != np.uint16 or values.shape != pred.shape:
            raise runs.InputError(
                f"the map {file} is no picture of {pred.shape[1]}x{pred.shape[0]} with one channel of 16 "
                f"bits: {cure}"
            )
        if values.shape != label.shape:  # of the published size
            values = cv2.resize(values, label.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        found[name] = calibration.histogram(values, label, sized, chosen)
    return found


def _sum(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: a.get(name, 0) + value for name, value in b.items()}


def _trust(histograms: dict[str, np.ndarray]) -> dict:
    """`calibration` and `risk_coverage` of metrics.json; nothing where no map was predicted."""
    if not histograms:
        return {}
    curves = {
        name: calibration.risk_coverage(h, confidence=name == "confidence") for name, h in histograms.items()
    }
    record: dict[str, Any] = {"risk_coverage": {name: curve for name, curve in curves.items() if curve}}
    if "confidence" in histograms:
        record["calibration"] = calibration.reliability(histograms["confidence"])
    return record


def _scores(matrix: np.ndarray, names: list[str]) -> dict:
    return {
        "miou": metrics.plain(metrics.miou(matrix)),
        "pixel_accuracy": metrics.plain(metrics.pixel_accuracy(matrix)),
        "iou": {name: metrics.plain(score) for name, score in zip(names, metrics.iou(matrix), strict=True)},
        "confusion": matrix.tolist(),
    }


def _setting(config: EvaluateConfig, data: Dataset, count: int, classes: int, left_out: int) -> str:
    """What a number is a number of, but for the checkpoint: data, subset, classes and resolution."""
    size = "label's native size"
    if config.protocol == "as-published":
        size = f"{PUBLISHED_SIZE[0]}x{PUBLISHED_SIZE[1]}, labels resized"
    what = " ".join(filter(None, ("transferred" if data.transferred else "", data.layout, data.subset)))
    frames_of = f"{count} frames" + (f" ({left_out} fog frames not 1920x1080 left out)" if left_out else "")
    return f"{what}; {frames_of}; {classes} classes; {size}"


def _print(result: dict) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    say = Console(soft_wrap=True, highlight=False)
    say.print(result["protocol"], style="dim")
    parts = {"all": result} | (result["domains"] if len(result["domains"]) > 1 else {})
    for name, scores in parts.items():
        say.print(
            f"{name}: mIoU {percent(scores['miou'])} %, pixel accuracy {percent(scores['pixel_accuracy'])} %"
        )
    say.print(", ".join(f"{name} {percent(score)}" for name, score in result["iou"].items()), style="dim")

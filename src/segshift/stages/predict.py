"""Predict: label PNGs in the data set's official ids, at the label's size.

    OUT/<path of the image in its data set>.png     the prediction (`frames.place`)
    OUT/config.json                                 the configuration (`outputs`)
    OUT/model.json                                  what predicted: run, method, network, step, which
                                                    selection rules choose it, hash of its weights
    OUT/predictions.jsonl                           a line a frame: id, file, and the scores that need no
                                                    label (`label_free`), among them the confidence
    OUT/failures.jsonl                              frames that could not be read, if any: id, error
    OUT/uncertainty/<map>/<the same path>           confidence, entropy, of several draws spread, on request:
                                                    16-bit PNG, value / 65535
    OUT/overlays/<the same path>                    of --images: the picture with the classes' colours over it
    OUT/<video's name>/<number>.png, <name>.mp4     of a video: the predictions, and the annotated video

Logits are resized bilinearly to the label's size (the image's where there is no label) before the argmax. The
confidence is the largest softmax probability, averaged over the pixels of the logits before that resize.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from segshift import execution, outputs, predictor, records, runs
from segshift.config import EngineConfig, PredictConfig
from segshift.data import frames, pictures, transforms
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import CITYSCAPES, LabelSpace
from segshift.data.pictures import Video
from segshift.execution import Lost, Workers
from segshift.execution.device import pick
from segshift.outputs import Output
from segshift.predictor import Predictor
from segshift.runs import InputError
from segshift.scoring import inference, label_free, predictions


def predict(config: PredictConfig, out: str | Path, loaded: Predictor | None = None) -> Path:
    """Write the predictions of `config.run` on `config.data`, or on `config.images`; returns `out`. Frames
    that are there are skipped.

    loaded: what `predictor.of` gave for the same run; None loads it. A frame that cannot be read is listed in
    OUT/failures.jsonl, and the others are done.
    Raises: InputError when the run and the data set do not fit, and when `out` holds predictions of another
    configuration or of other weights.
    """
    execution.one_process("predict")
    data, video = _frames(config)
    if video is not None and config.where.engine != "local":
        raise InputError(
            f"a video is read in order, by one process: leave --engine {config.where.engine} out"
        )
    lasting = replace(config, where=EngineConfig())
    output = outputs.open_output(
        out, "predict", lasting, free=("batch_size", "device"), begun=lambda out: bool(_predicted(out))
    )
    if config.images is not None and data.root in output.path.parents and len(data.frames) > 1 and not video:
        raise InputError(
            f"the output folder {output.path} lies in {data.root}, where the pictures are: name a folder "
            "outside of it"
        )
    job = Predicting(config, replace(data, frames=()), output.path, loaded)
    with (
        outputs.alone(output.path),  # first: another driver may hold the workers as well
        execution.workers(config.where, job, config.device) as workers,
    ):
        facts: Facts = workers.once("facts")
        return _work(config, replace(data, space=facts.space), video, output, workers, facts)


def _work(
    config: PredictConfig,
    data: Dataset,
    video: Video | None,
    output: Output,
    workers: Workers,
    facts: Facts,
) -> Path:
    """Predict what is missing, and record it."""
    if output.claim():  # what predicted before left no prediction
        (output.path / "model.json").unlink(missing_ok=True)
    out = output.path
    runs.remove_unfinished(out)
    _claim(out, facts.record)
    lines: dict[str, records.Prediction] = {
        line["id"]: line for line in _predicted(out) if (out / line["file"]).exists()
    }
    runs.write_lines(out / "predictions.jsonl", list(lines.values()))  # without a line that a kill cut short
    todo = [frame for frame in data.frames if frame.id not in lines]
    failed: list[dict[str, str]] = []
    begun = time.perf_counter()
    with (
        runs.on_disk(out / "predictions.jsonl"),
        execution.draining() as asked,
        runs.progress(f"predict on {facts.device}", len(data.frames), done=len(lines)) as bar,
        (out / "predictions.jsonl").open("a", encoding="utf-8") as log,
    ):
        for line in _made(config, todo, video, workers, asked):
            if "error" in line:
                failed.append(line)
            else:
                lines[line["id"]] = line
                log.write(json.dumps(line, ensure_ascii=False) + "\n")
                log.flush()
            bar.advance()
    seconds = time.perf_counter() - begun
    runs.write_lines(out / "predictions.jsonl", [lines[f.id] for f in data.frames if f.id in lines])
    runs.write_failures(out, failed)
    done = len(todo) - len(failed)
    if config.images is not None and done:
        rate = f"{done} frames in {seconds:.1f} s: {done / seconds:.1f} frames/s on {facts.device}"
        Console(soft_wrap=True, highlight=False).print(f"{rate}, with reading and writing")
    if video is not None:
        _annotate(out, data, video, again=bool(done))
    return out


def _made(
    config: PredictConfig,
    todo: Sequence[Frame],
    video: Video | None,
    workers: Workers,
    asked: Callable[[], bool],
) -> Iterator[Any]:
    """A line for each frame, of what is predicted or what failed."""
    if video is not None:
        by_number = {int(frame.image.stem): frame for frame in todo}
        decoded = ((by_number[number], picture) for number, picture in video.frames(by_number.keys()))
        yield from workers.map("predict", [decoded], asked)
        return
    rows = config.batch_size
    groups = [tuple((frame, None) for frame in todo[i : i + rows]) for i in range(0, len(todo), rows)]
    for result in execution.one_by_one(workers, "predict", groups, asked, _alone):
        if isinstance(result, Lost):
            [(frame, _)] = result.item
            yield {"id": frame.id, "error": f"{frame.image}: {result.why}"}
        else:
            yield result


def _alone(group: tuple[Any, ...]) -> list[tuple[Any]]:
    """A group of each of its frames."""
    return [(one,) for one in group]


@dataclass(frozen=True)
class Facts:
    """What the stage needs to know of a network."""

    record: dict[str, Any]
    """What model.json says of it."""
    space: LabelSpace
    """Of what is predicted."""
    device: str


@dataclass
class Predicting:
    """The job of a worker: it predicts frames, and writes the files."""

    config: PredictConfig
    data: Dataset
    """Without its frames."""
    out: Path
    loaded: Predictor | None
    """What predicts, where it is loaded already."""
    predicted: bool = False
    """Some image, so there is memory for most."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loaded": None}

    def facts(self) -> Facts:
        """Raises: InputError when the run and the data set do not fit."""
        config = self.config
        if self.loaded is None:
            self.loaded = predictor.of(config, None if config.data is None else self.data)
        if config.images is not None:
            self.data = replace(self.data, space=self.loaded.space)
        return Facts(self.loaded.record, self.data.space, pick(config.device).type)

    def predict(
        self, groups: Iterable[Iterable[tuple[Frame, np.ndarray | None]]], asked: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """A line for each frame, of predictions.jsonl or failures.jsonl. groups: frames that may go through
        the network together, with their pictures where they are read already."""
        self.facts()
        assert self.loaded is not None
        config, data, out = self.config, self.data, self.out
        device = pick(config.device)
        method, size = self.loaded.method.to(device), self.loaded.size
        failed: deque[dict[str, Any]] = deque()

        def read(item: tuple[Frame, np.ndarray | None]) -> tuple[Tensor, _Read] | None:
            frame, picture = item
            shown = config.images is not None and picture is None  # of a video the frames are drawn later
            try:
                if picture is None:
                    picture = frames.read_image(frame.image, upright=config.images is not None)
                native = frames.image_size(frame.label) if frame.label else picture.shape[:2]
            except InputError as error:
                failed.append({"id": frame.id, "error": str(error)})
                return None
            image = torch.from_numpy(picture).permute(2, 0, 1)
            drawn_over = picture if shown else None
            return transforms.resize_image(image, size) if size else image, (frame, native, drawn_over)

        for images, batch in inference.read_batches(read, groups, config.batch_size):
            seeds = [transforms.key_seed(config.seed, "predict", frame.id) for frame, _, _ in batch]
            try:
                logits, maps = inference.infer(
                    method, images.to(device), seeds, window=config.window, uncertainty=config.uncertainty
                )
            except torch.OutOfMemoryError as error:
                told = (
                    f"{device} has too little memory for one image of {tuple(images.shape[2:])}: give a "
                    "--window or a smaller --size; what is predicted is kept"
                )
                if not self.predicted:
                    raise InputError(told) from error
                failed += [{"id": frame.id, "error": told} for frame, _, _ in batch]
                continue
            self.predicted = True
            for i, (frame, native, shown) in enumerate(batch):
                file = frames.place(data, frame, out)
                if config.uncertainty:
                    _write_maps(data, frame, out, {name: value[i] for name, value in maps.items()}, native)
                [classes] = inference.classes(logits[i : i + 1], native)
                if shown is not None:
                    drawn = pictures.overlay(shown, classes, data.space)
                    _write_png(frames.place(data, frame, out / "overlays"), drawn)
                predictions.write(file, classes, data.space)
                yield {
                    "id": frame.id,
                    "file": str(file.relative_to(out)),
                    **label_free.of_frame(logits[i], maps["confidence"][i]),
                }
            if asked():
                break
        yield from failed


_Read = tuple[Frame, tuple[int, int], np.ndarray | None]
"""A frame, the size of its prediction, and the picture to draw over."""


def _frames(config: PredictConfig) -> tuple[Dataset, Video | None]:
    """What is to be predicted. Raises: InputError."""
    if (config.data is None) == (config.images is None):
        raise InputError(
            "predict takes either --data or --images: give a data set as layout:path[:subset], or the path "
            "of pictures or of a video"
        )
    if config.images is not None:
        return pictures.find(config.images, CITYSCAPES)
    assert config.data is not None
    return frames.load(config.data), None


def _annotate(out: Path, data: Dataset, video: Video, again: bool) -> None:
    """Write OUT/<video's name>.mp4 from the predictions, where it is missing or they are new."""
    path = out / f"{video.path.stem}.mp4"
    if path.exists() and not again:
        return

    def drawn() -> Iterable[np.ndarray]:
        with runs.progress("draw the video", video.count) as bar:
            for number, picture in video.frames():
                label = predictions.read(frames.place(data, data.frames[number], out), data.space)
                yield pictures.overlay(picture, label, data.space)
                bar.advance()

    pictures.write_video(path, video.rate, drawn())


def _predicted(out: Path) -> list[records.Prediction]:
    return runs.read_lines(out / "predictions.jsonl", records.Prediction)


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Write OUT/model.json. Raises: InputError when other weights have predicted into `out`."""
    path = out / "model.json"
    before = runs.read_json(path, records.Model) if path.exists() else record
    if before["weights"] != record["weights"]:
        steps = (
            f" (step {before['step']}, now step {record['step']})" if before.get("step") is not None else ""
        )
        raise InputError(
            f"{out} holds predictions of other weights of {before['run']}{steps}: name a new folder, or "
            "delete this one"
        )
    runs.write_json(path, record)


def _write_maps(
    data: Dataset, frame: Frame, out: Path, maps: dict[str, Tensor], size: tuple[int, int]
) -> None:
    """Each map [h, w] in [0, 1] as a 16-bit PNG at `size`."""
    for name, value in maps.items():
        values = (65535 * predictor.resized(value, size)).round().cpu().numpy().astype(np.uint16)
        _write_png(frames.place(data, frame, out / "uncertainty" / name), values)


def _write_png(path: Path, values: np.ndarray) -> None:
    """Write RGB [H, W, 3] uint8, or one channel [H, W] of 8 or 16 bits, atomically."""
    done, content = cv2.imencode(".png", values if values.ndim == 2 else values[..., ::-1])
    assert done
    with runs.atomic(path) as temporary:
        temporary.write_bytes(content.tobytes())

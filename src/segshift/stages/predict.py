"""Predict: label PNGs in the data set's official ids, at the label's size.

    OUT/<path of the image in its data set>.png     the prediction (`frames.place`)
    OUT/config.json                                 the configuration (runs.begin)
    OUT/model.json                                  what predicted: run, method, network, how its checkpoint was
                                                    selected, step, hash of its weights
    OUT/predictions.jsonl                           a line a frame: id, file, confidence
    OUT/failures.jsonl                              frames that could not be read, where there are any: id, error

Logits are resized bilinearly to the label's size (the image's where there is no label) before the argmax. The
confidence is the largest softmax probability, averaged over the pixels of the logits before that resize.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segshift import checkpoints, devices, frames, models, predictions, runs, transforms
from segshift.config import PredictConfig
from segshift.frames import Dataset, Frame
from segshift.runs import InputError

A = TypeVar("A")
B = TypeVar("B")

AHEAD = 2
"""Batches that are read while one is computed."""
_SELECTION = {
    "last": "checkpoint of the last step",
    "source": "checkpoint best on source validation",
    "transferred": "checkpoint best on transferred validation",
    "oracle": "checkpoint best on the target's labels (oracle)",
}


def predict(config: PredictConfig, out: Path) -> Path:
    """Write the predictions of `config.run` on `config.data`; returns `out`. Frames that are there are skipped.

    A frame that cannot be read is listed in OUT/failures.jsonl, and the others are done.
    Raises: InputError when the run and the data set do not fit, and when `out` holds predictions of another
    configuration or of other weights.
    """
    data = frames.load(config.data)
    network, size, told = _network(config, data)
    runs.begin(out, "predict", config, free=("batch_size", "device"))
    _claim(out, told)
    device = devices.pick(config.device)
    network = network.to(device)

    lines = {line["id"]: line for line in runs.read_lines(out / "predictions.jsonl") if (out / line["file"]).exists()}
    runs.write_lines(out / "predictions.jsonl", list(lines.values()))  # without a line that a kill cut short
    todo = [frame for frame in data.frames if frame.id not in lines]
    failed: list[dict[str, str]] = []

    def read(frame: Frame) -> tuple[Frame, Tensor, tuple[int, int]] | InputError:
        try:
            image = torch.from_numpy(frames.read_image(frame.image)).permute(2, 0, 1)
            native = frames.image_size(frame.label) if frame.label else tuple(image.shape[1:])
        except InputError as error:
            failed.append({"id": frame.id, "error": str(error)})
            return error
        return frame, transforms.resize_image(image, size) if size else image, native

    with (
        ThreadPoolExecutor() as pool,
        runs.progress("predict", len(data.frames), done=len(lines)) as bar,
        (out / "predictions.jsonl").open("a", encoding="utf-8") as log,
    ):
        items = _ahead(pool, read, todo, AHEAD * config.batch_size)
        for batch in _batches(items, config.batch_size, bar.advance):
            logits = _logits(network, torch.stack([image for _, image, _ in batch]).to(device))
            for (frame, _, native), frame_logits in zip(batch, logits, strict=True):
                file = frames.place(data, frame, out)
                predictions.write(file, _classes(frame_logits, native), data.space)
                confidence = frame_logits.softmax(0).amax(0).mean().item()
                line = {"id": frame.id, "file": str(file.relative_to(out)), "confidence": round(confidence, 6)}
                lines[frame.id] = line
                log.write(json.dumps(line, ensure_ascii=False) + "\n")
                log.flush()
                bar.advance()
    runs.write_lines(out / "predictions.jsonl", [lines[f.id] for f in data.frames if f.id in lines])
    if failed:
        runs.write_lines(out / "failures.jsonl", sorted(failed, key=lambda line: line["id"]))
    else:
        (out / "failures.jsonl").unlink(missing_ok=True)
    return out


def _network(config: PredictConfig, data: Dataset) -> tuple[nn.Module, tuple[int, int] | None, dict[str, Any]]:
    """What gives logits (with a method's `predict`, or a segmenter), the size it sees, and what model.json tells."""
    path = Path(config.run)
    if path.is_file():
        if config.network is None:
            raise InputError(f"{path} is a file of weights: name the network it belongs to (network.name, .encoder)")
        network = models.build(replace(config.network, pretrained=False, weights=str(path)), data.space.classes)
        told = {
            "run": config.run, "method": None, "network": asdict(config.network), "step": None,
            "selection": f"weights {path.name}",
        }  # fmt: skip
        return network.eval(), config.size, told | {"weights": _hash(network)}
    if config.network is not None:
        raise InputError(f"{path} is no file of weights: leave `network` out to predict with the network of a run")
    method, trained, space = checkpoints.load_run(path, config.checkpoint)
    if space.names != data.space.names:
        raise InputError(
            f"{path} was trained on the {space.classes} classes of '{space.name}', {data.name} has the "
            f"{data.space.classes} of '{data.space.name}': map one onto the other in dataset.yaml"
        )
    best = config.checkpoint == "best"
    told = {
        "run": config.run, "method": trained.method, "network": asdict(trained.network),
        "step": checkpoints.best_record(path)["step"] if best else checkpoints.last_step(path),
        "selection": _SELECTION[trained.select if best else "last"],
    }  # fmt: skip
    return method, config.size or trained.size, told | {"weights": _hash(method)}


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _claim(out: Path, told: dict[str, Any]) -> None:
    """Write OUT/model.json. Raises: InputError when other weights have predicted into `out`."""
    path = out / "model.json"
    before = runs.read_json(path) if path.exists() else told
    if before["weights"] != told["weights"]:
        raise InputError(
            f"{out} holds predictions of step {before['step']} of {before['run']}, whose checkpoint is now of step "
            f"{told['step']}: name a new folder, or delete this one"
        )
    runs.write_json(path, told)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Sequence[A], count: int) -> Iterator[B]:
    """`function` over `items` in order, at most `count` results waiting: pictures do not pile up in memory."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(items: Iterable, count: int, skipped: Callable[[], None]) -> Iterator[list[tuple[Frame, Tensor, tuple[int, int]]]]:
    """Up to `count` neighbours of one size; `skipped` is called for each one that could not be read."""
    batch: list = []
    for item in items:
        if isinstance(item, InputError):
            skipped()
            continue
        if batch and (len(batch) == count or item[1].shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


@torch.inference_mode()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] uint8 to logits [B, C, H, W] float32."""
    forward = getattr(network, "predict", network)  # a method's predict leaves out classes that it was not taught
    # Finite: bilinear resizing of -inf gives nan, which argmax takes for the largest.
    return forward(images.float() / 255).float().clamp(min=-1e9)


@torch.inference_mode()
def _classes(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Logits [C, h, w] to train ids [H, W] uint8 at `size`."""
    if logits.shape[1:] != size:
        logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    return logits.argmax(0).to(torch.uint8).cpu().numpy()

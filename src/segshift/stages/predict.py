"""Predict: label PNGs in the data set's official ids, at the label's size.

    OUT/<path of the image in its data set>.png     the prediction (`frames.place`)
    OUT/config.json                                 the configuration (`outputs`)
    OUT/model.json                                  what predicted: run, method, network, step, which
                                                    selection rules choose it, hash of its weights
    OUT/predictions.jsonl                           a line a frame: id, file, confidence
    OUT/failures.jsonl                              frames that could not be read, if any: id, error
    OUT/uncertainty/<map>/<the same path>           confidence, entropy, of several draws spread, on request:
                                                    16-bit PNG, value / 65535

Logits are resized bilinearly to the label's size (the image's where there is no label) before the argmax. The
confidence is the largest softmax probability, averaged over the pixels of the logits before that resize.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segshift import execution, networks, outputs, records, runs
from segshift.config import PredictConfig
from segshift.data import frames, transforms
from segshift.data.frames import Dataset, Frame
from segshift.execution.device import pick
from segshift.methods.base import Method
from segshift.methods.iccld.diffusion import T
from segshift.methods.source_only.training import SourceOnly
from segshift.networks.segmenter import require_finite
from segshift.runs import InputError
from segshift.scoring import predictions
from segshift.settings import option
from segshift.training import checkpoints

A = TypeVar("A")
B = TypeVar("B")

_log = logging.getLogger(__name__)

AHEAD = 2
"""Batches that are read while one is computed."""


def predict(config: PredictConfig, out: str | Path) -> Path:
    """Write the predictions of `config.run` on `config.data`; returns `out`. Frames that are there are
    skipped.

    A frame that cannot be read is listed in OUT/failures.jsonl, and the others are done.
    Raises: InputError when the run and the data set do not fit, and when `out` holds predictions of another
    configuration or of other weights.
    """
    execution.one_process("predict")
    data = frames.load(config.data)
    output = outputs.open_output(
        out, "predict", config, free=("batch_size", "device"), begun=lambda out: bool(_predicted(out))
    )
    network, size, told = load_network(config, data)
    if output.claim():  # what predicted before left no prediction
        (output.path / "model.json").unlink(missing_ok=True)
    out = output.path
    runs.remove_unfinished(out)
    _claim(out, told)
    device = pick(config.device)
    network = network.to(device)

    lines: dict[str, records.Prediction] = {
        line["id"]: line for line in _predicted(out) if (out / line["file"]).exists()
    }
    runs.write_lines(out / "predictions.jsonl", list(lines.values()))  # without a line that a kill cut short
    todo = [frame for frame in data.frames if frame.id not in lines]
    failed: list[dict[str, str]] = []

    def read(frame: Frame) -> tuple[Frame, Tensor, tuple[int, int]] | InputError:
        try:
            image = torch.from_numpy(frames.read_image(frame.image)).permute(2, 0, 1)
            native = frames.image_size(frame.label) if frame.label else (image.shape[1], image.shape[2])
        except InputError as error:
            failed.append({"id": frame.id, "error": str(error)})
            return error
        return frame, transforms.resize_image(image, size) if size else image, native

    with (
        ThreadPoolExecutor() as pool,
        runs.progress(f"predict on {device.type}", len(data.frames), done=len(lines)) as bar,
        (out / "predictions.jsonl").open("a", encoding="utf-8") as log,
    ):
        items = _ahead(pool, read, todo, AHEAD * config.batch_size)
        for batch in _batches(items, config.batch_size, bar.advance):
            images = torch.stack([image for _, image, _ in batch]).to(device)
            seeds = [transforms.key_seed(config.seed, "predict", frame.id) for frame, _, _ in batch]
            logits, maps = _in_memory(network, images, seeds, config)
            for i, ((frame, _, native), frame_logits) in enumerate(zip(batch, logits, strict=True)):
                file = frames.place(data, frame, out)
                if config.uncertainty:
                    _write_maps(data, frame, out, {name: value[i] for name, value in maps.items()}, native)
                predictions.write(file, _classes(frame_logits, native), data.space)
                confidence = maps["confidence"][i].mean().item()
                line: records.Prediction = {
                    "id": frame.id,
                    "file": str(file.relative_to(out)),
                    "confidence": round(confidence, 6),
                }
                lines[frame.id] = line
                log.write(json.dumps(line, ensure_ascii=False) + "\n")
                log.flush()
                bar.advance()
    runs.write_lines(out / "predictions.jsonl", [lines[f.id] for f in data.frames if f.id in lines])
    runs.write_failures(out, failed)
    return out


def _predicted(out: Path) -> list[records.Prediction]:
    return runs.read_lines(out / "predictions.jsonl", records.Prediction)


def load_network(
    config: PredictConfig, data: Dataset
) -> tuple[Method, tuple[int, int] | None, dict[str, Any]]:
    """What predicts, the size it sees, and what model.json tells. Raises: InputError when it does not fit the
    data set.
    """
    path = Path(config.run)
    if path.is_file():
        if config.network is None:
            raise InputError(
                f"{path} is a file of weights: name its network with --network.name and --network.encoder"
            )
        network = networks.build(
            replace(config.network, pretrained=False, weights=str(path)), data.space.classes, trained=True
        )
        told: dict[str, Any] = {
            "run": config.run,
            "method": None,
            "network": asdict(config.network),
            "step": None,
            "rules": [],
            "selection": f"weights {path.name}",
            "sampling": None,
            "input": _input(config, False),
        }
        return SourceOnly(network).eval(), config.size, told | {"weights": _hash(network)}
    if config.network is not None:
        raise InputError(
            f"{path} is no file of weights: leave --network.name out to predict with the network of a run"
        )
    method, trained, space = checkpoints.load_run(path, config.checkpoint)
    if space.names != data.space.names:
        raise InputError(
            f"{path} was trained on the {space.classes} classes of '{space.name}', {data.name} has the "
            f"{data.space.classes} of '{data.space.name}': map one onto the other in dataset.yaml"
        )
    for name, most in (("sampling_steps", T), ("draws", None)):
        value = getattr(config, name)
        if value is not None and not hasattr(method, name):
            raise InputError(
                f"{path} was trained by method {trained.method}, which draws no noise: leave "
                f"{option(name)} out"
            )
        if value is not None and not 1 <= value <= (most or value):
            raise InputError(
                f"{option(name)} is {value}, expected " + (f"1 to {most}" if most else "1 or more")
            )
        if value is not None:
            setattr(method, name, value)
    steps = checkpoints.chosen_steps(path)
    step = checkpoints.best_record(path)["step"] if config.checkpoint == "best" else steps[config.checkpoint]
    # none: `best` of a training that was killed between writing it and writing the last
    rules = [rule for rule in checkpoints.rules(trained) if steps.get(rule) == step] or [trained.select]
    told = {
        "run": config.run,
        "method": trained.method,
        "network": asdict(trained.network),
        "step": step,
        "rules": rules,
        "selection": predictions.selection(rules),
        "sampling": f"{_count(method.sampling_steps, 'DDIM step')}, {_count(method.draws, 'draw')}"
        if hasattr(method, "draws")
        else None,
        "input": _input(config, hasattr(method, "draws")),
    }
    return method, config.size or trained.target_size or trained.size, told | {"weights": _hash(method)}


def _input(config: PredictConfig, draws: bool) -> str | None:
    """Where it is not the default: size, window, and the seed of what is drawn."""
    told = {"size": config.size, "window": config.window}
    parts = [f"{name} {value[0]}x{value[1]}" for name, value in told.items() if value]
    parts += [f"seed {config.seed}"] if draws and config.seed != PredictConfig.seed else []
    return ", ".join(parts) or None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _claim(out: Path, told: dict[str, Any]) -> None:
    """Write OUT/model.json. Raises: InputError when other weights have predicted into `out`."""
    path = out / "model.json"
    before = runs.read_json(path, records.Model) if path.exists() else told
    if before["weights"] != told["weights"]:
        steps = f" (step {before['step']}, now step {told['step']})" if before.get("step") is not None else ""
        raise InputError(
            f"{out} holds predictions of other weights of {before['run']}{steps}: name a new folder, or "
            "delete this one"
        )
    runs.write_json(path, told)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Sequence[A], count: int
) -> Iterator[B]:
    """`function` over `items` in order, at most `count` results waiting: pictures do not pile up in
    memory."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(
    items: Iterable, count: int, skipped: Callable[[], None]
) -> Iterator[list[tuple[Frame, Tensor, tuple[int, int]]]]:
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
def _scores(
    method: Method, images: Tensor, seeds: list[int], uncertainty: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Images [B, 3, H, W] uint8 to logits [B, C, H, W] float32 and maps [B, H, W] in [0, 1] by name: the
    confidence, and what `uncertainty` asks for. Raises: InputError for logits that are not finite."""
    x = images.float() / 255
    logits, maps = (
        method.predict_with_uncertainty(x, seeds) if uncertainty else (method.predict(x, seeds), {})
    )
    require_finite(logits)
    # Finite: bilinear resizing of -inf gives nan, which argmax takes for the largest.
    logits = logits.float().clamp(min=-1e9)
    return logits, {"confidence": logits.softmax(1).amax(1), **maps}


def _in_memory(
    method: Method, images: Tensor, seeds: list[int], config: PredictConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """`_sliding`, in halves where memory does not suffice for all images. Raises: InputError where it does
    not for one.
    """
    try:
        return _sliding(method, images, seeds, config)
    except torch.OutOfMemoryError as error:
        if len(images) == 1:
            raise InputError(
                f"{images.device} has too little memory for one image of {tuple(images.shape[2:])}: give a "
                "--window or a smaller "
                "--size; what is predicted is kept"
            ) from error
    # outside the handler, which keeps the tensors of the failed batch alive
    half = len(images) // 2
    _log.warning(
        "out of memory with %d images at once, going on in halves: a smaller --batch-size is faster",
        len(images),
    )
    parts = [
        _in_memory(method, images[part], seeds[part], config) for part in (slice(half), slice(half, None))
    ]
    logits, maps = zip(*parts, strict=True)
    return torch.cat(logits), {name: torch.cat([one[name] for one in maps]) for name in maps[0]}


def _sliding(
    method: Method, images: Tensor, seeds: list[int], config: PredictConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """`_scores` of windows that overlap by half, averaged where they do; of the whole images without a
    window.
    """
    if config.window is None:
        return _scores(method, images, seeds, config.uncertainty)
    size = tuple(images.shape[-2:])
    extent = [min(w, full) for w, full in zip(config.window, size, strict=True)]
    starts = [[*range(0, full - w, max(1, w // 2)), full - w] for w, full in zip(extent, size, strict=True)]
    sums: dict[str, Tensor] = {}
    count = torch.zeros(size, device=images.device)
    for top, left in product(*starts):
        here = (..., slice(top, top + extent[0]), slice(left, left + extent[1]))
        own = [transforms.key_seed(seed, top, left) for seed in seeds]
        logits, maps = _scores(method, images[here], own, config.uncertainty)
        for name, value in {"logits": logits, **maps}.items():
            total = sums.setdefault(name, torch.zeros((*value.shape[:-2], *size), device=value.device))
            total[here] += value
        count[here] += 1
    return sums.pop("logits") / count, {name: total / count for name, total in sums.items()}


def _write_maps(
    data: Dataset, frame: Frame, out: Path, maps: dict[str, Tensor], size: tuple[int, int]
) -> None:
    """Each map [h, w] in [0, 1] as a 16-bit PNG at `size`."""
    for name, value in maps.items():
        resized = F.interpolate(value[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        done, content = cv2.imencode(
            ".png", (65535 * resized.clamp(0, 1)).round().cpu().numpy().astype(np.uint16)
        )
        assert done
        with runs.atomic(frames.place(data, frame, out / "uncertainty" / name)) as temporary:
            temporary.write_bytes(content.tobytes())


@torch.inference_mode()
def _classes(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Logits [C, h, w] to train ids [H, W] uint8 at `size`."""
    if logits.shape[1:] != size:
        logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    return logits.argmax(0).to(torch.uint8).cpu().numpy()

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segshift import execution, networks, outputs, records, runs
from segshift.config import NetworkConfig, PredictConfig
from segshift.data import frames, transforms
from segshift.data.frames import Dataset, Frame
from segshift.execution.device import pick
from segshift.methods.base import Method
from segshift.methods.source_only.training import SourceOnly
from segshift.networks.custom import BlackBox
from segshift.runs import InputError
from segshift.scoring import inference, predictions
from segshift.settings import RunFolder, option
from segshift.training import checkpoints


@dataclass(frozen=True)
class Predictor:
    """What predicts."""

    method: Method
    """In evaluation mode."""
    size: tuple[int, int] | None
    """Height and width that it sees; None for the image's own."""
    record: dict[str, Any]
    """What model.json says of it."""


def predict(config: PredictConfig, out: str | Path, predictor: Predictor | None = None) -> Path:
    """Write the predictions of `config.run` on `config.data`; returns `out`. Frames that are there are
    skipped.

    predictor: what `load` gave for the same run; None loads it. A frame that cannot be read is listed in
    OUT/failures.jsonl, and the others are done.
    Raises: InputError when the run and the data set do not fit, and when `out` holds predictions of another
    configuration or of other weights.
    """
    execution.one_process("predict")
    data = frames.load(config.data)
    output = outputs.open_output(
        out, "predict", config, free=("batch_size", "device"), begun=lambda out: bool(_predicted(out))
    )
    predictor = predictor or load(config, data)
    if output.claim():  # what predicted before left no prediction
        (output.path / "model.json").unlink(missing_ok=True)
    out = output.path
    runs.remove_unfinished(out)
    _claim(out, predictor.record)
    device = pick(config.device)
    method, size = predictor.method.to(device), predictor.size

    lines: dict[str, records.Prediction] = {
        line["id"]: line for line in _predicted(out) if (out / line["file"]).exists()
    }
    runs.write_lines(out / "predictions.jsonl", list(lines.values()))  # without a line that a kill cut short
    todo = [frame for frame in data.frames if frame.id not in lines]
    failed: list[dict[str, str]] = []

    with (
        runs.progress(f"predict on {device.type}", len(data.frames), done=len(lines)) as bar,
        (out / "predictions.jsonl").open("a", encoding="utf-8") as log,
    ):

        def read(frame: Frame) -> tuple[Tensor, tuple[Frame, tuple[int, int]]] | None:
            try:
                image = torch.from_numpy(frames.read_image(frame.image)).permute(2, 0, 1)
                native = frames.image_size(frame.label) if frame.label else (image.shape[1], image.shape[2])
            except InputError as error:
                failed.append({"id": frame.id, "error": str(error)})
                bar.advance()
                return None
            return transforms.resize_image(image, size) if size else image, (frame, native)

        for images, batch in inference.read_batches(read, todo, config.batch_size):
            seeds = [transforms.key_seed(config.seed, "predict", frame.id) for frame, _ in batch]
            try:
                logits, maps = inference.infer(
                    method, images.to(device), seeds, window=config.window, uncertainty=config.uncertainty
                )
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"{device} has too little memory for one image of {tuple(images.shape[2:])}: give a "
                    "--window or a smaller --size; what is predicted is kept"
                ) from error
            for i, (frame, native) in enumerate(batch):
                file = frames.place(data, frame, out)
                if config.uncertainty:
                    _write_maps(data, frame, out, {name: value[i] for name, value in maps.items()}, native)
                [classes] = inference.classes(logits[i : i + 1], native)
                predictions.write(file, classes, data.space)
                line: records.Prediction = {
                    "id": frame.id,
                    "file": str(file.relative_to(out)),
                    "confidence": round(maps["confidence"][i].mean().item(), 6),
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


def load(config: PredictConfig, data: Dataset) -> Predictor:
    """What predicts, on the CPU. Raises: InputError when it does not fit the data set."""
    path = Path(config.run)
    if not isinstance(config.run, RunFolder) or path.is_file():
        network, what = _foreign(config)
        segmenter = networks.build(network, data.space.classes, trained=True)
        record: dict[str, Any] = {
            "run": config.run,
            "method": None,
            "network": asdict(config.network or network),
            "step": None,
            "rules": [],
            "selection": what,
            "sampling": None,
            "input": _input(config, False),
            "weights": _hash(segmenter),
        }
        return Predictor(SourceOnly(segmenter).eval(), config.size, record)
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
    given = {"sampling_steps": config.sampling_steps, "draws": config.draws}
    options = {name: value for name, value in given.items() if value is not None}
    if others := sorted(options.keys() - set(method.prediction_options)):
        raise InputError(
            f"{path} was trained by method {trained.method}, which has no {option(others[0])}: leave it out"
        )
    method.set_prediction(**options)
    steps = checkpoints.chosen_steps(path)
    step = checkpoints.best_record(path)["step"] if config.checkpoint == "best" else steps[config.checkpoint]
    # none: `best` of a training that was killed between writing it and writing the last
    rules = [rule for rule in checkpoints.rules(trained) if steps.get(rule) == step] or [trained.select]
    record = {
        "run": config.run,
        "method": trained.method,
        "network": asdict(trained.network),
        "step": step,
        "rules": rules,
        "selection": predictions.selection(rules),
        "sampling": method.sampling,
        "input": _input(config, method.sampling is not None),
        "weights": _hash(method),
    }
    return Predictor(method, config.size or trained.target_size or trained.size, record)


def _foreign(config: PredictConfig) -> tuple[NetworkConfig, str]:
    """The network of a file of weights or of `module:factory`, and what tables say of it. Raises:
    InputError."""
    if not isinstance(config.run, RunFolder):
        if config.network is not None:
            raise InputError(
                f"--run {config.run} names a network already: leave --network.name out, or give its file of "
                "weights as --run"
            )
        return NetworkConfig(name=config.run), f"network {config.run.rpartition('/')[2]}"
    path = Path(config.run)
    if config.network is None:
        raise InputError(
            f"{path} is a file of weights: name its network with --network.name and --network.encoder"
        )
    return replace(config.network, pretrained=False, weights=str(path)), f"weights {path.name}"


def _input(config: PredictConfig, draws: bool) -> str | None:
    """Where it is not the default: size, window, and the seed of what is drawn."""
    told = {"size": config.size, "window": config.window}
    parts = [f"{name} {value[0]}x{value[1]}" for name, value in told.items() if value]
    parts += [f"seed {config.seed}"] if draws and config.seed != PredictConfig.seed else []
    return ", ".join(parts) or None


def _hash(network: nn.Module) -> str:
    """Of the weights; of a black box, whose weights cannot be seen, of the file that its factory is in."""
    digest = hashlib.sha256()
    if isinstance(network, BlackBox) and network.file is not None:
        digest.update(network.file.read_bytes())
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

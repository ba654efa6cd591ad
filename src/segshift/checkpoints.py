"""What a training run keeps, and how it comes back.

    RUN/config.json                    the configuration (runs.begin)
    RUN/labels.json                    the source's label space
    RUN/environment.json               versions of Python and the libraries
    RUN/metrics.jsonl                  a line a step: step, lr, every loss term, seconds; and a line a validation:
                                       step, score, validation: {set: {miou, iou: {class: value}}}
    RUN/checkpoints/best.safetensors   the method at its best step, with step and score in the file's metadata
    RUN/checkpoints/00000500.safetensors and .state
                                       the method, and what continuing needs: optimizers, gradient scaler, best
                                       score; tensors and numbers only, read with weights_only=True

A checkpoint is whole once its .state is there, which is written last; the one before is deleted after that. The
learning rate, the samples and all random states are functions of the step number.
"""

from __future__ import annotations

import io
import json
import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor

from segshift import models, runs
from segshift.config import TrainConfig
from segshift.labels import CITYSCAPES, CLASS_SETS, LabelSpace
from segshift.methods import Method
from segshift.methods.source_only import SourceOnly
from segshift.methods.zodi_adaptation import ZoDi
from segshift.runs import InputError

LIBRARIES = (
    "segshift", "torch", "torchvision", "accelerate", "segmentation-models-pytorch", "timm", "transformers",
    "safetensors", "numpy", "pillow", "opencv-python-headless",
)  # fmt: skip


def class_set(config: TrainConfig, space: LabelSpace) -> tuple[int, ...]:
    """Train ids that are learnt and predicted. The network has one output for every class of the space all the same.

    Raises: InputError when the space has no such set.
    """
    if config.classes is None:
        return tuple(range(space.classes))
    if space.names != CITYSCAPES.names:
        raise InputError(
            f"{config.source} has the classes of '{space.name}', expected Cityscapes' 19 for classes = "
            f"{config.classes}: leave `classes` out to train all {space.classes}"
        )
    return CLASS_SETS[config.classes]


def method_of(config: TrainConfig, space: LabelSpace) -> Method:
    """The method that `config` names with its network, on the CPU. Raises: InputError, as `models.build`."""
    segmenter = models.build(config.network, space.classes)
    excluded = sorted(set(range(space.classes)) - set(class_set(config, space)))
    if config.method == "source_only":
        return SourceOnly(segmenter, excluded)
    return ZoDi(
        segmenter,
        excluded,
        form=config.similarity,
        weight=config.similarity_weight,
        joint_pass=config.joint_pass,
    )


def load_run(run: Path, which: Literal["best", "last"] = "best") -> tuple[Method, TrainConfig, LabelSpace]:
    """A trained method in evaluation mode on the CPU, the run's configuration, and the label space of its classes.

    Raises: InputError when `run` is no training run or has no such checkpoint.
    """
    config = runs.read_config(run / "config.json", TrainConfig)
    space = read_space(run)
    path = run / "checkpoints" / "best.safetensors"
    if which == "last":
        path = _weights(run, last_step(run))
    if not path.exists():
        raise InputError(
            f"no checkpoint {path}: continue the training with the same command until it has written one"
        )
    network = replace(config.network, pretrained=False, weights=None)  # everything comes from the checkpoint
    method = method_of(replace(config, network=network), space)
    models.load_tensors(method, models.read_tensors(path), path)
    return method.eval(), config, space


def read_space(run: Path) -> LabelSpace:
    """The label space that a run was trained in. Raises: InputError."""
    path = run / "labels.json"
    try:
        return TypeAdapter(LabelSpace).validate_python(runs.read_json(path))
    except ValidationError as error:
        raise InputError(
            f"{path} is no label space ({error.error_count()} errors): restore it from the training run"
        ) from error


def best_record(run: Path) -> dict[str, Any]:
    """Step and score of best.safetensors: {"step": int, "score": float | None}; the score is None for select last."""
    with safe_open(run / "checkpoints" / "best.safetensors", "pt") as file:
        return json.loads(file.metadata()["segshift"])


def describe(run: Path, space: LabelSpace, device: torch.device) -> None:
    """Write labels.json and environment.json."""
    runs.write_json(run / "labels.json", space)
    versions = {name: _version(name) for name in LIBRARIES}
    runs.write_json(run / "environment.json", {"python": platform.python_version(), "device": str(device), **versions})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def last_step(run: Path) -> int:
    """Steps done at the newest whole checkpoint; 0 where there is none."""
    return max((int(path.stem) for path in (run / "checkpoints").glob("*.state")), default=0)


def _weights(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:08d}.safetensors"


def save(run: Path, step: int, method: Method, state: dict[str, Any]) -> None:
    """Write the checkpoint of `step` and delete older ones. Raises: InputError when the disk is full."""
    path = _weights(run, step)
    _write(path, safetensors.torch.save(_tensors(method)))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _write(path.with_suffix(".state"), buffer.getvalue())
    for old in (*path.parent.glob("[0-9]*.*"), *path.parent.glob(".tmp-*")):  # .tmp-: of a run that was killed
        if old.stem != path.stem:
            old.unlink()


def save_best(run: Path, step: int, method: Method, score: float | None) -> None:
    """Write best.safetensors. Raises: InputError when the disk is full."""
    # One entry: safetensors writes several in an order that changes from call to call.
    told = {"segshift": json.dumps({"step": step, "score": score})}
    _write(run / "checkpoints" / "best.safetensors", safetensors.torch.save(_tensors(method), metadata=told))


def load(run: Path, step: int, method: Method) -> dict[str, Any]:
    """Load the checkpoint of `step` into `method`; returns its state. Raises: InputError."""
    path = _weights(run, step)
    models.load_tensors(method, models.read_tensors(path), path)
    return torch.load(path.with_suffix(".state"), map_location="cpu", weights_only=True)


def _tensors(method: Method) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}


def _write(path: Path, content: bytes) -> None:
    with runs.atomic(path) as temporary:
        temporary.write_bytes(content)

"""What a training run keeps, and how it comes back.

    RUN/config.json                    the configuration (`outputs`)
    RUN/labels.json                    the source's label space
    RUN/environment.json               versions of Python and the libraries
    RUN/metrics.jsonl                  a line a step: step, lr, every loss term, seconds; and a line a
                                       validation: step, score, validation: {set: {miou, iou: {class: value}}}
    RUN/checkpoints/best.safetensors   the method at its best step by the rule `select`, with step and score
                                       in the file's metadata
    RUN/checkpoints/best-<rule>.safetensors
                                       the same by every other rule that has a validation set
    RUN/checkpoints/00000500.safetensors and .state
                                       the method, and what continuing needs: optimizers, gradient scaler,
                                       best scores, digest of the frames; tensors, numbers and text only, read
                                       with weights_only=True

A checkpoint is whole once its .state is there, which is written last; the one before is deleted after that.
The learning rate, the samples and all random states are functions of the step number.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segshift import outputs, records, runs
from segshift.config import Select, TrainConfig
from segshift.data.labels import LabelSpace, class_set
from segshift.methods import METHODS
from segshift.methods.base import Method
from segshift.methods.spec import Setup
from segshift.networks import weights
from segshift.runs import InputError
from segshift.settings import option

FREE = ("workers", "device", "checkpoint_every", "steps", "log")
"""Fields that may change when a run is continued. More `steps` extend it: what is left follows the longer
schedule.
"""
LIBRARIES = (
    "segshift",
    "torch",
    "torchvision",
    "accelerate",
    "diffusers",
    "segmentation-models-pytorch",
    "timm",
    "peft",
    "transformers",
    "safetensors",
    "numpy",
    "pillow",
    "opencv-python-headless",
)


def method_of(config: TrainConfig, space: LabelSpace, *, begin: bool = False) -> Method:
    """The method that `config` names with its network, on the CPU. `begin`: with the weights of
    `config.from_run`.

    Raises: InputError, as `networks.build`, and when `config.from_run` is no finished run that the method can
    start from.
    """
    spec = METHODS[config.method]
    start = _start(config, spec.from_run, space) if begin and spec.from_run else None
    excluded = tuple(sorted(set(range(space.classes)) - set(class_set(config.classes, space, config.source))))
    method = spec.build(Setup(config, space, excluded, start))
    if config.gradient_checkpointing:
        method.checkpoint_gradients()
    return method


def _start(config: TrainConfig, method: str, space: LabelSpace) -> Method:
    """What `config.from_run` trained. Raises: InputError when it is no finished run of that method, network
    and classes.
    """
    run = Path(config.from_run or "")
    start, trained, theirs = load_run(run, "last")
    if trained.method != method:
        raise InputError(
            f"{run} was trained by method {trained.method}, expected {method}: name a run of {method} in "
            "--from-run"
        )
    if space.names != theirs.names:
        raise InputError(
            f"{run} was trained on the {theirs.classes} classes of '{theirs.name}' and {config.source} has "
            f"the {space.classes} of '{space.name}': name a run on the same classes, in the same order"
        )
    if config.classes != trained.classes:
        raise InputError(
            f"{run} was trained with --classes {trained.classes}, got {config.classes}: give the same"
        )
    ours, before = (replace(c.network, pretrained=False, weights=None) for c in (config, trained))
    for name, here, there in outputs.differences("network", *map(runs.to_plain, (ours, before))):
        raise InputError(f"{run} was trained with {option(name)} {there}, got {here}: give the same network")
    assert trained.steps is not None
    if last_step(run) < trained.steps:
        raise InputError(
            f"{run} is at step {last_step(run)} of {trained.steps}: continue it with its own command before "
            "another training starts from it"
        )
    return start


def rules(config: TrainConfig) -> tuple[Select, ...]:
    """The selection rules that a run can follow: those whose data it has."""
    sets: dict[Select, Any] = {
        "target": config.target,
        "source": config.validation,
        "transferred": config.transferred_validation,
        "oracle": config.oracle_validation,
    }
    return ("last", *(rule for rule, given in sets.items() if given))


def load_run(run: Path, which: Literal["best"] | Select = "best") -> tuple[Method, TrainConfig, LabelSpace]:
    """A trained method in evaluation mode on the CPU, the run's configuration, and the label space of its
    classes.

    Raises: InputError when `run` is no training run or has no such checkpoint.
    """
    config = runs.read_config(run / "config.json", TrainConfig)
    space = read_space(run)
    if which not in ("best", *rules(config)):
        raise InputError(
            f"{run} has no checkpoint '{which}', for it was trained without the data of that rule: "
            f"choose one of {', '.join(rules(config))}, or train with such a set in a new folder"
        )
    path = _weights(run, last_step(run)) if which == "last" else best_file(run, which, config.select)
    if not path.exists():
        raise InputError(
            f"no checkpoint {path}: continue the training with the same command until it has written one, or "
            "take another --checkpoint"
        )
    network = replace(config.network, pretrained=False, weights=None)  # everything comes from the checkpoint
    method = method_of(replace(config, network=network), space)
    weights.load_tensors(method, weights.read_tensors(path), path)
    return method.eval(), config, space


def read_space(run: Path) -> LabelSpace:
    """The label space that a run was trained in. Raises: InputError."""
    path = run / "labels.json"
    space = runs.read_json(path, LabelSpace)
    if not 0 < len(space.names) == len(space.colours) == len(space.ids):
        lengths = f"{len(space.names)} names, {len(space.colours)} colours and {len(space.ids)} ids"
        raise InputError(f"{path} has {lengths}, expected as many of each: restore it")
    return space


def best_record(run: Path, rule: Literal["best"] | Select = "best") -> dict[str, Any]:
    """Step and score of a rule's best checkpoint: {"step": int, "score": float | None}; None for select last.

    Raises: InputError when there is none, or when another file lies in its place.
    """
    path = best_file(run, rule, runs.read_config(run / "config.json", TrainConfig).select)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()["segshift"]
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} does not say the step it was chosen at, as the best checkpoints of a run do: restore "
            "that file, or predict with --checkpoint last"
        ) from error
    return runs.parsed(metadata.encode(), records.Chosen, f"the metadata of {path}")


def chosen_steps(run: Path) -> dict[Select, int]:
    """Steps done at the checkpoint of every selection rule that has chosen one."""
    config = runs.read_config(run / "config.json", TrainConfig)
    best = (rule for rule in rules(config)[1:] if best_file(run, rule, config.select).exists())
    steps: dict[Select, int] = {"last": last_step(run)}
    return steps | {rule: best_record(run, rule)["step"] for rule in best}


def describe(run: Path, space: LabelSpace, device: torch.device) -> None:
    """Write labels.json and environment.json."""
    runs.write_json(run / "labels.json", space)
    versions = {name: _version(name) for name in LIBRARIES}
    runs.write_json(
        run / "environment.json", {"python": platform.python_version(), "device": str(device), **versions}
    )


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def last_step(run: Path) -> int:
    """Steps done at the newest whole checkpoint; 0 where there is none."""
    return max((int(path.stem) for path in _numbered(run) if path.suffix == ".state"), default=0)


def _numbered(run: Path) -> list[Path]:
    """The files of numbered checkpoints, without temporary ones and copies under other names."""
    name = re.compile(r"[0-9]{8}\.(safetensors|state)")
    files = (run / "checkpoints").glob("*")
    return [path for path in files if name.fullmatch(path.name) and path.is_file()]


def _weights(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:08d}.safetensors"


def best_file(run: Path, rule: str, select: str = "best") -> Path:
    """best.safetensors for the run's own rule, `best-<rule>.safetensors` for the others."""
    return (
        run / "checkpoints" / ("best.safetensors" if rule in ("best", select) else f"best-{rule}.safetensors")
    )


def save(run: Path, step: int, method: Method, state: dict[str, Any]) -> None:
    """Write the checkpoint of `step` and delete older ones. Raises: InputError when the disk is full."""
    path = _weights(run, step)
    _write(path, safetensors.torch.save(_tensors(method)))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _write(path.with_suffix(".state"), buffer.getvalue())
    for old in _numbered(run):
        if old.stem < path.stem:
            old.unlink(missing_ok=True)
    for old in path.parent.glob(".tmp-*"):  # of a run that was killed
        if old.suffix in (".safetensors", ".state"):
            old.unlink(missing_ok=True)


def save_best(run: Path, step: int, method: Method, score: float | None, rule: str = "best") -> None:
    """Write the best checkpoint of a rule (`best`: the run's own). Raises: InputError when the disk is
    full."""
    # One entry: safetensors writes several in an order that changes from call to call.
    metadata = {"segshift": json.dumps({"step": step, "score": score})}
    _write(best_file(run, rule), safetensors.torch.save(_tensors(method), metadata=metadata))


def load(run: Path, step: int, method: Method) -> dict[str, Any]:
    """Load the checkpoint of `step` into `method`; returns the state given to `save`. Raises: InputError."""
    path = _weights(run, step)
    weights.load_tensors(method, weights.read_tensors(path), path)
    state = weights.read_pickled(path.with_suffix(".state"))
    try:
        optimizers = state["optimizers"]
        whole = optimizers.keys() == method.networks.keys() and state.keys() >= {"scaler", "best", "frames"}
        whole = whole and all(part.keys() >= {"state", "param_groups"} for part in optimizers.values())
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(
            f"{path.with_suffix('.state')} holds no state of this training (optimizers, scaler, best, "
            "frames): restore the file, or delete the run and train it again"
        )
    return state


def _tensors(method: Method) -> dict[str, Tensor]:
    """The method's tensors on the CPU, each in memory of its own: safetensors refuses shared memory."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in method.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return tensors


def _write(path: Path, content: bytes) -> None:
    with runs.atomic(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave it empty, with the one before deleted

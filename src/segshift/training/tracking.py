"""Trackers that follow a training, by accelerate: TensorBoard, Weights & Biases, MLflow, Trackio.

metrics.jsonl is the record. A tracker is told the same numbers, by names such as validation/source/iou/road,
and shown a few pictures where it takes some (TensorBoard, Weights & Biases).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from segshift import runs
from segshift.config import TrainConfig
from segshift.runs import InputError
from segshift.users_code import first_line

PICTURES = 4
"""Frames that are shown at every validation."""
PROJECT = "segshift"
"""What the runs of all trainings stand under; the run folder's name is a run's."""


def require(config: TrainConfig) -> None:
    """Raises: InputError when the tracker's package is missing."""
    if config.log is not None and find_spec(config.log) is None:
        raise InputError(f"--log {config.log} needs the package {config.log}: pip install {config.log}")


class Tracker:
    """One of accelerate's, which has begun."""

    def __init__(self, theirs: Any):
        self.theirs = theirs

    def log(self, line: dict[str, Any]) -> None:
        """line: of metrics.jsonl; its numbers are told."""
        values = {name: value for name, value in flat(line).items() if isinstance(value, int | float)}
        step = values.pop("step")
        self.theirs.log(values, step=step)

    def show(self, name: str, step: int, pictures: Sequence[np.ndarray]) -> None:
        """pictures: [H, W, 3] uint8, of one size."""
        more = {"dataformats": "NHWC"} if self.theirs.name == "tensorboard" else {}
        if hasattr(self.theirs, "log_images"):
            self.theirs.log_images({f"pictures/{name}": np.stack(pictures)}, step=step, **more)


@contextmanager
def following(config: TrainConfig, out: Path, start: int) -> Iterator[Tracker | None]:
    """The tracker that `config.log` names while a training goes on from step `start`; None where none is
    named. For the first process alone. Raises: InputError when it cannot begin.
    """
    if config.log is None:
        yield None
        return
    try:
        theirs = _begun(config.log, config, out, start)
    except Exception as error:  # of programs of others, on servers of others
        raise InputError(
            f"--log {config.log} cannot begin ({type(error).__name__}: {first_line(error)}): set "
            f"{config.log} up first, or leave it out"
        ) from error
    try:
        yield Tracker(theirs)
    finally:
        theirs.finish()


def _begun(name: str, config: TrainConfig, out: Path, start: int) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":  # files in the run's folder; steps after the checkpoint are told again
        theirs = kind(name, str(out), **({"purge_step": start + 1} if start else {}))
        theirs.start()
        return theirs
    options = {
        "wandb": {"name": out.name, "dir": str(out)},
        "mlflow": {"run_name": out.name},
        "trackio": {"name": out.name},
    }
    theirs = kind(PROJECT, **options[name])
    theirs.start()
    settings = flat(runs.to_plain(config)).items()
    theirs.store_init_configuration({key: str(value)[:250] for key, value in settings})  # MLflow takes 500
    return theirs


def flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by names with slashes."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{above}{name}/") if isinstance(value, dict) else {f"{above}{name}": value}
    return found

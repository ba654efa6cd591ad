"""Where a stage runs: options that change no result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field

from segshift.runs import InputError
from segshift.settings import Settings


@dataclass(frozen=True)
class RayConfig(Settings):
    """A Ray cluster."""

    prefix: ClassVar[str] = "ray."

    address: str | None = None
    """Address of a running cluster, `auto` for the one that this machine is part of; None starts one of this
    machine alone."""


@dataclass(frozen=True)
class EngineConfig(Settings):
    """What does the work. It is no part of a result, and no config.json holds it."""

    engine: Literal["local", "ray"] = "local"
    """`local`: this process. `ray`: workers on every machine of a Ray cluster, one a GPU (or a core, where
    there is none), which may come and go; the output folder is on a disk that all machines share."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine != "ray" and self.ray != RayConfig():
            raise InputError("--ray.address is of --engine ray: add that, or leave the address out")


@dataclass(frozen=True)
class SlurmConfig(Settings):
    """A job array."""

    jobs: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Tasks of the array, each with its share of the frames (transfer). 1 for stages that are one process."""
    minutes: Annotated[int, Field(ge=5, le=100_000)] = 240
    """Time of a task. One that needs longer is queued again and goes on."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """Of each task."""
    cpus: Annotated[int, Field(ge=1, le=1024)] = 8
    """Cores of each task."""
    options: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch: partition gpu account vision."""


Where = Annotated[EngineConfig, tyro.conf.arg(name="")]
"""As plain options: --engine, --ray.address."""

"""Who does what where several processes work on one stage: rank, share of the frames, and who writes.

Everything that depends on the number of processes asks this package. A new executor, which starts processes
that share a stage, is one file with a function `process()`, which returns this process's place or None, and
one line in EXECUTORS. A new engine, to which one process hands out the items of a stage, is one file with a
function `workers()`, which returns `base.Workers`, and one line in ENGINES.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from segshift.config.running import EngineConfig as EngineConfig
from segshift.config.running import SlurmConfig as SlurmConfig
from segshift.execution import local, torchrun
from segshift.execution.base import Lost as Lost
from segshift.execution.base import Process as Process
from segshift.execution.base import Workers as Workers
from segshift.execution.base import one_by_one as one_by_one
from segshift.execution.stopping import STOPPED as STOPPED
from segshift.execution.stopping import draining as draining
from segshift.runs import InputError

EXECUTORS: list[Callable[[], Process | None]] = [torchrun.process, local.process]
"""Asked in this order; the first that knows this process is its executor."""

ENGINES = {"local": "segshift.execution.local", "ray": "segshift.execution.ray"}
"""Modules by name of `--engine`, imported where they are used; what they need is the extra of that name."""


@contextmanager
def workers(config: EngineConfig, job: Any, device: str) -> Iterator[Workers]:
    """Workers with copies of `job` (`base.Workers`), until the end of the block.

    device: that the job runs on. Raises: InputError where the engine is not there.
    """
    if config.engine != "local":
        one_process(f"--engine {config.engine}")
    try:
        engine = import_module(ENGINES[config.engine])
    except ModuleNotFoundError as error:
        raise InputError(
            f"--engine {config.engine} needs {error.name}: pip install 'segshift[{config.engine}]'"
        ) from error
    found = engine.workers(config, job, device)
    try:
        yield found
    finally:
        found.close()


def submit(config: SlurmConfig, logs: Path, command: list[str]) -> list[str]:
    """Submit a segshift command with its options as a job array of Slurm; returns the ids of its tasks.

    Raises: InputError where submitit or Slurm is not there.
    """
    try:
        slurm = import_module("segshift.execution.slurm")
    except ModuleNotFoundError as error:
        raise InputError(f"launch slurm needs {error.name}: pip install 'segshift[slurm]'") from error
    return [job.job_id for job in slurm.submit(config, logs, command)]


def current() -> Process:
    """The place of this process."""
    return next(place for executor in EXECUTORS if (place := executor()) is not None)


def shard(text: str) -> tuple[int, int]:
    """(index, count): which of `count` shares of the frames this process takes.

    text: i/n of the configuration; the executor's processes divide that share further. Raises: InputError.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise InputError(
            f"--shard is '{text}': expected i/n with i from 0 to n - 1, as 0/4 to 3/4 for four processes"
        )
    place = current()
    return index * place.count + place.rank, count * place.count


def one_process(command: str, instead: str = "") -> None:
    """Raises: InputError where several processes would do the whole of a command at once."""
    place = current()
    if place.count > 1:
        raise InputError(f"{command} is one process: {instead or f'start it without {place.executor}'}")


STAGES_FIRST = (
    "start its stages one after the other on all processes, with the settings of their config.json, and "
    "then this on one, which finds them finished"
)
"""What one does with `one_process` of several stages."""


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes that are started in this block never see Ctrl-C: the one that started them ends them, and a
    Ctrl-C that comes meanwhile reaches it at the end of the block."""
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    resource_tracker.ensure_running()  # started in the block, it would unblock the signal
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))  # by way of another thread
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which new processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)

"""Who does what where several processes work on one stage: rank, share of the frames, and who writes.

Everything that depends on the number of processes asks this package. A new executor is one file with a
function
`process()`, which returns this process's place or None, and one line in EXECUTORS.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from segshift.execution import local, torchrun
from segshift.execution.base import Process as Process
from segshift.runs import InputError

EXECUTORS: list[Callable[[], Process | None]] = [torchrun.process, local.process]
"""Asked in this order; the first that knows this process is its executor."""


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

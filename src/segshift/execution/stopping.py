"""SIGTERM, by which a scheduler asks a process to end: a stage finishes the batch or step in hand first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 128 + signal.SIGTERM
"""Exit code of a stage that was asked to end: 143."""


class Request:
    """Whether a block is asked to end."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self) -> bool:
        return self.came

    def set(self) -> None:
        """Ask for it, as on behalf of another process."""
        self.came = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What SIGTERM does."""
        self.set()


@contextmanager
def draining() -> Iterator[Request]:
    """In this block SIGTERM ends nothing by itself: the block asks, by calling what it is given, finishes
    what it has in hand and ends. Then the process leaves with exit code 143, and the next start continues. A
    block within another one is asked to end when that is.

    Raises: SystemExit at the end of a block that was asked to end.
    """
    here = threading.current_thread() is threading.main_thread()  # where signals arrive
    before = signal.getsignal(signal.SIGTERM) if here else None
    outer = getattr(before, "__self__", None)
    request = outer if isinstance(outer, Request) else Request()
    if request.came:
        raise SystemExit(STOPPED)
    if here:
        signal.signal(signal.SIGTERM, request.handle)
    try:
        yield request
    finally:
        if here:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if request.came:
        raise SystemExit(STOPPED)

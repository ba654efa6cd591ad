"""One process, started by hand or as one job of an array (`--shard i/n`): its own worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from segshift.config.running import EngineConfig
from segshift.execution.base import Process


def process() -> Process:
    """The only one."""
    return Process("the command line")


class Here:
    """This process, which does the items in order."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def close(self) -> None:
        pass

    def once(self, method: str, *arguments: Any) -> Any:
        return getattr(self.job, method)(*arguments)

    def map(
        self,
        method: str,
        items: Sequence[Any],
        asked: Callable[[], bool],
        after: Sequence[Sequence[int]] = (),
    ) -> Iterator[Any]:
        yield from getattr(self.job, method)(items, asked)


def workers(config: EngineConfig, job: Any, device: str) -> Here:
    return Here(job)

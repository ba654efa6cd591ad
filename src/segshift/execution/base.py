"""What an executor tells a process, which one it is among those that work on one stage; and what an engine
gives a stage, workers that do its items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Process:
    """One of the processes that share the frames of a stage, or the batches of a training."""

    executor: str
    """What started it, as in a message to the user."""
    rank: int = 0
    """0 to count - 1."""
    count: int = 1
    local_rank: int = 0
    """The same among those of this machine: the number of its GPU."""
    local_count: int = 1
    ends_all: bool = False
    """The executor stops all processes when one ends with an exit code other than 0."""

    @property
    def first(self) -> bool:
        """Whether this process writes what all share, and shows the progress."""
        return self.rank == 0


@dataclass(frozen=True)
class Lost:
    """An item that no worker has done."""

    item: Any
    why: str
    """One sentence."""


class Workers(Protocol):
    """Workers, each with a copy of one job: an object that pickle can carry, with methods that the stage
    names."""

    def close(self) -> None:
        """No worker is used any more."""

    def once(self, method: str, *arguments: Any) -> Any:
        """What the `method` of one worker's job returns. Raises: what it raises."""

    def map(
        self,
        method: str,
        items: Sequence[Any],
        asked: Callable[[], bool],
        after: Sequence[Sequence[int]] = (),
    ) -> Iterator[Any]:
        """What `method` yields for the items, each done by one worker, until it is `asked` to end: then what
        is in hand is finished.

        method: of the job, called with some of the items and `asked`, a generator of results. after: by item,
        the indices of those that are done before, all of them smaller. Yields: results, in any order of the
        items, and a `Lost` for each item whose workers died. Raises: what `method` raises.
        """


def one_by_one(
    workers: Workers,
    method: str,
    items: Sequence[Any],
    asked: Callable[[], bool],
    parts: Callable[[Any], Iterable[Any]],
    after: Sequence[Sequence[int]] = (),
) -> Iterator[Any]:
    """What `Workers.map` yields, but the `parts` of an item whose workers died are done alone: some frame of
    it costs the workers their lives. So a `Lost` is of one part."""
    alone: list[Any] = []
    for result in workers.map(method, items, asked, after):
        if isinstance(result, Lost):
            alone += parts(result.item)
        else:
            yield result
    yield from workers.map(method, alone, asked)

"""What an executor tells a process: which one it is among those that work on one stage."""

from __future__ import annotations

from dataclasses import dataclass


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

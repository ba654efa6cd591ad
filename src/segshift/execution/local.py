"""One process, started by hand or as one job of an array (`--shard i/n`)."""

from __future__ import annotations

from segshift.execution.base import Process


def process() -> Process:
    """The only one."""
    return Process("the command line")

"""Processes that torchrun started, one a GPU: it tells each its place in environment variables."""

from __future__ import annotations

import os

from segshift.execution.base import Process


def process() -> Process | None:
    """This process's place; None when torchrun did not start it."""
    told = os.environ
    if "WORLD_SIZE" not in told:
        return None
    return Process(
        "torchrun",
        int(told.get("RANK", 0)),
        int(told["WORLD_SIZE"]),
        int(told.get("LOCAL_RANK", 0)),
        int(told.get("LOCAL_WORLD_SIZE", 1)),
        ends_all=True,
    )

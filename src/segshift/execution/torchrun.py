"""Processes that torchrun started, one a GPU: it tells each its place in environment variables."""

from __future__ import annotations

import os

from segshift.execution.base import Process


def process() -> Process | None:
    """This process's place; None when torchrun did not start it."""
    environment = os.environ
    if "WORLD_SIZE" not in environment:
        return None
    return Process(
        "torchrun",
        int(environment.get("RANK", 0)),
        int(environment["WORLD_SIZE"]),
        int(environment.get("LOCAL_RANK", 0)),
        int(environment.get("LOCAL_WORLD_SIZE", 1)),
        ends_all=True,
    )

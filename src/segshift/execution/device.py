"""Where tensors live."""

from __future__ import annotations

import torch

from segshift import execution
from segshift.runs import InputError


def pick(name: str) -> torch.device:
    """The device `name`: auto, cuda, mps or cpu. `auto` is CUDA, then MPS, then the CPU; of several GPUs each
    process takes its own.

    Raises: InputError when torch does not find it.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind in there if there[kind]) if name == "auto" else name
    if not there[kind]:
        found = " or ".join(kind for kind in there if there[kind])
        raise InputError(f"torch finds no device '{kind}' here: give --device auto or {found}")
    return torch.device(kind, execution.current().local_rank) if kind == "cuda" else torch.device(kind)

"""Where tensors live."""

from __future__ import annotations

import os

import torch

from segshift.runs import InputError


def pick(name: str) -> torch.device:
    """The device `name`; `auto` is CUDA (this process's own under torchrun), then MPS, then the CPU.

    Raises: InputError when torch does not find it.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind in there if there[kind]) if name == "auto" else name
    if not there[kind]:
        raise InputError(f"torch finds no device '{kind}' here: choose auto or {' or '.join(k for k in there if there[k])}")
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)

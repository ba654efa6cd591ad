"""Models larger than the GPU: what is not in use waits on the CPU. No picture changes by it.

| way | on the GPU |
|---|---|
| none | every part |
| parts | the VAE, and either one text encoder (while prompts are read) or the networks of the walk |
| layers | the VAE, and of every other part the layers that compute at the moment; slow |

parts uses accelerate's hooks, layers diffusers' group offloading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from torch import nn

from segshift.runs import InputError

WAYS = ("none", "parts", "layers")
STAYS = "vae"
"""The part that is always on the GPU: it is small, and used before and after every walk."""
CPU = torch.device("cpu")


def groups(parts: Mapping[str, Any]) -> list[list[str]]:
    """Names of the parts that are in use together, but for the VAE."""
    texts = [[name] for name in parts if name.startswith("text_encoder")]
    return [*texts, [name for name in parts if name != STAYS and [name] not in texts]]


def held(sizes: Mapping[str, int], way: str) -> int:
    """What of the sizes by part is on the GPU at once; with `layers` that of a layer comes on top."""
    if way == "none":
        return sum(sizes.values())
    largest = max(sum(sizes[name] for name in group) for group in groups(sizes))
    return sizes[STAYS] + (largest if way == "parts" else 0)


class _Swap(ModelHook):
    """Before a network runs, its group comes to the device and the others leave it."""

    def __init__(self, own: list[nn.Module], others: list[nn.Module], device: torch.device) -> None:
        self.own, self.others, self.device = own, others, device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for other in self.others:
            other.to(CPU)
        for own in self.own:
            own.to(self.device)
        return args, kwargs


def place(name: str, parts: Mapping[str, nn.Module], device: torch.device, way: str) -> None:
    """Bring the parts of the model `name` to the device, or see to it that they come there when they run.

    Raises: InputError where the device has too little memory for them, with what would fit.
    """
    sizes = {part: _bytes(module) for part, module in parts.items()}
    free = room(device)
    if free is not None and held(sizes, way) > free:
        raise _too_large(name, sizes, device, way, free)
    try:
        if way == "none":
            for module in parts.values():
                module.to(device)
            return
        parts[STAYS].to(device)
        if way == "layers":
            for part, module in parts.items():
                if part != STAYS:
                    apply_group_offloading(
                        module, device, CPU, offload_type="leaf_level", use_stream=device.type == "cuda"
                    )
            return
        together = groups(parts)
        for group in together:
            own = [parts[part] for part in group]
            others = [parts[part] for other in together if other is not group for part in other]
            for module in own:
                add_hook_to_module(module, _Swap(own, others, device))
    except torch.OutOfMemoryError as error:
        raise _too_large(name, sizes, device, way, None) from error


def room(device: torch.device) -> int | None:
    """Free bytes of a GPU; None where nobody tells."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _too_large(
    name: str, sizes: Mapping[str, int], device: torch.device, way: str, free: int | None
) -> InputError:
    there = "less" if free is None else f"{free / 2**30:.1f} GiB"
    smaller = [
        f"--diffusion.offload {other} ({held(sizes, other) / 2**30:.1f} GiB)"
        for other in WAYS[WAYS.index(way) + 1 :]
    ]
    return InputError(
        f"the weights of {name} take {held(sizes, way) / 2**30:.1f} GiB on {device}, which has {there} free: "
        f"take {', '.join(smaller)}{' or ' if smaller else ''}a smaller --diffusion.dtype"
    )

"""Low-rank adapters on a frozen encoder, by peft (extra `adapters`).

    W        weight of a linear layer of a transformer's block, frozen      [out, in]
    A, B     its adapter of rank r                                          [r, in], [out, r]
    layer    x -> (W + B A) x + b

lora: A random, B zero, both trained (Hu et al., "LoRA", ICLR 2022). mica: A zero and trained; B frozen, the
left singular vectors of W's r smallest singular values (peft's MiCA, arXiv 2604.01694). Such minor components
are what SoMA trains (Yun et al., CVPR 2025). B A counts once, whatever the rank (ours).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from segshift.config import NetworkConfig
from segshift.runs import InputError
from segshift.users_code import first_line

M = TypeVar("M", bound=nn.Module)

LAYERS = ["qkv", "attn.proj", "fc1", "fc2"]
"""Ends of the names of the linear layers that are adapted."""
BASE, A, B = ".base_layer.", ".lora_A.default.", ".lora_B.default."
"""What peft puts into the names of tensors."""


def adapt(encoder: nn.Module | None, config: NetworkConfig) -> None:
    """Freeze the encoder and put adapters into it.

    Raises: InputError where peft is missing, and for an encoder without such layers or with narrower ones.
    """
    option = f"--network.adapter {config.adapter}"
    found = linear_layers(encoder, LAYERS)
    if encoder is None or not found:
        raise InputError(
            f"{option} adapts the layers {', '.join(LAYERS)} of a transformer's blocks, and the encoder has "
            "none: take --network.name vit, or leave it out"
        )
    start: Any = "mica" if config.adapter == "mica" else True
    try:
        inject(encoder, found, config.rank, option, start)
    except ValueError as error:
        raise InputError(
            f"--network.rank {config.rank} does not fit the encoder ({first_line(error)}): take a smaller one"
        ) from error


def linear_layers(module: nn.Module | None, ends: Sequence[str]) -> list[str]:
    """Names of the module's linear layers that end like one of `ends`."""
    parts = {} if module is None else dict(module.named_modules())
    dotted = tuple(f".{end}" for end in ends)
    return [name for name, part in parts.items() if isinstance(part, nn.Linear) and name.endswith(dotted)]


def inject(module: nn.Module, layers: list[str], rank: int, option: str, start: Any = True) -> None:
    """Freeze the module and put adapters into the linear layers of these names.

    option: that asked for it. start: how they begin, as in peft. Raises: InputError where peft is missing,
    ValueError as peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(f"{option} needs peft: pip install 'segshift[adapters]'") from error
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights=start)
    inject_adapter_in_model(settings, module)


def merged(module: M) -> M:
    """The module with W + B A in place of every adapted layer; itself where it has none, else a copy."""
    if "peft" not in sys.modules:
        return module
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(part, LoraLayer) for part in module.modules()):
        return module
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, layer.get_base_layer())
    return module


def merged_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same for the tensors of a file, by name."""
    found = {}
    for name, tensor in tensors.items():
        plain = name.replace(BASE, ".")
        a, b = (tensors.get(name.replace(BASE, part)) for part in (A, B))
        if BASE in name and a is not None and b is not None:
            tensor = tensor + b @ a
        if A not in name and B not in name:
            found[plain] = tensor
    return found

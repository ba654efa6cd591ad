"""The user's own networks, `<module>:<factory>`: the factory is called with `classes=<int>`."""

from __future__ import annotations

import inspect

from torch import nn

from segshift.config import NetworkConfig
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError
from segshift.users_code import first_line, imported, users_code


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """The factory decides on weights: `pretrained` says nothing to it. Raises: InputError."""
    network = _made(config.name, classes)
    layer = "encoder" if isinstance(getattr(network, "encoder", None), nn.Module) else None
    return Segmenter(network, classes, config.feature_layer or layer)


def _made(name: str, classes: int) -> nn.Module:
    factory, name, _ = imported("network", name)
    call = f"{name.rpartition(':')[2]}(classes={classes})"
    try:
        inspect.signature(factory).bind(classes=classes)
    except ValueError:
        pass  # written in C, it has none to look at
    except TypeError as error:
        raise InputError(
            f"network '{name}' cannot be called as {call} ({first_line(error)}): "
            "give it an argument `classes`, and defaults for all others"
        ) from error
    expected = f"make {call} return a network"
    with users_code(f"network '{name}' fails when it is built", expected):
        network = factory(classes=classes)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"network '{name}' made a {type(network).__name__}, expected a torch.nn.Module from {call}"
        )
    return network

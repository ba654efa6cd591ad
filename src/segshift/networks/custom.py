"""The user's own networks, `<module>:<factory>`: the factory is called with classes=<int>."""

from __future__ import annotations

import importlib
import inspect
import os
import sys

from torch import nn

from segshift.config import NetworkConfig
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError
from segshift.users_code import first_line, users_code


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """The factory decides on weights: `pretrained` says nothing to it. Raises: InputError."""
    network = _imported(config.name, classes)
    layer = "encoder" if isinstance(getattr(network, "encoder", None), nn.Module) else None
    return Segmenter(network, classes, config.feature_layer or layer)


def _imported(name: str, classes: int) -> nn.Module:
    module_name, _, factory_name = name.partition(":")
    names = [*module_name.split("."), factory_name]
    if module_name.endswith(".py") or not all(part.isidentifier() for part in names):
        guess = module_name.removeprefix("./").removesuffix(".py").replace("/", ".")
        guess = guess if all(part.isidentifier() for part in guess.split(".")) else "mynet"
        factory_name = factory_name if factory_name.isidentifier() else "build"
        raise InputError(
            f"network '{name}' is no <module>:<factory>: write {guess}:{factory_name}, with dots for folders "
            "and without .py, seen from the current folder"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # the user's file lies where the command is started
    expected = f"expected <module>:<factory>, importable from {here} or installed"
    with users_code(f"cannot import network '{name}'", expected):
        factory = getattr(importlib.import_module(module_name), factory_name)
    try:
        inspect.signature(factory).bind(classes=classes)
    except ValueError:
        pass  # written in C, it has none to look at
    except TypeError as error:
        raise InputError(
            f"network '{name}' cannot be called as {factory_name}(classes={classes}) ({first_line(error)}): "
            "give it an argument `classes`, and defaults for all others"
        ) from error
    expected = f"make {factory_name}(classes={classes}) return a network"
    with users_code(f"network '{name}' fails when it is built", expected):
        network = factory(classes=classes)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"network '{name}' made a {type(network).__name__}, expected a torch.nn.Module from "
            f"{factory_name}(classes={classes})"
        )
    return network

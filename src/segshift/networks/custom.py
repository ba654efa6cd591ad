"""The user's own networks, `module:factory`: the factory is called with `classes=<int>`.

It returns a `torch.nn.Module`, or a black box: anything else that can be called, such as a function around
an ONNX session or a tflite interpreter. A black box only predicts, with `--run module:factory`. It is called
with one picture and returns what it sees there:

    image     [H, W, 3] uint8 RGB, at --size or at its own size
    returns   scores [C, h, w], floating-point logits (of probabilities their logarithm), or train ids [h, w],
              integers in 0 to C - 1, which stand for one-hot scores: they are enough for every command

at any size h, w, which is stretched to the picture's. With train ids the network is sure of every pixel, so
its confidence and uncertainty say nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segshift.config import NetworkConfig
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError
from segshift.users_code import first_line, imported, users_code

Function = Callable[[np.ndarray], np.ndarray]
IMPOSSIBLE = -1e4
"""Logit of the classes that a train id is not: the softmax is 0 there, and resizing keeps it finite."""


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """The factory decides on weights: `pretrained` says nothing to it. Raises: InputError."""
    made, name, file = _made(config.name, classes)
    if not isinstance(made, nn.Module):
        return BlackBox(name, file, made, classes)
    layer = "encoder" if isinstance(getattr(made, "encoder", None), nn.Module) else None
    return Segmenter(made, classes, config.feature_layer or layer)


class BlackBox(Segmenter):
    """A function that only predicts behind the interface: pictures reach it as they are."""

    def __init__(self, name: str, file: Path | None, function: Function, classes: int):
        """name: module:factory, which lies in `file`. Raises: InputError when it does not predict `classes`
        classes."""
        super().__init__(_Call(name, function, classes), classes, None, stride=1)
        self.called, self.file = name, file

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def require_gradients(self) -> None:
        raise InputError(
            f"network '{self.called}' only predicts and cannot be trained: give it to predict and estimate "
            "as --run, or make its factory return a torch.nn.Module"
        )


class _Call(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to logits [B, C, H, W], by a function that takes one picture a call."""

    def __init__(self, name: str, function: Function, classes: int):
        super().__init__()
        self.name, self.function, self.classes = name, function, classes

    def forward(self, images: Tensor) -> Tensor:
        pictures = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        logits = [
            F.interpolate(self._one(picture)[None], images.shape[2:], mode="bilinear", align_corners=False)
            for picture in pictures
        ]
        return torch.cat(logits).to(images.device)

    def _one(self, picture: np.ndarray) -> Tensor:
        """Logits [C, h, w] of a picture [H, W, 3]. Raises: InputError for what is neither scores nor ids."""
        shape = f"a picture of {picture.shape[0]}x{picture.shape[1]}"
        with users_code(f"network '{self.name}' fails on {shape}", "expected one that takes any RGB picture"):
            found = np.asarray(self.function(np.ascontiguousarray(picture)))
        if found.dtype.kind == "f" and found.ndim == 3 and len(found) == self.classes and found.size:
            return torch.from_numpy(found.astype(np.float32))
        if found.dtype.kind not in "iu" or found.ndim != 2 or not found.size:
            raise InputError(
                f"network '{self.name}' returned {found.dtype} {list(found.shape)} for {shape}: return "
                f"scores [{self.classes}, h, w] in floating point, or train ids [h, w] as integers"
            )
        if found.min() < 0 or found.max() >= self.classes:
            raise InputError(
                f"network '{self.name}' returned train ids {found.min()} to {found.max()}, expected 0 to "
                f"{self.classes - 1}: map its classes to those of the data set"
            )
        one_hot = F.one_hot(torch.from_numpy(found.astype(np.int64)), self.classes).permute(2, 0, 1)
        return IMPOSSIBLE * (1 - one_hot.float())


def _made(name: str, classes: int) -> tuple[Any, str, Path | None]:
    """What the factory makes, a module or a function; module:factory, and the module's file."""
    factory, name, file = imported("network", name)
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
    if not callable(network):
        raise InputError(
            f"network '{name}' made a {type(network).__name__}, expected a torch.nn.Module from {call}, or a "
            "function that takes a picture"
        )
    return network, name, file

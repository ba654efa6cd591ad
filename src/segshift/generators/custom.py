"""The user's own generator, `module:factory`: a renderer, a filter, a network of any kind.

    segshift transfer OUT --source ... --to fog --generator weather:build

`factory()` returns what is called once a picture, as `made(image, layout, domain, seed)`:

    image    [h, w, 3] uint8, at its own size, or at --short-side
    layout   [h, w] uint8, train ids with 255 for void, where `made.needs_layouts` is true; else None
    domain   `slug`, `prompt` and `strength` of the target domain
    seed     0 to 2^32 - 1, a number of the frame's own: a function of --seed, frame id and domain

and returns the picture, [h, w, 3] uint8. A call that raises fails its frame, and the others go on. Where the
picture is a function of image, layout, domain and seed, neither batch size nor order nor the number of
processes changes a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from segshift.config import TransferConfig
from segshift.data import transforms
from segshift.execution.device import pick
from segshift.generators.base import (
    Domain,
    FrameError,
    Generator,
    Source,
    file_hash,
    resize,
    working_size,
)
from segshift.runs import InputError
from segshift.users_code import described, imported, users_code

Function = Callable[[np.ndarray, np.ndarray | None, Domain, int], np.ndarray]
"""At the working size."""


class Custom(Generator):
    """A user's function as a generator."""

    def __init__(self, name: str, function: Function, hashes: dict[str, str], short_side: int | None) -> None:
        """name: module:factory. short_side: in pixels; None leaves images as they are."""
        self.name, self.function, self.hashes, self.short_side = name, function, hashes, short_side
        self.device = pick("auto")
        self.needs_layouts = bool(getattr(function, "needs_layouts", False))

    def size(self, height: int, width: int) -> tuple[int, int]:
        return (height, width) if self.short_side is None else working_size(height, width, self.short_side, 1)

    def prepare(self, sources: Sequence[Source], rows: int) -> list[Source]:
        return [self._at_size(source) for source in sources]

    def _at_size(self, source: Source) -> Source:
        size = self.size(*source.image.shape[:2])
        layout = source.label if self.needs_layouts else None
        if layout is not None:
            layout = cv2.resize(layout, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return replace(source, image=self.reconstruct(source.image), label=layout)

    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        size = self.size(*image.shape[:2])
        return image if size == image.shape[:2] else resize(image, size)

    def generate(
        self, batch: list[Source], index: Sequence[int], domain: Domain, seeds: Sequence[int]
    ) -> np.ndarray:
        return np.stack([self._one(batch[i], domain, seed) for i, seed in zip(index, seeds, strict=True)])

    def _one(self, source: Source, domain: Domain, seed: int) -> np.ndarray:
        own = transforms.key_seed(seed, source.id, domain.slug) % 2**32
        # What is written into them stays there
        layout = None if source.label is None else source.label.copy()
        try:
            picture = self.function(source.image.copy(), layout, domain, own)
        except torch.OutOfMemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise FrameError(
                f"generator '{self.name}' fails on {source.id} ({described(error)}): mend it there"
            ) from error
        expected = source.image.shape
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape != expected:
            raise FrameError(
                f"generator '{self.name}' made {_shown(picture)} of {source.id}: expected a NumPy array of "
                f"uint8 {list(expected)}"
            )
        return picture


def load(config: TransferConfig) -> Custom:
    """The generator of `config.generator`, module:factory.

    Raises: InputError when it cannot be imported or built, or is nothing that can be called.
    """
    factory, name, file = imported("generator", config.generator or "")
    call = f"{name.rpartition(':')[2]}()"
    with users_code(
        f"generator '{name}' fails when it is built",
        f"make {call} return what turns an image into a picture",
    ):
        function = factory()
    if not callable(function):
        raise InputError(
            f"generator '{name}' made a {type(function).__name__}: make {call} return what is called as "
            "(image, layout, domain, seed)"
        )
    return Custom(name, function, {"module": file_hash(file)} if file else {}, config.short_side)


def _shown(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__}"
    finite = value.dtype.kind != "f" or bool(np.isfinite(value).all())
    return f"an array of {value.dtype} {list(value.shape)}" + ("" if finite else ", not finite,")

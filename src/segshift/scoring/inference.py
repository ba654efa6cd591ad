"""Inference: images to logits and classes, the same way for predictions, validation and the gate."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segshift.data import transforms
from segshift.methods.base import Method
from segshift.runs import InputError

A = TypeVar("A")
B = TypeVar("B")

_log = logging.getLogger(__name__)

AHEAD = 2
"""Batches that are read while one is computed."""


@torch.inference_mode()
def infer(
    method: Method,
    images: Tensor,
    seeds: Sequence[int] | None = None,
    *,
    window: transforms.Size | None = None,
    uncertainty: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Images [B, 3, H, W] uint8 to logits [B, C, H, W] float32 and maps [B, H, W] in [0, 1] by name: the
    confidence, which is the largest softmax probability, and what `uncertainty` asks for.

    method: in evaluation mode. seeds: of what it draws, one an image. window: height and width of windows
    that overlap by half, averaged where they do; None takes the whole images. Where memory does not suffice
    for all images, they go in halves. Raises: torch.OutOfMemoryError where it does not for one; InputError
    for logits that are not finite.
    """
    try:
        return _sliding(method, images, seeds, window, uncertainty)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    # outside the handler, which keeps the tensors of the failed batch alive
    half = len(images) // 2
    _log.warning("out of memory with %d images at once: going on in halves, which is slower", len(images))
    parts = [
        infer(method, images[part], seeds and seeds[part], window=window, uncertainty=uncertainty)
        for part in (slice(half), slice(half, None))
    ]
    logits, maps = zip(*parts, strict=True)
    return torch.cat(logits), {name: torch.cat([one[name] for one in maps]) for name in maps[0]}


@torch.inference_mode()
def classes(logits: Tensor, size: transforms.Size) -> np.ndarray:
    """Logits [B, C, h, w] to train ids [B, H, W] uint8 at `size`: resized bilinearly before the argmax."""
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits.argmax(1).to(torch.uint8).cpu().numpy()


def read_batches(
    read: Callable[[A], tuple[Tensor, B] | None], groups: Iterable[Iterable[A]], count: int
) -> Iterator[tuple[Tensor, list[B]]]:
    """Images [B, 3, H, W] of up to `count` neighbours of one size in one of the groups, and what `read` gives
    with each.

    read: called in threads, ahead of use; None leaves an item out. Raises: what it raises.
    """
    images: list[Tensor] = []
    others: list[B] = []
    begun = 0
    items = ((number, item) for number, group in enumerate(groups) for item in group)
    for number, found in _ahead(lambda one: (one[0], read(one[1])), items, AHEAD * count):
        if found is None:
            continue
        image, other = found
        full = len(images) == count or number != begun
        if images and (full or image.shape != images[0].shape):
            yield torch.stack(images), others
            images, others = [], []
        begun = number
        images.append(image)
        others.append(other)
    if images:
        yield torch.stack(images), others


def _ahead(function: Callable[[A], B], items: Iterable[A], count: int) -> Iterator[B]:
    """`function` over `items` in order, at most `count` results waiting: pictures do not pile up in
    memory."""
    waiting: deque = deque()
    with ThreadPoolExecutor() as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _sliding(
    method: Method,
    images: Tensor,
    seeds: Sequence[int] | None,
    window: transforms.Size | None,
    uncertainty: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`_scores` of windows, averaged; of the whole images without a window."""
    if window is None:
        return _scores(method, images, seeds, uncertainty)
    size = tuple(images.shape[-2:])
    extent = [min(w, full) for w, full in zip(window, size, strict=True)]
    starts = [[*range(0, full - w, max(1, w // 2)), full - w] for w, full in zip(extent, size, strict=True)]
    sums: dict[str, Tensor] = {}
    count = torch.zeros(size, device=images.device)
    for top, left in product(*starts):
        here = (..., slice(top, top + extent[0]), slice(left, left + extent[1]))
        own = seeds and [transforms.key_seed(seed, top, left) for seed in seeds]
        logits, maps = _scores(method, images[here], own, uncertainty)
        for name, value in {"logits": logits, **maps}.items():
            total = sums.setdefault(name, torch.zeros((*value.shape[:-2], *size), device=value.device))
            total[here] += value
        count[here] += 1
    return sums.pop("logits") / count, {name: total / count for name, total in sums.items()}


def _scores(
    method: Method, images: Tensor, seeds: Sequence[int] | None, uncertainty: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The method's logits and maps of whole images. Raises: InputError for logits that are not finite."""
    x = images.float() / 255
    logits, maps = (
        method.predict_with_uncertainty(x, seeds) if uncertainty else (method.predict(x, seeds), {})
    )
    require_finite(logits)
    # Finite: bilinear resizing of -inf gives nan, which argmax takes for the largest.
    logits = logits.float().clamp(min=-1e9)
    return logits, {"confidence": logits.softmax(1).amax(1), **maps}


def require_finite(logits: Tensor) -> None:
    """Raises: InputError when the largest of some pixel's logits [B, C, H, W] is not finite.

    -inf is right for classes outside the class set, but not for all classes of a pixel.
    """
    if not logits.amax(1).isfinite().all():
        raise InputError(
            "the network's logits are not finite, though its weights are: predict with another checkpoint, "
            "or train again with a lower --lr"
        )

"""A generator that knows nothing of the target: what a training gains from a second picture by itself.

    cd benchmarks; segshift transfer OUT --source cityscapes:transferred/night:train --to night \
        --generator noise:build

Each picture becomes Gaussian noise with its own mean and deviation in each channel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segshift.generators import Domain


def noise(image: np.ndarray, layout: np.ndarray | None, domain: Domain, seed: int) -> np.ndarray:
    """An image [h, w, 3] uint8 to noise of its size; a function of its arguments."""
    drawn = np.random.default_rng(seed).standard_normal(image.shape)
    return (image.mean((0, 1)) + image.std((0, 1)) * drawn).clip(0, 255).round().astype(np.uint8)


def build() -> Callable[[np.ndarray, np.ndarray | None, Domain, int], np.ndarray]:
    """The generator."""
    return noise

"""A generator that cannot be better: the town's own rendering of the same street in the target's weather.

    cd benchmarks; segshift transfer OUT --source cityscapes:town/cityscapes:train --to night \
        --generator truth:build

What ZoDi gains from its pictures is what a generator without a fault would give it. It knows the frames
of the default town's cityscapes/train, by their pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segshift.config import TownConfig
from segshift.generators import Domain
from segshift.town import scenes, weather

TOWN = TownConfig()


def build() -> Callable[[np.ndarray, np.ndarray | None, Domain, int], np.ndarray]:
    """The generator. It draws every street once."""
    known = {}
    for i in range(TOWN.source_train):  # the scenes of the first seed and part (segshift.town.writer)
        layers = scenes.draw(scenes.BENCHMARK, i, TOWN.height, TOWN.width)
        known[weather.render(layers, ("clear",), 0).tobytes()] = layers

    def true(image: np.ndarray, layout: np.ndarray | None, domain: Domain, seed: int) -> np.ndarray:
        return weather.render(known[image.tobytes()], (domain.slug,), 0)

    return true

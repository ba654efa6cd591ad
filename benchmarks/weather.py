"""Weather by classical filters (albumentations): a generator without a network, to compare the diffusion
model with.

    cd benchmarks; segshift transfer OUT --source ... --to fog rain snow night game --generator weather:build

The prompt's words choose the filters, several one after the other ("driving at night in the rain"); words of
fair weather leave the image as it is. The strength of a domain is the filter's amount.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version

import albumentations as A

from segshift.generators import Domain

CLEAR = ("day", "daylight", "clear", "sunny")


def fog(strength: float) -> A.BasicTransform:
    return A.RandomFog(fog_coef_range=(0.8 * strength, strength), alpha_coef=0.1, p=1)


def rain(strength: float) -> A.BasicTransform:
    kind = "heavy" if strength > 0.8 else "default"
    return A.RandomRain(brightness_coefficient=1 - 0.4 * strength, blur_value=3, rain_type=kind, p=1)


def snow(strength: float) -> A.BasicTransform:
    return A.RandomSnow(snow_point_range=(0.5 * strength, 0.8 * strength), brightness_coeff=1 + strength, p=1)


class Darken(A.ImageOnlyTransform):
    """A curve that takes darks down most and blue least, another one for each image."""

    def __init__(self, strength: float):
        super().__init__(p=1)
        self.strength = strength

    def get_params(self) -> dict[str, float]:
        draw = self.py_random.uniform
        return {
            "gamma": 1 + draw(0, 1.1) * self.strength,
            "loss": draw(0.2, 0.9) * self.strength,
            "tint": draw(0, 0.3) * self.strength,
        }

    def apply(self, img: np.ndarray, gamma: float, loss: float, tint: float, **_: object) -> np.ndarray:
        level = 255 * (1 - loss) * np.linspace(0, 1, 256) ** gamma
        curves = [level * (1 - tint * share) for share in (1, 0.7, 0)]
        return cv2.LUT(img, np.stack(curves, 1).round().astype(np.uint8)[None])


def night(strength: float) -> A.BasicTransform:
    """Darker by a random curve, and noise."""
    return A.Compose([Darken(strength), A.GaussNoise((0.0, 0.05 * strength), p=1)])


def game(strength: float) -> A.BasicTransform:
    """Strong colours in few steps."""
    bits = 6 if strength < 0.5 else 5
    return A.Compose(
        [A.HueSaturationValue(0, (round(60 * strength),) * 2, 0, p=1), A.Posterize((bits, bits), p=1)]
    )


FILTERS: dict[str, Callable[[float], A.BasicTransform]] = {
    "fog": fog,
    "rain": rain,
    "snow": snow,
    "night": night,
    "game": game,
}


def filters(prompt: str) -> list[Callable[[float], A.BasicTransform]]:
    """Those that a prompt names. Raises: ValueError for a prompt that names none, and no fair weather."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    found = [one for name, one in FILTERS.items() if name in words]
    if not found and not words & set(CLEAR):
        raise ValueError(
            f"no weather in '{prompt}': name some of {', '.join(FILTERS)}, or one of {', '.join(CLEAR)}"
        )
    return found


def weather(image: np.ndarray, layout: np.ndarray | None, domain: Domain, seed: int) -> np.ndarray:
    """An image [h, w, 3] uint8 in the domain's weather; a function of its arguments."""
    made = A.Compose([one(domain.strength) for one in filters(domain.prompt)], seed=seed)
    return made(image=image)["image"]


def build() -> Callable[[np.ndarray, np.ndarray | None, Domain, int], np.ndarray]:
    """The generator."""
    return weather

"""What the embedded prior is trained on: scenes of another town than the benchmark's, and captions (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from segshift.config import PriorConfig
from segshift.execution import starting_workers
from segshift.records import read_array
from segshift.runs import atomic, progress
from segshift.town import scenes, weather

Conditions = tuple[str, ...]

# Captions: a condition alone, and how it is said when another one is named before it.
PHRASES: dict[str, tuple[str, ...]] = {
    "clear": ("in daylight", "by day", "on a clear day", "in the sun", "in clear weather"),
    "night": ("at night", "in the dark", "by night", "after dark"),
    "fog": ("in fog", "in the fog", "in dense fog", "in mist"),
    "rain": ("under rain", "in rain", "in the rain", "on a rainy day"),
    "snow": ("in snow", "in the snow", "in winter snow", "on a snowy day"),
    "game": ("in a game", "in a video game", "in a computer game", "in a game engine"),
}
SUBJECTS = ("driving", "driving", "driving", "a street", "a town street", "a photo of a street", "a city")
GOOD, BAD = ", best quality", "lower quality, worst quality"

MIXES: tuple[Conditions, ...] = (
    ("clear",),
    ("night",),
    ("fog",),
    ("rain",),
    ("snow",),
    ("game",),
    ("night", "rain"),
    ("night", "snow"),
    ("night", "fog"),
    ("rain", "fog"),
    ("snow", "fog"),
)
MIX_SHARE = (0.16, 0.2, 0.13, 0.15, 0.13, 0.13, 0.02, 0.02, 0.02, 0.02, 0.02)
OTHER_WORDS = "through of with and by no heavy light dark bright wet storm sunset dawn dusk"
_TEXT = " ".join(
    [*(words for phrases in PHRASES.values() for words in phrases), *SUBJECTS, GOOD, BAD, OTHER_WORDS]
)
WORDS = sorted(set(_TEXT.replace(",", " ").split()))


def caption(conditions: Conditions, low_quality: bool, rng: np.random.Generator) -> str:
    """A sentence that names the conditions, in the words of `PHRASES`."""
    if low_quality and rng.random() < 0.5:
        return BAD
    order = list(rng.permutation(len(conditions)))
    text = " ".join([str(rng.choice(SUBJECTS)), *(str(rng.choice(PHRASES[conditions[i]])) for i in order)])
    if low_quality:
        return f"{text}, {BAD}"
    return text + GOOD if rng.random() < 0.7 else text


def _render(job: tuple[int, int, int, int]) -> tuple[int, np.ndarray, np.ndarray]:
    seed, index, height, width = job
    rng = np.random.default_rng([seed, index])
    mix = MIXES[rng.choice(len(MIXES), p=MIX_SHARE)]
    layers = scenes.draw(scenes.PRIOR, index, height, width)
    return MIXES.index(mix), weather.render(layers, mix, index), layers.label_at_size()


def _drawn(
    jobs: list[tuple[int, int, int, int]], workers: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """What `_render` makes of the jobs, in order, by as many processes; 1 is this one."""
    if workers == 1:
        yield from map(_render, jobs)
        return
    with ProcessPoolExecutor(workers or None, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        with starting_workers():
            drawn = pool.map(_render, jobs, chunksize=16)
        yield from drawn


def draw_data(config: PriorConfig, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [N,H,W,3] uint8, labels [N,H,W] uint8 and mixes [N], drawn once and kept as memory maps in
    `folder`. Raises: InputError for files of another shape there.
    """
    n, h, w = config.scenes, config.height, config.width
    paths = [folder / f"{name}.npy" for name in ("images", "labels", "mixes")]
    kinds = ((np.uint8, (n, h, w, 3)), (np.uint8, (n, h, w)), (np.int64, (n,)))
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        arrays = [np.empty(shape, dtype) for dtype, shape in kinds]
        images, labels, mixes = arrays
        jobs = [(config.seed, i, h, w) for i in range(n)]
        with progress("drawing", n) as bar:
            for i, (mix, image, label) in enumerate(_drawn(jobs, config.workers)):
                mixes[i], images[i], labels[i] = mix, image, label
                bar.advance()
        for path, array in zip(paths, arrays, strict=True):
            with atomic(path) as temporary:
                np.save(temporary, array)
    images, labels, mixes = (read_array(path, *kind) for path, kind in zip(paths, kinds, strict=True))
    return images, labels, mixes


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What "lower quality, worst quality" means here: blurred, noisy, washed out. uint8 [H,W,3] in and
    out."""
    blurred = cv2.GaussianBlur(image, (0, 0), rng.uniform(1.0, 2.5)).astype(np.float32)
    contrast = rng.uniform(0.5, 0.9)
    noisy = (
        contrast * blurred + (1 - contrast) * blurred.mean() + rng.normal(0, rng.uniform(2, 12), image.shape)
    )
    return noisy.clip(0, 255).astype(np.uint8)

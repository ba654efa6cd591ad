"""Does the embedded prior draw what the words name: conditions, their combinations, and the negative prompt.

    python benchmarks/prompts.py

Streets of the benchmark's town are transferred by a sentence each, and compared with true renderings of the
same streets under every condition, in Lab colours of 8 x 16 cells (what a condition changes first; what an
object looks like hardly counts). `named`: share of frames that are nearest to the rendering the sentence
names, of eleven. `distance`: to that rendering, beside the source's own. `sharpness`: deviation of the
Laplacian over that of the true rendering, with the negative prompt and with an empty one.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from segshift import runs
from segshift.config import DiffusionConfig
from segshift.data.labels import CITYSCAPES
from segshift.generators import stable_diffusion
from segshift.generators.base import DiffusionFamily
from segshift.methods.zodi import transfer as zodi
from segshift.town import scenes, weather
from segshift.town.prior_data import MIXES

FIRST = 910_000
"""Scenes of the benchmark's town beyond those that the writer and the pictures use."""
SENTENCES = {
    "driving at night": ("night",),
    "driving in fog": ("fog",),
    "driving under rain": ("rain",),
    "driving in snow": ("snow",),
    "driving in a game": ("game",),
    "driving at night in snow": ("night", "snow"),
    "driving at night in the rain": ("night", "rain"),
    "driving at night in fog": ("night", "fog"),
    "driving in the rain in fog": ("rain", "fog"),
    "driving in snow in fog": ("snow", "fog"),
}


@dataclass(frozen=True)
class Measure:
    """What is measured."""

    scenes: int = 20
    model: str = "town"
    """`town`, or a model folder."""


def cells(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 to Lab means [8, 16, 3]."""
    return cv2.resize(
        cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32), (16, 8), interpolation=cv2.INTER_AREA
    )


def distance(image: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of the cells, in Lab levels of 255."""
    return float(np.abs(cells(image) - cells(other)).mean())


def sharpness(image: np.ndarray) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), cv2.CV_32F).std())


@torch.inference_mode()
def transferred(
    model: DiffusionFamily,
    images: list[np.ndarray],
    labels: list[np.ndarray],
    sentence: str,
    strength: float,
    negative: str,
) -> list[np.ndarray]:
    """The images by one sentence, at the model's own settings."""
    d = model.defaults
    sampling = zodi.Sampling(strength, d.steps, d.guidance, d.eta)
    text, against = model.embed([sentence + zodi.QUALITY]), model.embed([negative])
    made = []
    for i in range(0, len(images), 10):
        layouts = [zodi.layout(label, CITYSCAPES, label.shape, d.palette) for label in labels[i : i + 10]]
        x, y = (
            torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
            for pictures in (images[i : i + 10], layouts)
        )
        z0, hint = model.encode(x), model.hint(y)

        def noises(step: int, first: int = i, like: torch.Tensor = z0) -> torch.Tensor:
            return torch.stack(
                [zodi.noise(42, str(first + j), sentence, step, like.shape[1:]) for j in range(len(like))]
            )

        out = zodi.transfer(model, z0, text, against, hint, sampling, noises)
        made += list(out.permute(0, 2, 3, 1).numpy())
    return made


def main(m: Measure) -> None:
    model = stable_diffusion.load_model(DiffusionConfig(model=m.model))
    layers = [scenes.draw(scenes.BENCHMARK, FIRST + i) for i in range(m.scenes)]
    true = [{mix: weather.render(layer, mix, 0) for mix in MIXES} for layer in layers]
    images, labels = [one["clear",] for one in true], [layer.label_at_size() for layer in layers]
    view = Table(
        "sentence",
        "named",
        "distance",
        "of the source",
        "sharpness",
        "without negative prompt",
        title=f"{m.scenes} streets, {m.model}",
    )
    with runs.progress("sentences", len(SENTENCES)) as bar:
        for sentence, mix in SENTENCES.items():
            strength = zodi.DOMAINS["night"][1] if "night" in mix else zodi.DOMAINS[mix[0]][1]
            with_it, without = (
                transferred(model, images, labels, sentence, strength, negative)
                for negative in (zodi.NEGATIVE_PROMPT, "")
            )
            nearest = [
                min(MIXES, key=lambda other, i=i: distance(with_it[i], true[i][other]))
                for i in range(m.scenes)
            ]
            sharp = [
                np.mean([sharpness(a) / sharpness(t[mix]) for a, t in zip(made, true, strict=True)])
                for made in (with_it, without)
            ]
            view.add_row(
                sentence,
                f"{np.mean([n == mix for n in nearest]):.0%}",
                *(
                    f"{np.mean([distance(a, t[mix]) for a, t in zip(made, true, strict=True)]):.1f}"
                    for made in (with_it, images)
                ),
                *(f"{value:.2f}" for value in sharp),
            )
            bar.advance()
    Console().print(view)


if __name__ == "__main__":
    main(tyro.cli(Measure))

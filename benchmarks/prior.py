"""How well the embedded prior draws: old and new weights side by side.

    python benchmarks/prior.py OUT --models town runs/prior/model

Streets of the prior's own town that no training has drawn, so the benchmark's town stays untouched. One
network, the judge, is trained on true renderings of all weathers. Each model then turns clear days of other
streets into every weather, and the judge is asked what it still recognises:

    truth          the judge's mIoU on true renderings; the shares below say little where it is low
    kept           the judge's mIoU on the transferred frames, as a share of its mIoU on true renderings of
                   the same streets
    small kept     the same of the eight classes of small or thin things
    sharpness      deviation of the Laplacian over that of the true rendering
    recognised     share of frames whose colours are nearest to the true rendering of the weather that was
                   asked for, of six
    decoded kept   like "kept", of true renderings that only went through the VAE

Writes OUT/prior.md, OUT/prior.json and a picture of three streets for each model. A judge that is trained is
kept; the transfers are made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Literal

import cv2
import numpy as np
import torch
import tyro
import yaml
from picture import draw
from prompts import distance, sharpness
from settings import write_results

from segshift import runs
from segshift.config import DiffusionConfig, TransferConfig
from segshift.data.labels import CITYSCAPES
from segshift.generators import stable_diffusion
from segshift.generators.base import DiffusionFamily
from segshift.methods.base import Method
from segshift.recipes.town import TOWN_DOMAINS, town_training
from segshift.runs import slug
from segshift.scoring import metrics
from segshift.stages import train
from segshift.stages.transfer import transfer_images
from segshift.town import scenes, weather
from segshift.training import checkpoints

FIRST = 700_000
"""Scenes of the prior's town from here on: trainings draw those from 0 on."""
SMALL = ("fence", "pole", "traffic light", "traffic sign", "person", "rider", "motorcycle", "bicycle")
WEATHERS = ("clear", *TOWN_DOMAINS)
MEASURES = ("truth", "kept", "small kept", "sharpness", "recognised", "decoded kept")
Pictures = Sequence[np.ndarray]


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    out: tyro.conf.Positional[Path]
    models: tuple[str, ...] = ("town",)
    """`town`, and model folders."""
    scenes: int = 40
    """Streets that are transferred to every weather."""
    judge_scenes: int = 100
    """Streets that the judge is trained on, each in every weather."""
    steps: int = 400
    """Optimizer steps of the judge, of 8 images each."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the judge's training."""


def streets(first: int, count: int) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Label maps (train ids) of `count` streets, and their true renderings by weather."""
    layers = [scenes.draw(scenes.PRIOR, FIRST + first + i) for i in range(count)]
    true = {name: [weather.render(one, (name,), 0) for one in layers] for name in WEATHERS}
    return [one.label_at_size() for one in layers], true


def judge(b: Benchmark) -> Method:
    """The network that is trained on true renderings of every weather; its frames are drawn first."""
    folder = b.out / f"streets-{b.judge_scenes}"
    if not (folder / "dataset.yaml").exists():
        labels, true = streets(0, b.judge_scenes)
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, images in true.items():
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                cv2.imwrite(str(folder / f"images/{name}-{i}.png"), image[..., ::-1])
                cv2.imwrite(str(folder / f"labels/{name}-{i}.png"), label)
        described = {"images": "images/*.png", "labels": "labels/*.png", "classes": list(CITYSCAPES.names)}
        (folder / "dataset.yaml").write_text(yaml.safe_dump(described))
    config = replace(
        town_training(steps=b.steps, images=8),
        source=f"folder:{folder}",
        validation=None,
        precision=b.precision,
    )
    return checkpoints.load_run(train.train(config, b.out / "judge"), "last")[0]


@torch.inference_mode()
def scores(method: Method, images: Pictures, labels: Pictures) -> tuple[float, float]:
    """mIoU of the judge's predictions, over all classes and over SMALL."""
    matrix = np.zeros((CITYSCAPES.classes, CITYSCAPES.classes + 1), np.int64)  # the last column is void
    for image, label in zip(images, labels, strict=True):
        logits = method.predict(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
        matrix += metrics.confusion_matrix(
            logits.argmax(1)[0].numpy().astype(np.uint8), label, CITYSCAPES.classes
        )
    iou = metrics.iou(matrix)
    return float(np.nanmean(iou)), float(np.nanmean(iou[[CITYSCAPES.names.index(name) for name in SMALL]]))


@torch.inference_mode()
def decoded(model: DiffusionFamily, images: Pictures) -> list[np.ndarray]:
    """The images through the model's VAE."""
    out = []
    for image in images:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        out.append(model.decode(model.encode(x))[0].permute(1, 2, 0).numpy())
    return out


def measure(
    method: Method, name: str, labels: Pictures, true: dict[str, list[np.ndarray]], picture: Path
) -> dict[str, dict[str, float]]:
    """By measure and domain, of one model; draws three of its streets to `picture`."""
    model = stable_diffusion.load_model(DiffusionConfig(model=name))
    made = transfer_images(TransferConfig(source="", to=TOWN_DOMAINS), true["clear"], labels, model=model)
    layouts = [CITYSCAPES.paint(label) for label in labels[:3]]
    shown = {"source": true["clear"][:3], "layout": layouts} | {d: made[d][:3] for d in TOWN_DOMAINS}
    draw(shown, picture)
    told: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    for domain in TOWN_DOMAINS:
        pictures, wanted = made[domain], true[domain]
        best, best_small = scores(method, wanted, labels)
        all_classes, small = scores(method, pictures, labels)
        nearest = [
            min(WEATHERS, key=lambda other, i=i: distance(pictures[i], true[other][i]))
            for i in range(len(labels))
        ]
        told["truth"][domain] = best
        told["kept"][domain] = all_classes / best
        told["small kept"][domain] = small / best_small
        told["sharpness"][domain] = mean(
            sharpness(a) / sharpness(t) for a, t in zip(pictures, wanted, strict=True)
        )
        told["recognised"][domain] = mean(other == domain for other in nearest)
        told["decoded kept"][domain] = scores(method, decoded(model, wanted), labels)[0] / best
    return told


def table(measured: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a line for each measure and model, and one for the truth, which is the same for all."""
    lines = [
        f"| measure | model | {' | '.join(TOWN_DOMAINS)} | mean |",
        "|---|---|" + "---|" * (len(TOWN_DOMAINS) + 1),
    ]
    for name in MEASURES:
        for model, told in list(measured.items())[: 1 if name == "truth" else None]:
            values = [told[name][d] for d in TOWN_DOMAINS]
            lines.append(
                f"| {name} | {model} | {' | '.join(f'{v:.2f}' for v in values)} | {mean(values):.2f} |"
            )
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    method = judge(b)
    labels, true = streets(b.judge_scenes, b.scenes)
    measured: dict[str, dict[str, dict[str, float]]] = {}
    with runs.progress("models", len(b.models)) as bar:
        for name in b.models:
            measured[name] = measure(method, name, labels, true, b.out / f"{slug(name)}.jpg")
            bar.advance()
    told = {"measured": measured, "scenes": b.scenes, "judge_scenes": b.judge_scenes, "steps": b.steps}
    write_results(b.out, "prior", table(measured), told)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

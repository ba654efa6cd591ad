"""Recipes of ICCLD: GTA5 and SYNTHIA to Cityscapes, Cityscapes to ACDC, and the embedded town.

The settings are DAFormer's where the paper's are not known (methods/iccld.py). The published numbers are the paper's, for
comparison alone: nothing here is known to reproduce them.
"""

from __future__ import annotations

from dataclasses import replace

from segshift.config import ICCLDConfig, NetworkConfig, TownConfig, TrainConfig
from segshift.recipes.experiment import Experiment, Row, Target
from segshift.recipes.town import town_target, town_training, town_transfer
from segshift.runs import slug


def steps(source: TrainConfig, target: str, *, name: str = "", **changes: object) -> tuple[Row, Row]:
    """Step 1 and step 2 ("full") from a source-only training. `changes`: of its ICCLDConfig; `name` ends the rows' names."""
    first = replace(source, method="self_training", target=target, iccld=replace(source.iccld, **changes))
    second = replace(first, method="adversarial_diffusion", from_run=f"{{rows}}/{slug('step 1' + name)}")
    return Row("step 1" + name, first), Row("full" + name, second)


def _ablations(source: TrainConfig, target: str, labelled_target: str) -> tuple[Row, ...]:
    """Every row of the ablation table; the oracle is trained on the target's labels."""
    first, full = steps(source, target)
    plain = replace(source, network=replace(source.network, inter_coder=False))
    return (
        Row("source only", source),
        first,
        Row("step 1 + diffusion", replace(full.train, iccld=replace(full.train.iccld, adversarial_weight=0.0))),
        full,
        *steps(plain, target, name=" without inter-coder connections"),
        *steps(source, target, name=", image latent", diffused="image"),
        Row("oracle", replace(source, source=labelled_target)),
    )


# ------------------------------------------------------------------------------------------- published protocols

_PUBLISHED = {
    "gta5": "74.4 mIoU % (ICCLD's authors, 19 classes; DACS 52.1, DAFormer 68.3, HRDA 73.8, MIC 75.9)",
    "synthia": "67.2 mIoU % (ICCLD's authors, most likely 16 classes; DACS 48.3, DAFormer 60.9, HRDA 65.8, MIC 67.3)",
    "synthia-13": "not known for ICCLD over 13 classes",
    "acdc": "not known for ICCLD (a DINOv2-L with adapters, source only: 77.6 on ACDC's test set)",
}


def _training(source: str, size: tuple[int, int], validation: str | None = None) -> TrainConfig:
    """2 + 2 crops of 512 x 512, AdamW 6e-5 with the heads at ten times that, 1,500 steps of warm-up, linear decay."""
    return TrainConfig(
        source=source, validation=validation, method="source_only", select="last", network=NetworkConfig(name="iccld", encoder="resnet101"),
        size=size, target_size=(512, 1024), crop=(512, 512), jitter=(0.0, 0.0, 0.0, 0.0), batch_size=2, steps=40_000,
        optimizer="adamw", lr=6e-5, weight_decay=0.01, warmup=1500, poly_power=1.0, precision="bf16",
    )  # fmt: skip


def _published(name: str, source: TrainConfig, target: str, targets: tuple[Target, ...], published: str) -> Experiment:
    first, full = steps(source, target)
    full = replace(full, train=replace(full.train, lr=1e-4))
    return Experiment(name, (Row("source only", source), first, full), targets, published=published)


def _to_cityscapes() -> tuple[Experiment, ...]:
    target = "cityscapes:{cityscapes}:train"
    judged = (Target("Cityscapes", "cityscapes:{cityscapes}:val"),)
    gta5 = _training("gta5:{gta5}:train", (720, 1280), "gta5:{gta5}:val")
    synthia = replace(_training("synthia:{synthia}", (760, 1280)), classes=16)
    ablations = Experiment(
        "iccld-gta5-cityscapes-ablations", _ablations(gta5, target, "cityscapes:{cityscapes}:train"), judged,
        published=_PUBLISHED["gta5"],
    )  # fmt: skip
    return (
        _published("iccld-gta5-cityscapes", gta5, target, judged, _PUBLISHED["gta5"]),
        _published("iccld-synthia-cityscapes-16", synthia, target, judged, _PUBLISHED["synthia"]),
        _published("iccld-synthia-cityscapes-13", replace(synthia, classes=13), target, judged, _PUBLISHED["synthia-13"]),
        ablations,
    )


def _to_acdc() -> tuple[Experiment, ...]:
    source = _training("cityscapes:{cityscapes}:train", (512, 1024), "cityscapes:{cityscapes}:val")
    judged = {d: Target(d, f"acdc:{{acdc}}:{d}/val") for d in ("night", "fog", "rain", "snow")}
    made = {d: (f"acdc:{{acdc}}:{d}/train", (target,)) for d, target in judged.items()}
    made["all"] = ("acdc:{acdc}:train", (*judged.values(), Target("all", "acdc:{acdc}:val")))
    return tuple(
        _published(f"iccld-cityscapes-acdc-{name}", source, target, targets, _PUBLISHED["acdc"])
        for name, (target, targets) in made.items()
    )


# ------------------------------------------------------------------------------------------------ embedded town


def town_source(domain: str, *, steps: int, images: int) -> TrainConfig:
    """Source only on the town with ICCLD's own E and D, small and from scratch.

    There are no pretrained weights to be careful with, so encoder and heads learn alike; and a run of some hundred steps
    wants averages that forget sooner than the published 0.999.
    """
    settings = ICCLDConfig(
        head_lr=1.0, momentum=0.98, threshold=0.9, unet_channels=(32, 64, 96), adversary_warmup=steps // 3
    )
    return replace(
        town_training(steps=steps, images=images), source=town_target(domain, "train"), validation=None, iccld=settings,
        network=NetworkConfig(name="iccld", encoder="resnet18", pretrained=False),
    )  # fmt: skip


SAMPLINGS = ((1, 1), (3, 1), (10, 1), (50, 1), (3, 5), (3, 10))
"""(DDIM steps, draws) that the town's table compares."""


def _town(source: str, target: str, name: str, *, ablations: bool = False) -> Experiment:
    base = town_source(source, steps=300, images=8)
    unlabelled, judged = town_target(target, "train"), (Target(target, town_target(target)), Target(source, town_target(source)))
    if ablations:
        rows = _ablations(base, unlabelled, unlabelled)
        return Experiment(f"iccld-town-{name}-ablations", rows, judged, town=TownConfig())
    first, full = steps(base, unlabelled)
    first, full = replace(first, uncertainty=True), replace(full, uncertainty=True, samplings=SAMPLINGS)
    return Experiment(f"iccld-town-{name}", (Row("source only", base), first, full), judged, town=TownConfig())


def _town_from_zodi() -> Experiment:
    """From zero-shot to unsupervised: ZoDi's transferred frames as one more labelled source of ICCLD."""
    base = town_source("clear", steps=300, images=8)
    first, full = steps(base, town_target("night", "train"))
    transferred = ("cityscapes:{out}/transferred/night:train",)
    more_first, more_full = steps(replace(base, more_sources=transferred), town_target("night", "train"), name=" + transferred")
    return Experiment(
        "iccld-town-night-from-zodi",
        (Row("source only", base), Row("source + transferred", replace(base, more_sources=transferred)), first, full, more_first, more_full),
        (Target("night", town_target("night")), Target("clear", town_target("clear"))),
        {"transferred": town_transfer("night")},
        TownConfig(),
    )


ICCLD = (
    *(_town(source, target, name, ablations=a) for source, target, name in (("game", "clear", "game"), ("clear", "night", "night")) for a in (False, True)),
    _town_from_zodi(),
    *_to_cityscapes(),
    *_to_acdc(),
)

"""Recipes of ICCLD: GTA5 and SYNTHIA to Cityscapes, Cityscapes to ACDC, and the embedded town.

The settings are DAFormer's where the paper's are not known (methods/iccld/diffusion.py); but GTA5's part
`train` is the source, half of what the relatives train on, so that its part `val` can judge. The published
numbers are the paper's, for comparison alone: nothing here is known to reproduce them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segshift.config import ICCLDConfig, NetworkConfig, TownConfig, TrainConfig
from segshift.recipes.experiment import Experiment, Row, Target, with_validation
from segshift.recipes.town import town_target, town_training, town_transfer
from segshift.runs import slug

Changes = dict[str, Any]
"""Fields of a TrainConfig and what they become."""
Samplings = tuple[tuple[int, int], ...]
"""(DDIM steps, draws) each."""


def steps(
    source: TrainConfig, target: str, second: Changes, *, name: str = "", **changes: Any
) -> tuple[Row, Row]:
    """Step 1 and step 2 ("full") from a source-only training.

    `second`: what step 2 trains otherwise than step 1; `changes`: of its ICCLDConfig; `name` ends the rows'
    names.
    """
    step1 = replace(source, method="self_training", target=target, iccld=replace(source.iccld, **changes))
    step2 = replace(
        step1, method="adversarial_diffusion", from_run=f"{{rows}}/{slug('step 1' + name)}", **second
    )
    return Row("step 1" + name, step1), Row("full" + name, step2)


def ablation_rows(
    source: TrainConfig, target: str, second: Changes, samplings: Samplings = ()
) -> tuple[Row, ...]:
    """Every row of the ablation table. The oracle is trained on the target's labels, which no other row
    reads.

    "full" has both steps behind it: what step 2 adds is its difference from "step 1, equal steps". The rows
    of equal steps are a comparison of their own too, of trainings that are longer by step 2.
    """
    step1, full = steps(source, target, second)
    plain = replace(
        source, network=replace(source.network, iccld=replace(source.network.iccld, inter_coder=False))
    )
    oracle = replace(source, source=target, size=source.target_size or source.size, validation=None)

    def longer(config: TrainConfig) -> TrainConfig:
        assert config.steps and full.train.steps
        return replace(config, steps=config.steps + full.train.steps)

    return (
        Row("source only", source),
        replace(step1, uncertainty=True),
        Row("step 1, equal steps", longer(step1.train), uncertainty=True),
        Row(
            "step 1 + diffusion", replace(full.train, iccld=replace(full.train.iccld, adversarial_weight=0.0))
        ),
        replace(full, uncertainty=True, samplings=samplings),
        *steps(plain, target, second, name=" without inter-coder connections"),
        *steps(source, target, second, name=", label latent", diffused="label"),
        Row("oracle", oracle),
        Row("source only, equal steps", longer(source)),
        Row("oracle, equal steps", longer(oracle)),
    )


SAMPLINGS: Samplings = ((3, 1), (10, 1), (50, 1), (1, 5), (1, 10))
"""What an ablation compares with the default of one step and one draw."""


# ---------------------------------------------------------------------------------------- published protocols

_PUBLISHED = {
    "gta5": "74.4 mIoU % (ICCLD's authors, 19 classes; DACS 52.1, DAFormer 68.3, HRDA 73.8, PiPa 75.6, MIC "
    "75.9; with DINOv2-L VFM-UDA 78.4)",
    "gta5-dinov2": "not known for ICCLD on DINOv2 (relatives on DINOv2-L, mIoU % over 19 classes: VFM-UDA "
    "78.4, VFM-UDA++ 79.8; without target images, from GTA5, SYNTHIA and UrbanSyn, Rein 78.4)",
    "synthia": "67.2 mIoU % (ICCLD's authors, most likely 16 classes; DACS 48.3, DAFormer 60.9, HRDA 65.8, "
    "MIC 67.3, PiPa 68.2)",
    "synthia-13": "not known for ICCLD over 13 classes",
    "acdc": "not known for ICCLD (DINOv2-L with adapters, source only, on ACDC's test set: Rein 77.6, SoMA "
    "78.75)",
}


_SECOND: Changes = {"lr": 1e-4}


def _training(source: str, size: tuple[int, int], validation: str | None = None) -> TrainConfig:
    """2 + 2 crops of 512 x 512, AdamW 6e-5 with the heads at ten times that, 1,500 steps of warm-up, linear
    decay.
    """
    return TrainConfig(
        source=source,
        validation=validation,
        method="source_only",
        select="last",
        network=NetworkConfig(name="iccld", encoder="resnet101"),
        size=size,
        target_size=(512, 1024),
        crop=(512, 512),
        jitter=(0.0, 0.0, 0.0, 0.0),
        batch_size=2,
        steps=40_000,
        optimizer="adamw",
        lr=6e-5,
        weight_decay=0.01,
        warmup=1500,
        poly_power=1.0,
        precision="bf16",
        workers=8,
        validate_every=8000,  # GTA5's split holds thousands of frames
    )


def _published(
    name: str, source: TrainConfig, target: str, targets: tuple[Target, ...], published: str
) -> Experiment:
    rows = with_validation(
        (Row("source only", source), *steps(source, target, _SECOND)), oracle=(targets[-1].data,)
    )
    return Experiment(name, rows, targets, published=published)


def _to_cityscapes() -> tuple[Experiment, ...]:
    target = "cityscapes:{cityscapes}:train"
    targets = (Target("Cityscapes", "cityscapes:{cityscapes}:val"),)
    gta5 = _training("gta5:{gta5}:train", (720, 1280), "gta5:{gta5}:val")
    adapted = NetworkConfig(name="iccld", encoder="vit_large_patch14_dinov2", adapter="lora")
    dinov2 = replace(gta5, network=adapted, lr=1e-4, head_lr=6.0)  # the heads learn as fast as without
    synthia = replace(_training("synthia:{synthia}", (760, 1280)), classes=16)
    rows = with_validation(ablation_rows(gta5, target, _SECOND, SAMPLINGS), oracle=(targets[0].data,))
    ablations = Experiment("iccld-gta5-cityscapes-ablations", rows, targets, published=_PUBLISHED["gta5"])
    return (
        _published("iccld-gta5-cityscapes", gta5, target, targets, _PUBLISHED["gta5"]),
        _published("iccld-gta5-cityscapes-dinov2", dinov2, target, targets, _PUBLISHED["gta5-dinov2"]),
        _published("iccld-synthia-cityscapes-16", synthia, target, targets, _PUBLISHED["synthia"]),
        _published(
            "iccld-synthia-cityscapes-13",
            replace(synthia, classes=13),
            target,
            targets,
            _PUBLISHED["synthia-13"],
        ),
        ablations,
    )


def _to_acdc() -> tuple[Experiment, ...]:
    source = _training("cityscapes:{cityscapes}:train", (512, 1024), "cityscapes:{cityscapes}:val")
    each = {d: Target(d, f"acdc:{{acdc}}:{d}/val") for d in ("night", "fog", "rain", "snow")}
    made: dict[str, tuple[str, tuple[Target, ...]]] = {
        d: (f"acdc:{{acdc}}:{d}/train", (target,)) for d, target in each.items()
    }
    made["all"] = ("acdc:{acdc}:train", (*each.values(), Target("all", "acdc:{acdc}:val")))
    return tuple(
        _published(f"iccld-cityscapes-acdc-{name}", source, target, targets, _PUBLISHED["acdc"])
        for name, (target, targets) in made.items()
    )


# ---------------------------------------------------------------------------------------------- embedded town


STEPS = 600
"""Of source only and of step 1 on the town: seventeen minutes for both steps and source only on two cores."""


def town_second(steps: int = STEPS) -> Changes:
    """Step 2 after `steps` of step 1: it begins where step 1 ended, and changes little after some hundred
    steps.
    """
    return {"steps": steps // 2, "warmup": steps // 20}


def town_source(domain: str, *, steps: int = STEPS, images: int = 8) -> TrainConfig:
    """Source only on the town with ICCLD's own E and D, small and from scratch.

    There are no pretrained weights to be careful with, so encoder and heads learn alike; and a run of some
    hundred steps wants averages that forget sooner than the published 0.999.
    """
    settings = ICCLDConfig(
        momentum=0.98, threshold=0.9, unet_channels=(32, 64, 96), adversary_warmup=steps // 10
    )
    return replace(
        town_training(steps=steps, images=images),
        source=town_target(domain, "train"),
        validation=town_target(domain),
        iccld=settings,
        head_lr=1.0,
        network=NetworkConfig(name="iccld", encoder="resnet18", pretrained=False),
    )


def _town(source: str, target: str, name: str, *, ablations: bool = False) -> Experiment:
    base = town_source(source)
    targets = (Target(target, town_target(target)), Target(source, town_target(source)))
    rows = with_validation(
        ablation_rows(base, town_target(target, "train"), town_second(), SAMPLINGS), oracle=(targets[0].data,)
    )
    if ablations:
        return Experiment(f"iccld-town-{name}-ablations", rows, targets, town=TownConfig())
    chosen = tuple(row for row in rows if row.name in ("source only", "step 1", "full"))
    return Experiment(f"iccld-town-{name}", chosen, targets, town=TownConfig())


def _town_from_zodi() -> Experiment:
    """From zero-shot to unsupervised: ZoDi's transferred frames as one more labelled source of ICCLD."""
    base, unlabelled = town_source("clear"), town_target("night", "train")
    more = replace(base, more_sources=("cityscapes:{out}/transferred/night:train",))
    rows = (
        Row("source only", base),
        Row("source + transferred", more),
        *steps(base, unlabelled, town_second()),
        *steps(more, unlabelled, town_second(), name=" + transferred"),
    )
    return Experiment(
        "iccld-town-night-from-zodi",
        with_validation(rows, oracle=(town_target("night"),)),
        (Target("night", town_target("night")), Target("clear", town_target("clear"))),
        {"transferred": town_transfer("night")},
        TownConfig(),
    )


ICCLD = (
    *(
        _town(source, target, name, ablations=a)
        for source, target, name in (("game", "clear", "game"), ("clear", "night", "night"))
        for a in (False, True)
    ),
    _town_from_zodi(),
    *_to_cityscapes(),
    *_to_acdc(),
)

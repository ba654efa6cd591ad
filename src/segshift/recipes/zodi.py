"""Recipes of ZoDi: its published protocols, the embedded town, its ablations, and the demo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segshift.config import (
    DiffusionConfig,
    NetworkConfig,
    TownConfig,
    TrainConfig,
    TransferConfig,
    ZoDiConfig,
)
from segshift.methods.zodi import Similarity
from segshift.recipes.experiment import Experiment, Row, Target, with_validation
from segshift.recipes.town import JITTER, TOWN_DOMAINS, town_target, town_training, town_transfer
from segshift.runs import slug

# ZoDi's table (official logs): mIoU % with the epoch chosen on target labels / on source validation / last.
_PUBLISHED = {
    "resnet50": {
        "night": "26.4 / 25.3 / 24.7",
        "snow": "47.4 / 46.0 / 45.6",
        "rain": "48.7 / 45.4 / 47.0",
        "fog": "58.7 / 55.4 / 56.1",
        "game": "41.8 / 41.1 / 40.0",
    },
    "resnet101": {
        "night": "26.8 / 25.2 / 25.6",
        "snow": "47.6 / 45.7 / 45.8",
        "rain": "48.0 / 46.3 / 45.4",
        "fog": "61.4 / 59.4 / 59.2",
        "game": "43.0 / 42.0 / 41.6",
    },
    "refinenet": {
        "night": "28.1 / 27.5 / 27.1",
        "snow": "48.9 / 46.9 / 46.4",
        "rain": "49.3 / 47.3 / 46.6",
        "fog": "64.9 / 63.8 / 62.3",
        "game": "45.2 / 44.3 / 44.1",
    },
}
_NETWORKS = {
    "resnet50": NetworkConfig(),
    "resnet101": NetworkConfig(encoder="resnet101"),
    "refinenet": NetworkConfig(name="refinenet"),
}
_DOMAINS = ("night", "snow", "rain", "fog", "game")


def _published(domain: str, network: str) -> Experiment:
    """ZoDi's data and settings: Cityscapes by day to ACDC (or GTA5), Stable Diffusion 1.5 in reference mode.

    Not as published: one joint pass instead of two (three seeds on the town: 37.0 against 27.6 mIoU %),
    float16 transfers, checkpoints judged by steps, and evaluation at the labels' own size (`evaluate
    --protocol as-published` has theirs).
    """
    suffix = "" if network == "resnet50" else f"-{network}"
    target = "gta5:{gta5}:val" if domain == "game" else f"acdc:{{acdc}}:{domain}/val"
    train = TrainConfig(
        source="cityscapes:{cityscapes}:train",
        validation="cityscapes:{cityscapes}:val",
        transferred=(f"cityscapes:{{out}}/transferred/{domain}:train",),
        network=_NETWORKS[network],
        size=(512, 1024),
        crop=(384, 768),
        steps=74_375,
        workers=8,
        validate_every=7440
        if domain == "game"
        else 744,  # ten epochs, for GTA5's split holds thousands of frames; one
    )
    transfer = TransferConfig(
        source="cityscapes:{cityscapes}:train",
        to=(domain,),
        mode="reference",
        diffusion=DiffusionConfig(model="stable-diffusion-v1-5/stable-diffusion-v1-5", dtype="float16"),
    )
    rows = (
        Row("source only", replace(train, method="source_only", transferred=())),
        Row("ZoDi", train),
    )
    return Experiment(
        name=("zodi-cityscapes-gta5" if domain == "game" else f"zodi-cityscapes-acdc-{domain}") + suffix,
        transfers={
            "transferred": transfer,
            "transferred-val": replace(transfer, source="cityscapes:{cityscapes}:val"),
        },
        rows=with_validation(rows, oracle=(target,), transferred=(transferred_val(domain),)),
        targets=(Target(domain, target), Target("clear", "cityscapes:{cityscapes}:val")),
        published=f"{_PUBLISHED[network][domain]} mIoU % (epoch chosen on target labels / on source "
        "validation / last)",
    )


def _dinov2(domain: str) -> Experiment:
    """ZoDi's data on DINOv2-L with adapters, in the relatives' length of training; the rest is ours. No paper
    has it.
    """
    plain = _published(domain, "resnet50")
    network = NetworkConfig(name="vit", encoder="vit_large_patch14_dinov2", head="dpt", adapter="lora")
    changes: dict[str, Any] = {
        "network": network,
        "crop": (512, 512),
        "steps": 40_000,
        "optimizer": "adamw",
        "lr": 1e-4,
        "weight_decay": 0.01,
        "warmup": 1500,
        "precision": "bf16",
    }
    return replace(
        plain,
        name=f"{plain.name}-dinov2",
        rows=tuple(replace(row, train=replace(row.train, **changes)) for row in plain.rows),
        published="not known for ZoDi on DINOv2"
        if domain == "game"
        else "not known for ZoDi on DINOv2 (relatives on DINOv2-L with adapters, from Cityscapes alone, mIoU "
        "% over all of ACDC's test set, in other settings: Rein 77.6, SoMA 78.75)",
    )


def transferred_val(domain: str) -> str:
    """Where an experiment keeps the validation frames that it transferred to a domain."""
    return f"cityscapes:{{out}}/transferred-val/{domain}:val"


def town_rows(base: TrainConfig, domains: tuple[str, ...]) -> tuple[Row, ...]:
    """Source only, source + strong jitter, and ZoDi per domain: equal steps, equal numbers of images per
    step.

    ZoDi goes without jitter here: the published recipe trains for a hundred epochs, and in some hundred steps
    the jitter alone cost every target more than it gave (LOG.md).
    """
    zodi = replace(base, method="zodi", batch_size=base.batch_size // 2)
    return (
        Row("source only", base),
        Row("source + jitter", replace(base, jitter=JITTER)),
        *(
            Row(
                f"ZoDi {domain}",
                replace(zodi, transferred=(f"cityscapes:{{out}}/transferred/{domain}:train",)),
            )
            for domain in domains
        ),
    )


def _town(domain: str) -> Experiment:
    """The embedded town in full: what `benchmarks/zodi.py` measures, for one target."""
    rows = town_rows(town_training(steps=300, images=8), (domain,))
    return Experiment(
        name=f"zodi-town-{domain}",
        town=TownConfig(),
        transfers={
            "transferred": town_transfer(domain),
            "transferred-val": town_transfer(domain, split="val"),
        },
        rows=with_validation(rows, oracle=(town_target(domain),), transferred=(transferred_val(domain),)),
        targets=(Target(domain, town_target(domain)), Target("clear", town_target("clear"))),
    )


def _town_ablations() -> Experiment:
    """Each part of ZoDi left out or replaced (the paper's section 4.3 and its similarity losses), day to
    night.
    """
    source, _, zodi = town_rows(town_training(steps=300, images=8), ("night",))
    transfer = town_transfer("night")
    transfers = {
        "no ControlNet": replace(transfer, control=False),
        "no inversion": replace(transfer, inversion="none"),
        "DDIM inversion": replace(transfer, inversion="ddim"),
        "reference mode": replace(transfer, mode="reference"),
    }
    similarities: dict[str, Similarity] = {
        "no similarity loss": "none",
        "SimSiam head": "simsiam",
        "BYOL head": "byol",
    }
    rows = (
        source,
        replace(zodi, name="ZoDi"),
        *(
            Row(
                f"ZoDi, {name}",
                replace(zodi.train, transferred=(f"cityscapes:{{out}}/{slug(name)}/night:train",)),
            )
            for name in transfers
        ),
        *(
            Row(f"ZoDi, {name}", replace(zodi.train, zodi=ZoDiConfig(similarity=form)))
            for name, form in similarities.items()
        ),
        Row("ZoDi, two passes", replace(zodi.train, zodi=ZoDiConfig(joint_pass=False))),
    )
    return Experiment(
        name="zodi-town-ablations",
        town=TownConfig(target_train=1),
        transfers={
            "transferred": transfer,
            "transferred-val": town_transfer("night", split="val"),
            **{slug(name): changed for name, changed in transfers.items()},
        },
        rows=with_validation(rows, oracle=(town_target("night"),), transferred=(transferred_val("night"),)),
        targets=(Target("night", town_target("night")), Target("clear", town_target("clear"))),
    )


def _demo() -> Experiment:
    """Small enough for five minutes on two cores."""
    source, _, zodi = town_rows(replace(town_training(steps=160, images=12), validate_every=80), ("night",))
    return Experiment(
        name="demo",
        town=TownConfig(source_train=96, source_val=20, target_train=1, target_val=30),
        transfers={
            "transferred": town_transfer("night"),
            "transferred-val": town_transfer("night", split="val"),
        },
        rows=with_validation(
            (source, replace(zodi, name="ZoDi")),
            oracle=(town_target("night"),),
            transferred=(transferred_val("night"),),
        ),
        targets=(Target("night", town_target("night")), Target("clear", town_target("clear"))),
    )


ZODI = (
    _demo(),
    *(_town(domain) for domain in TOWN_DOMAINS),
    _town_ablations(),
    *(_published(domain, network) for network in _NETWORKS for domain in _DOMAINS),
    *(_dinov2(domain) for domain in _DOMAINS),
)

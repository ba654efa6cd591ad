"""Named experiments: every stage's frozen configuration, with the published number beside it.

An experiment's paths may hold `{out}` (its own folder) and `{cityscapes}`, `{acdc}`, `{gta5}`, `{synthia}` (where the
user unpacked them: `segshift run NAME OUT --data cityscapes /data/cityscapes acdc /data/acdc`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from segshift.config import DiffusionConfig, NetworkConfig, TownConfig, TrainConfig, TransferConfig


@dataclass(frozen=True)
class Row:
    """One line of an experiment's table: a training, and what it is called there."""

    name: str
    train: TrainConfig


@dataclass(frozen=True)
class Target:
    """One column of an experiment's table: labelled frames to evaluate on."""

    name: str
    data: str


@dataclass(frozen=True)
class Experiment:
    """The whole configuration of a run; it alone reproduces the run."""

    name: str
    rows: tuple[Row, ...]
    """Trained in order. Gains are counted from the first."""
    targets: tuple[Target, ...]
    transfer: TransferConfig | None = None
    """Written to {out}/transferred/<domain>."""
    town: TownConfig | None = None
    """The embedded town, written to {out}/town first; None for the user's own data."""
    published: str = ""
    """What the paper's authors measured, and under which selection rule."""


# ZoDi's table (official logs): mIoU % with the epoch chosen on target labels / on source validation / last.
_PUBLISHED = {
    "resnet50": {"night": "26.4 / 25.3 / 24.7", "snow": "47.4 / 46.0 / 45.6", "rain": "48.7 / 45.4 / 47.0",
                 "fog": "58.7 / 55.4 / 56.1", "game": "41.8 / 41.1 / 40.0"},
    "resnet101": {"night": "26.8 / 25.2 / 25.6", "snow": "47.6 / 45.7 / 45.8", "rain": "48.0 / 46.3 / 45.4",
                  "fog": "61.4 / 59.4 / 59.2", "game": "43.0 / 42.0 / 41.6"},
    "refinenet": {"night": "28.1 / 27.5 / 27.1", "snow": "48.9 / 46.9 / 46.4", "rain": "49.3 / 47.3 / 46.6",
                  "fog": "64.9 / 63.8 / 62.3", "game": "45.2 / 44.3 / 44.1"},
}  # fmt: skip
_NETWORKS = {
    "resnet50": NetworkConfig(),
    "resnet101": NetworkConfig(encoder="resnet101"),
    "refinenet": NetworkConfig(name="refinenet"),
}


def _published(domain: str, network: str) -> Experiment:
    """ZoDi's own protocol: Cityscapes by day to ACDC (or GTA5), Stable Diffusion 1.5 in reference mode."""
    suffix = "" if network == "resnet50" else f"-{network}"
    target = "gta5:{gta5}:val" if domain == "game" else f"acdc:{{acdc}}:{domain}/val"
    train = TrainConfig(
        source="cityscapes:{cityscapes}:train",
        validation="cityscapes:{cityscapes}:val",
        transferred=(f"cityscapes:{{out}}/transferred/{domain}:train",),
        network=_NETWORKS[network],
    )
    return Experiment(
        name=("zodi-cityscapes-gta5" if domain == "game" else f"zodi-cityscapes-acdc-{domain}") + suffix,
        transfer=TransferConfig(
            source="cityscapes:{cityscapes}:train",
            to=(domain,),
            mode="reference",
            diffusion=DiffusionConfig(model="stable-diffusion-v1-5/stable-diffusion-v1-5", dtype="float16"),
        ),
        rows=(
            Row("source only", replace(train, method="source_only", transferred=())),
            Row("ZoDi", train),
        ),
        targets=(Target(domain, target), Target("clear", "cityscapes:{cityscapes}:val")),
        published=f"{_PUBLISHED[network][domain]} mIoU % (epoch chosen on target labels / on source validation / last)",
    )


TOWN_DOMAINS = ("night", "fog", "rain", "snow", "game")


def town_target(domain: str, split: str = "val") -> str:
    """Where the embedded town keeps a domain, below {out}/town."""
    if domain == "clear":
        return f"cityscapes:{{out}}/town/cityscapes:{split}"
    return f"gta5:{{out}}/town/gta5:{split}" if domain == "game" else f"acdc:{{out}}/town/acdc:{domain}/{split}"


JITTER = (0.5, 0.5, 0.5, 0.3)
"""Brightness, contrast, saturation and hue of the published recipe: the strong jitter."""


def town_training(*, steps: int, images: int, seed: int = 0) -> TrainConfig:
    """Source only on the town: DeepLabV3+ ResNet-18 from scratch, `images` images in each of `steps` steps."""
    return TrainConfig(
        method="source_only", source=town_target("clear", "train"), validation=town_target("clear"), size=(128, 256),
        crop=(128, 128), jitter=(0.0, 0.0, 0.0, 0.0), network=NetworkConfig(encoder="resnet18", pretrained=False),
        steps=steps, batch_size=images, optimizer="adamw", lr=1e-3, weight_decay=1e-2, warmup=steps // 10, seed=seed,
        workers=0, checkpoint_every=max(50, steps // 4), validate_every=max(50, steps // 4), select="last",
    )  # fmt: skip


def town_rows(base: TrainConfig, domains: tuple[str, ...]) -> tuple[Row, ...]:
    """Source only, source + strong jitter, and ZoDi per domain: equal steps, equal numbers of images per step.

    ZoDi goes without jitter here: in so few steps it cost 9 points on source validation (LOG.md).
    """
    zodi = replace(base, method="zodi", batch_size=base.batch_size // 2)
    return (
        Row("source only", base),
        Row("source + jitter", replace(base, jitter=JITTER)),
        *(
            Row(f"ZoDi {domain}", replace(zodi, transferred=(f"cityscapes:{{out}}/transferred/{domain}:train",)))
            for domain in domains
        ),
    )


def _town(domain: str) -> Experiment:
    """The embedded town in full: what `benchmarks/town.py` measures over seeds, for one target and one seed."""
    return Experiment(
        name=f"zodi-town-{domain}",
        town=TownConfig(),
        transfer=TransferConfig(source=town_target("clear", "train"), to=(domain,)),
        rows=town_rows(town_training(steps=300, images=12), (domain,)),
        targets=(Target(domain, town_target(domain)), Target("clear", town_target("clear"))),
    )


def _demo() -> Experiment:
    """Small enough for five minutes on two cores."""
    rows = town_rows(town_training(steps=160, images=12), ("night",))
    return Experiment(
        name="demo",
        town=TownConfig(source_train=96, source_val=20, target_train=1, target_val=30),
        transfer=TransferConfig(source=town_target("clear", "train"), to=("night",)),
        rows=(rows[0], replace(rows[2], name="ZoDi")),
        targets=(Target("night", town_target("night")), Target("clear", town_target("clear"))),
    )


RECIPES: dict[str, Experiment] = {
    recipe.name: recipe
    for recipe in (
        _demo(),
        *(_town(domain) for domain in TOWN_DOMAINS),
        *(_published(domain, network) for network in _NETWORKS for domain in ("night", "snow", "rain", "fog", "game")),
    )
}

"""What the recipes on the embedded town share."""

from __future__ import annotations

from segshift.config import NetworkConfig, TrainConfig, TransferConfig

TOWN_DOMAINS = ("night", "fog", "rain", "snow", "game")


def town_target(domain: str, split: str = "val") -> str:
    """Where the embedded town keeps a domain, below {out}/town."""
    if domain == "clear":
        return f"cityscapes:{{out}}/town/cityscapes:{split}"
    return (
        f"gta5:{{out}}/town/gta5:{split}" if domain == "game" else f"acdc:{{out}}/town/acdc:{domain}/{split}"
    )


JITTER = (0.5, 0.5, 0.5, 0.3)
"""Brightness, contrast, saturation and hue of the published recipe: the strong jitter."""


def town_training(*, steps: int, images: int, seed: int = 0) -> TrainConfig:
    """Source only on the town: DeepLabV3+ ResNet-18 from scratch, `images` images in each of `steps`
    steps."""
    return TrainConfig(
        method="source_only",
        source=town_target("clear", "train"),
        validation=town_target("clear"),
        size=(128, 256),
        crop=(128, 128),
        jitter=(0.0, 0.0, 0.0, 0.0),
        network=NetworkConfig(encoder="resnet18", pretrained=False),
        steps=steps,
        batch_size=images,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-2,
        warmup=steps // 10,
        seed=seed,
        workers=0,
        checkpoint_every=max(50, steps // 4),
        validate_every=max(50, steps // 4),
        select="last",
    )


def town_transfer(*domains: str, split: str = "train") -> TransferConfig:
    """Clear day on the town to `domains`."""
    return TransferConfig(source=town_target("clear", split), to=domains)

"""Configuration of the embedded town and of its diffusion prior."""

from __future__ import annotations

from dataclasses import dataclass

from segshift.config.common import Device


@dataclass(frozen=True)
class TownConfig:
    """Write the embedded town: street scenes with labels, in the published layouts."""

    seed: int = 0
    """Base seed; the same seed gives the same bytes."""
    height: int = 128
    """Image height in pixels."""
    width: int = 256
    """Image width in pixels."""
    source_train: int = 160
    """Frames of clear day in cityscapes/.../train (and in synthia)."""
    source_val: int = 40
    """Frames of clear day in cityscapes/.../val."""
    target_train: int = 160
    """Frames per target domain to train the oracle or an unsupervised method on."""
    target_val: int = 40
    """Frames per target domain to evaluate on."""
    workers: int = 0
    """Processes; 0 takes every core. The bytes do not depend on it."""


@dataclass(frozen=True)
class PriorConfig:
    """Train the embedded diffusion prior on scenes of a town that is not the benchmark's (ours)."""

    seed: int = 0
    """Seed of everything."""
    scenes: int = 6000
    """Scenes drawn, each under one weather."""
    height: int = 128
    """Image height in pixels."""
    width: int = 256
    """Image width in pixels."""
    vae_steps: int = 6000
    """Optimizer steps of the VAE, on 64x96 crops."""
    vae_batch: int = 8
    """Crops per step of the VAE."""
    vae_lr: float = 1e-3
    """Peak learning rate of the VAE (AdamW, cosine)."""
    steps: int = 4000
    """Optimizer steps of UNet, ControlNet and text encoder."""
    batch: int = 16
    """Latents per step."""
    lr: float = 1e-3
    """Peak learning rate (AdamW, cosine)."""
    narrow_share: float = 0.7
    """Share of the steps that see half-width latents."""
    checkpoint_every: int = 200
    """Steps between resumable states."""
    workers: int = 0
    """Processes that draw scenes; 0 takes every core."""
    threads: int = 0
    """torch threads; 0 leaves torch's choice."""
    start: str | None = None
    """Model folder of an earlier training whose weights are taken on; None starts from random weights."""
    bf16: bool = False
    """Compute in bfloat16 and keep the weights in float32: faster on a GPU and on CPUs with AVX512-BF16, several times
    slower on other CPUs."""
    device: Device = "cpu"
    """Where it runs."""

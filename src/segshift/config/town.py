"""Configuration of the embedded town and of its diffusion prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from segshift.settings import Count, Device, ModelText, Rate, Seed, Settings, Share, Steps, Workers

Side = Annotated[int, Field(ge=32, le=4096)]
"""Of a drawn picture, in pixels."""
Frames = Annotated[int, Field(ge=0, lt=100_000)]


@dataclass(frozen=True)
class TownConfig(Settings):
    """Write the embedded town: street scenes with labels, in the published layouts."""

    seed: Seed = 0
    """Base seed; the same seed gives the same bytes."""
    height: Side = 128
    """Image height in pixels."""
    width: Side = 256
    """Image width in pixels."""
    source_train: Frames = 160
    """Frames of clear day in cityscapes/.../train (and in synthia)."""
    source_val: Frames = 40
    """Frames of clear day in cityscapes/.../val."""
    target_train: Frames = 160
    """Frames per target domain to train the oracle or an unsupervised method on."""
    target_val: Frames = 40
    """Frames per target domain to evaluate on."""
    workers: Workers = 0
    """Processes; 0 takes every core. The bytes do not depend on it."""


@dataclass(frozen=True)
class PriorConfig(Settings):
    """Train the embedded diffusion prior on scenes of a town that is not the benchmark's (ours)."""

    seed: Seed = 0
    """Seed of everything."""
    scenes: Count = 6000
    """Scenes drawn, each under one weather."""
    height: Side = 128
    """Image height in pixels."""
    width: Side = 256
    """Image width in pixels."""
    vae_steps: Annotated[int, Field(ge=0)] = 6000
    """Optimizer steps of the VAE, on 64x96 crops."""
    vae_batch: Count = 8
    """Crops per step of the VAE."""
    vae_lr: Rate = 1e-3
    """Peak learning rate of the VAE (AdamW, cosine)."""
    steps: Annotated[int, Field(ge=0)] = 4000
    """Optimizer steps of UNet, ControlNet and text encoder."""
    batch: Count = 16
    """Latents per step."""
    lr: Rate = 1e-3
    """Peak learning rate (AdamW, cosine)."""
    narrow_share: Share = 0.7
    """Share of the steps that see half-width latents."""
    checkpoint_every: Steps = 200
    """Steps between resumable states."""
    workers: Workers = 0
    """Processes that draw scenes; 0 takes every core."""
    threads: Workers = 0
    """torch threads; 0 leaves torch's choice."""
    start: ModelText | None = None
    """Model folder of an earlier training whose weights are taken on; None starts from random weights."""
    bf16: bool = False
    """Compute in bfloat16 and keep the weights in float32: faster on a GPU and on CPUs with AVX512-BF16,
    several times slower on other CPUs."""
    device: Device = "cpu"
    """Where it runs."""

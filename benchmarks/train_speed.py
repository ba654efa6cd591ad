"""Pairs per second of ZoDi's training: our joint pass against the published loop.

    python benchmarks/train_speed.py
    python benchmarks/train_speed.py --crop 384 768 --network.encoder resnet50 --device cuda

The published loop (azuma164/ZoDi, train_epoch_similarity_dual) passes x through the network and x' through
the encoder, backward; then x' through the network and x through the encoder, backward; then one optimizer
step. Its network keeps torch's own memory format, as the published one does, and ours has channels last. Ours
is measured in float32 and with --precision bf16. All take their steps in turn, on the same batch and in one
process; the ratio to the published loop is the median over rounds. On a CPU the seconds are those of the
processor, so that other work on the machine matters little.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import torch
import tyro
from torch import Tensor

from segshift import networks
from segshift.config import NetworkConfig
from segshift.methods.base import cross_entropy
from segshift.methods.zodi.adaptation import ZoDi, pooled, similarity
from segshift.networks.segmenter import Segmenter


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(encoder="resnet18", pretrained=False)
    )
    crop: tuple[int, int] = (96, 192)
    """Height and width in pixels."""
    batch_size: int = 4
    """Pairs per step."""
    rounds: int = 10
    """Steps of each loop, after one that does not count."""
    device: str = "cpu"
    threads: int = 1
    """Threads of torch on the CPU."""


def encoded(segmenter: Segmenter, images: Tensor) -> Tensor:
    return segmenter.network.encoder((images - segmenter.mean) / segmenter.std)[-1]


def published_step(segmenter: Segmenter, batch: dict[str, Tensor]) -> None:
    x, x_transferred, y = batch["source"], batch["transferred"], batch["label"]
    logits, features = segmenter.forward_with_features(x)
    loss = 0.1 * similarity(pooled(features), pooled(encoded(segmenter, x_transferred)))
    (cross_entropy(logits, y) + loss).backward()
    logits = segmenter(x_transferred)
    encoded(segmenter, x)  # its loss leaves this out, its forward pass does not
    cross_entropy(logits, y).backward()


def step(
    settings: Settings, loop: Literal["joint", "published"], precision: torch.dtype | None = None
) -> Callable[[], None]:
    """An optimizer step of one of the loops; all begin with the same weights and take the same batch.
    precision: of autocast, None for none.
    """
    torch.manual_seed(0)
    device = torch.device(settings.device)
    segmenter = networks.build(settings.network, 19).to(device)
    if loop == "published":
        segmenter.to(memory_format=torch.contiguous_format)
    method = ZoDi(segmenter)
    optimizer = torch.optim.SGD(segmenter.parameters(), 1e-3, 0.9, weight_decay=1e-4)
    torch.manual_seed(0)
    size = (settings.batch_size, 3, *settings.crop)
    batch = {name: torch.rand(size, device=device) for name in ("source", "transferred")}
    batch["label"] = torch.randint(0, 19, (settings.batch_size, *settings.crop), device=device).byte()

    def take() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, precision) if precision else nullcontext():
            if loop == "joint":
                sum(method.losses("segmenter", batch, 0).values()).backward()
            else:
                published_step(segmenter, batch)
        optimizer.step()

    return take


def turns(loops: dict[str, Callable[[], None]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of every step: the loops take theirs in turn, once without counting and then `rounds` times."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds + 1):
        for name, step in loops.items():
            began = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - began)
    return {name: times[1:] for name, times in seconds.items()}


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    loops = {
        "published": step(settings, "published"),
        "joint": step(settings, "joint"),
        "joint, bf16": step(settings, "joint", torch.bfloat16),
    }
    seconds = turns(loops, device, settings.rounds)
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()} CPU, {settings.threads} threads"
    )
    print(
        f"{settings.network.name} {settings.network.encoder}, {settings.batch_size} pairs of "
        f"{settings.crop}, {where}"
    )
    for name, times in seconds.items():
        ratios = [theirs / ours for ours, theirs in zip(times, seconds["published"], strict=True)]
        print(
            f"{name:>11}: {settings.batch_size / median(times):7.2f} pairs/s, {median(ratios):.2f} times the "
            f"published loop ({min(ratios):.2f} to {max(ratios):.2f} over {settings.rounds} rounds)"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings))

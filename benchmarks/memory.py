"""Peak memory of ICCLD's trainings at the published shape: 2 + 2 crops of 512 x 512, bfloat16.

    python benchmarks/memory.py runs/memory
    python benchmarks/memory.py runs/memory --encoders vit_base_patch14_dinov2 --device cuda

Source only, step 1 and step 2 of the recipe iccld-gta5-cityscapes, three steps each on frames of the embedded
town at 512x1024, with random weights. On a GPU it is what torch allocated there at most. On a CPU, which has
no such count, it is how much a process of its own grew: the same tensors, with what the libraries of the CPU
need besides and without CUDA's context. The adversary acts from the first step. Writes OUT/memory.md and
OUT/memory.json; running it again continues.
"""

from __future__ import annotations

import resource
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
import tyro
from settings import write_results

from segshift.config import TownConfig, TrainConfig
from segshift.execution.device import pick
from segshift.recipes import RECIPES
from segshift.recipes.runner import fill
from segshift.recipes.town import town_target
from segshift.runs import read_json, slug, write_json
from segshift.settings import Device
from segshift.stages import train
from segshift.town import writer

STEPS = 3
"""The optimizers' state is there from the second on."""


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    out: tyro.conf.Positional[Path]
    encoders: tuple[str, ...] = ("resnet101", "vit_base_patch14_dinov2")
    """Backbones of timm."""
    device: Device = "auto"
    threads: int = 2
    """Threads of torch on the CPU."""


def peak(config: TrainConfig, out: Path, threads: int) -> float:
    """GiB that a training takes at most, in a process that has done nothing before."""
    torch.set_num_threads(threads)
    device = pick(config.device)
    shutil.rmtree(out, ignore_errors=True)  # a training that was stopped has another peak when it continues
    before = psutil.Process().memory_info().rss
    train.train(config, out)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**30


def trainings(
    b: Benchmark, encoder: str, checkpointing: bool, steps: int = STEPS
) -> dict[str, tuple[TrainConfig, Path]]:
    """By row of the recipe: what is trained, and where."""
    home = b.out / slug(f"{encoder} checkpointing {checkpointing}")
    town = {"source": town_target("game", "train"), "target": town_target("clear", "train")}
    made = {}
    for row in RECIPES["iccld-gta5-cityscapes"].rows:
        settings = replace(
            row.train,
            **{name: data for name, data in town.items() if getattr(row.train, name)},
            size=(512, 1024),
            validation=None,
            oracle_validation=(),
            steps=steps,
            device=b.device,
            network=replace(row.train.network, encoder=encoder, pretrained=False),
            iccld=replace(row.train.iccld, adversary_warmup=0),
            gradient_checkpointing=checkpointing,
            workers=2,
        )
        made[row.name] = fill(settings, {"out": str(b.out), "rows": str(home)}), home / slug(row.name)
    return made


def table(peaks: dict[str, dict[str, float]]) -> str:
    """Markdown: GiB by encoder and training."""
    columns = list(next(iter(peaks.values())))
    lines = [f"| peak, GiB | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | {' | '.join(f'{row[c]:.1f}' for c in columns)} |" for name, row in peaks.items()]
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    writer.town(
        TownConfig(height=512, width=1024, source_train=4, source_val=1, target_train=4, target_val=1),
        b.out / "town",
    )
    peaks: dict[str, dict[str, float]] = {}
    for encoder in b.encoders:
        for checkpointing in (False, True):
            row = peaks.setdefault(encoder + (", gradient checkpointing" if checkpointing else ""), {})
            for name, (config, out) in trainings(b, encoder, checkpointing).items():
                known = out / "peak.json"
                if not known.exists():
                    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                        write_json(known, alone.submit(peak, config, out, b.threads).result())
                row[name] = read_json(known)
    write_results(
        b.out, "memory", table(peaks), {"peaks": peaks, "device": str(pick(b.device)), "steps": STEPS}, "timm"
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

"""What adapters save: parameters trained, peak memory and pairs a second of ZoDi on vision transformers.

    python benchmarks/adapters.py runs/adapters

ZoDi's training on the embedded town, crops of 256x256, two pairs a step, AdamW, with random weights of
DINOv2-S's and DINOv3-S's shape under a linear head; a few steps, each training in a process of its own.
Memory is what torch's tensors take at most, from before the network is built until the run is written. (How
much a process grows would not do: fragments of the heap hide what adapters save.) The rate is that of the
median step of `train_speed`, where the trainings of an encoder take their steps in turn; on a CPU the seconds
are those of the processor, so that other work on the machine matters little. The transferred frames are the
source's own, which costs the same.
Writes OUT/adapters.md and OUT/adapters.json; running it again continues.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
import train_speed
import tyro
from memory import STEPS, peak
from settings import write_results
from torch.profiler import ProfilerActivity, profile

from segshift.config import NetworkConfig, TownConfig, TrainConfig
from segshift.execution.device import pick
from segshift.recipes.runner import fill
from segshift.recipes.town import town_target, town_training
from segshift.runs import read_json, slug, write_json
from segshift.settings import Device
from segshift.stages import train
from segshift.town import writer
from segshift.training import checkpoints

ADAPTERS = {"none": "all weights", "lora": "lora", "mica": "mica"}
CROP = (256, 256)


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    out: tyro.conf.Positional[Path]
    encoders: tuple[str, ...] = ("vit_small_patch14_dinov2", "vit_small_patch16_dinov3")
    """Vision transformers of timm."""
    rounds: int = 6
    """Steps that the rate is the median of."""
    device: Device = "cpu"
    threads: int = 2
    """Threads of torch on the CPU."""


def training(b: Benchmark, encoder: str, adapter: Any) -> TrainConfig:
    """What is trained."""
    network = NetworkConfig(name="vit", encoder=encoder, pretrained=False, adapter=adapter)
    frames = town_target("clear", "train")
    plain = replace(town_training(steps=STEPS, images=2), network=network, device=b.device, validation=None)
    shaped = replace(plain, method="zodi", transferred=(frames,), size=(256, 512), crop=CROP)
    return fill(shaped, {"out": str(b.out)})


def measured(b: Benchmark, config: TrainConfig, out: Path) -> dict[str, float]:
    """parameters: millions that are trained; memory: GiB."""
    memory = (
        peak(config, out, b.threads) if pick(b.device).type == "cuda" else allocated(config, out, b.threads)
    )
    method, _, _ = checkpoints.load_run(out, "last")
    trained = sum(p.numel() for group, _ in method.parameter_groups("segmenter") for p in group)
    return {"parameters": trained / 1e6, "memory": memory}


def allocated(config: TrainConfig, out: Path, threads: int) -> float:
    """GiB that torch's tensors on the CPU take at most in a training."""
    torch.set_num_threads(threads)
    shutil.rmtree(out, ignore_errors=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        train.train(config, out)
    told, totals = list(seen.profiler.kineto_results.experimental_event_tree()), [0]
    while told:
        event = told.pop()
        told += event.children
        totals.append(getattr(event.extra_fields, "total_allocated", 0))
    return max(totals) / 2**30


def rates(b: Benchmark, configs: dict[str, TrainConfig]) -> dict[str, float]:
    """Pairs a second, by name of the training."""
    torch.set_num_threads(b.threads)
    device = pick(b.device)
    loops = {}
    for name, config in configs.items():
        settings = train_speed.Settings(config.network, CROP, config.batch_size, device=device.type)
        loops[name] = train_speed.step(settings, "joint")
    seconds = train_speed.turns(loops, device, b.rounds)
    return {name: configs[name].batch_size / median(times) for name, times in seconds.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown: a line a training."""
    lines = [
        "| ZoDi on | parameters trained, millions | peak memory of tensors, GiB | pairs/s |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['parameters']:.1f} | {row['memory']:.2f} | {row['rate']:.2f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    town = TownConfig(height=256, width=512, source_train=4, source_val=1, target_train=1, target_val=1)
    writer.town(town, b.out / "town")
    rows: dict[str, dict[str, float]] = {}

    def alone(known: Path, function: Any, *given: Any) -> Any:
        """What the function returns in a process of its own; from the file where it is known."""
        if not known.exists():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                write_json(known, pool.submit(function, *given).result())
        return read_json(known)

    trainings = {
        encoder: {f"{encoder}, {told}": training(b, encoder, kind) for kind, told in ADAPTERS.items()}
        for encoder in b.encoders
    }
    for configs in trainings.values():
        for name, config in configs.items():
            rows[name] = alone(b.out / f"{slug(name)}.json", measured, b, config, b.out / slug(name))
    for encoder, configs in trainings.items():
        for name, rate in alone(b.out / f"{slug(encoder)}-rates.json", rates, b, configs).items():
            rows[name] = rows[name] | {"rate": rate}
    told = {"rows": rows, "steps": STEPS, "rounds": b.rounds, "threads": b.threads}
    write_results(b.out, "adapters", table(rows), told | {"device": str(pick(b.device))}, "timm", "peft")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

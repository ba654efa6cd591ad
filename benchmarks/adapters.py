"""What adapters save: parameters trained, peak memory and pairs a second of ZoDi on vision transformers.

    python benchmarks/adapters.py runs/adapters

ZoDi's training on the embedded town, crops of 256x256, two pairs a step, AdamW, with random weights of
DINOv2-S's and DINOv3-S's shape under a linear head; each a few steps in a process of its own. Memory is how
much that process grew; the rate is the median step's. The transferred frames are the source's own, which
costs the same. Writes OUT/adapters.md and OUT/adapters.json; running it again continues.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from memory import peak
from settings import write_results

from segshift.config import NetworkConfig, TownConfig, TrainConfig
from segshift.execution.device import pick
from segshift.recipes.runner import fill
from segshift.recipes.town import town_target, town_training
from segshift.runs import read_json, read_lines, slug, write_json
from segshift.settings import Device
from segshift.town import writer
from segshift.training import checkpoints

STEPS = 8
"""The first is left out of the rate."""
ADAPTERS = ("none", "lora", "mica")


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    out: tyro.conf.Positional[Path]
    encoders: tuple[str, ...] = ("vit_small_patch14_dinov2", "vit_small_patch16_dinov3")
    """Vision transformers of timm."""
    device: Device = "cpu"
    threads: int = 2
    """Threads of torch on the CPU."""


def training(b: Benchmark, encoder: str, adapter: Any) -> TrainConfig:
    """What is trained."""
    network = NetworkConfig(name="vit", encoder=encoder, pretrained=False, adapter=adapter)
    frames = town_target("clear", "train")
    plain = replace(town_training(steps=STEPS, images=2), network=network, device=b.device, validation=None)
    shaped = replace(plain, method="zodi", transferred=(frames,), size=(256, 512), crop=(256, 256))
    return fill(shaped, {"out": str(b.out)})


def measured(b: Benchmark, config: TrainConfig, out: Path) -> dict[str, float]:
    """parameters: millions that are trained; memory: GiB; rate: pairs a second."""
    import peft  # noqa: F401  # before memory is looked at: what is measured are tensors

    memory = peak(config, out, b.threads)
    method, _, _ = checkpoints.load_run(out, "last")
    trained = sum(p.numel() for group, _ in method.parameter_groups("segmenter") for p in group)
    seconds = [line["seconds"] for line in read_lines(out / "metrics.jsonl") if "seconds" in line][1:]
    return {"parameters": trained / 1e6, "memory": memory, "rate": config.batch_size / median(seconds)}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown: a line a training."""
    lines = ["| ZoDi on | parameters trained, millions | peak memory, GiB | pairs/s |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['parameters']:.1f} | {row['memory']:.2f} | {row['rate']:.2f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    town = TownConfig(height=256, width=512, source_train=4, source_val=1, target_train=1, target_val=1)
    writer.town(town, b.out / "town")
    rows: dict[str, dict[str, float]] = {}
    for encoder, adapter in product(b.encoders, ADAPTERS):
        name = f"{encoder}, {'all weights' if adapter == 'none' else adapter}"
        known = b.out / f"{slug(name)}.json"
        if not known.exists():
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                job = alone.submit(measured, b, training(b, encoder, adapter), b.out / slug(name))
                write_json(known, job.result())
        rows[name] = read_json(known)
    write_results(
        b.out, "adapters", table(rows), {"rows": rows, "steps": STEPS, "device": str(pick(b.device))}, "peft"
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

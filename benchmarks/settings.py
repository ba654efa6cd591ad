"""What the benchmarks on the embedded town share: their options, and what is told of where a figure came
from.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from segshift.config import TownConfig
from segshift.recipes.runner import ScoreTable
from segshift.recipes.town import TOWN_DOMAINS
from segshift.runs import cpus, write_json


@dataclass(frozen=True)
class Trainings:
    """What is trained; the defaults are those of docs/results.md."""

    out: tyro.conf.Positional[Path]
    seeds: int = 3
    """Trainings per cell. Town and transferred images are the same for all."""
    steps: int = 300
    """Optimizer steps of every training."""
    images: int = 8
    """Images per step of every training."""
    domains: tuple[str, ...] = TOWN_DOMAINS
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of every training."""


def protocol(town: TownConfig) -> str:
    return (
        f"embedded town, {town.source_train} source and {town.target_train} target training frames, "
        f"{town.target_val} "
        f"validation frames a domain, 19 classes, {town.height}x{town.width}"
    )


def _models() -> list[str]:
    """Of the processor and of the GPU, where there is one."""
    told = Path("/proc/cpuinfo")
    named = re.findall(r"^model name\s*: (.*)$", told.read_text(), re.MULTILINE) if told.exists() else []
    gpus = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return [*(named[:1] or [platform.processor() or platform.machine()]), *gpus]


def circumstances(*packages: str) -> dict[str, Any]:
    """Machine, versions of torch, diffusers and `packages`, and date."""
    return {
        "machine": ", ".join((*_models(), f"{cpus()} cores, {torch.get_num_threads()} of them by torch")),
        "versions": {p: version(p) for p in ("torch", "diffusers", "segmentation-models-pytorch", *packages)},
        "date": date.today().isoformat(),
    }


def scores_of(lines: list[dict]) -> ScoreTable:
    """From the lines of scores.json, rows in the table's order; "ZoDi night" and its like, which know one
    domain, in one row.
    """
    scores: ScoreTable = {}
    for line in lines:
        only = next(iter(line["miou"])) if len(line["miou"]) == 1 else ""
        found = scores.setdefault((line["row"].removesuffix(f" {only}"), line["checkpoint"]), {})
        found |= line["miou"]
    return scores


def write_results(out: Path, name: str, table: str, told: dict[str, Any], *packages: str) -> None:
    """Write OUT/<name>.md (`table`) and OUT/<name>.json (every figure in `told`, and `circumstances`); print
    the table.
    """
    (out / f"{name}.md").write_text(table)
    write_json(out / f"{name}.json", told | circumstances(*packages))
    print(table)

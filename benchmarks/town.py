"""Every table of docs/results.md that is measured on the embedded town, three seeds each (the demo's one).

    python benchmarks/town.py runs/town --precision bf16

Runs the other programs one after the other, each in a folder of its own, and gathers OUT/results/<table>.md
and .json (every figure, machine, versions, date): what `benchmarks/results` holds and docs/results.md
shows. All of it takes a day on two cores; running it again continues, and `--tables` takes a part. The
estimates need the runs of zodi and of both of ICCLD's ablations.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import estimate
import gate
import memory
import recipe
import tyro
import zodi

from segshift.config import NetworkConfig
from segshift.recipes.runner import fill
from segshift.recipes.town import town_training
from segshift.runs import InputError
from segshift.stages import train


@dataclass(frozen=True)
class Benchmark:
    """What is run; docs/results.md is with --precision bf16."""

    out: tyro.conf.Positional[Path]
    tables: tuple[str, ...] = ()
    """Tables to make, by name; none takes all."""
    seeds: int = 3
    """Trainings of every row (the demo has one)."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of every training but the demo's."""


def _recipe(name: str) -> Callable[[Benchmark, Path], None]:
    return lambda b, out: recipe.main(recipe.Benchmark(name, out, b.seeds, precision=b.precision))


def _zodi(b: Benchmark, out: Path) -> None:
    zodi.main(zodi.Benchmark(out, b.seeds, precision=b.precision))


def _gate(b: Benchmark, out: Path) -> None:
    gate.main(gate.Benchmark(out, b.seeds, domains=("night",), precision=b.precision))


def _estimate(b: Benchmark, out: Path) -> None:
    """Of the networks of zodi, of ICCLD's two steps, and of one with another encoder."""
    other = replace(
        town_training(steps=300, images=8),
        validation=None,
        precision=b.precision,
        network=NetworkConfig(encoder="mobilenet_v2", pretrained=False),
    )
    train.train(fill(other, {"out": str(b.out / "zodi")}), b.out / "mobilenet")
    steps = tuple(b.out / "iccld-town-game-ablations" / "seed-0" / row for row in ("step-1", "full"))
    estimate.main(estimate.Benchmark(b.out / "zodi", runs=(*steps, b.out / "mobilenet"), out=out, draws=1))


def _estimate_night(b: Benchmark, out: Path) -> None:
    """Of ICCLD's rows from day to night: does it tell, without a label, what self-training does there?"""
    rows = ("source only", "step 1", "full")
    estimate.main(
        estimate.Benchmark(
            b.out / "iccld-town-night-ablations", out=out, rows=rows, domains=("night",), draws=1
        )
    )


TABLES: dict[str, Callable[[Benchmark, Path], None]] = {
    "demo": lambda b, out: recipe.main(recipe.Benchmark("demo", out, seeds=1)),
    "zodi": _zodi,
    "zodi-town-ablations": _recipe("zodi-town-ablations"),
    "gate": _gate,
    "iccld-town-game-ablations": _recipe("iccld-town-game-ablations"),
    "iccld-town-night-ablations": _recipe("iccld-town-night-ablations"),
    "iccld-town-night-from-zodi": _recipe("iccld-town-night-from-zodi"),
    "estimate": _estimate,
    "estimate-night": _estimate_night,
    "memory": lambda b, out: memory.main(memory.Benchmark(out)),
}


def main(b: Benchmark) -> None:
    if unknown := set(b.tables) - TABLES.keys():
        raise InputError(f"no table '{min(unknown)}': there are {', '.join(TABLES)}")
    results = b.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name in b.tables or TABLES:
        TABLES[name](b, b.out / name)
        for suffix in (".md", ".json"):
            shutil.copy(b.out / name / (name + suffix), results)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

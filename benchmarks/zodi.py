"""ZoDi on the town: source only, source + jitter, ZoDi and a training on the target's labels, on five
targets.

    python benchmarks/zodi.py runs/zodi

Every row by every selection rule that it has a validation set for: the last checkpoint, the best on source
validation, the best on transferred validation, and the best on the target's labels, which is not attainable.
A network for all targets is chosen by the mean over them. Writes OUT/zodi.md and OUT/zodi.json (every figure,
machine, versions, date). Running it again continues.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean
from typing import Literal

import tyro
from settings import Trainings, protocol, scores_of, write_results

from segshift.config import TownConfig
from segshift.experiments import Scores, by_checkpoint, run_experiment
from segshift.recipes.experiment import Experiment, Row, Target, judged
from segshift.recipes.town import town_target, town_training, town_transfer
from segshift.recipes.zodi import town_rows, transferred_val
from segshift.runs import read_json
from segshift.scoring.metrics import spread

NAMES = ("source only", "source + jitter", "ZoDi", "oracle")


@dataclass(frozen=True)
class Benchmark(Trainings):
    """What is run; the defaults are the README's."""

    mode: Literal["default", "reference"] = "default"
    """Mode of the transfer."""


def experiment(b: Benchmark) -> Experiment:
    """Every training of the table; a network that knows one domain is evaluated there alone."""
    base = replace(town_training(steps=b.steps, images=b.images), precision=b.precision)
    source, jitter, *zodi = town_rows(base, b.domains)
    everywhere = {
        "oracle": tuple(map(town_target, b.domains)),
        "transferred": tuple(map(transferred_val, b.domains)),
    }
    rows = judged((source, jitter), **everywhere)
    for domain, row in zip(b.domains, zodi, strict=True):
        rows += judged(
            (replace(row, targets=(domain,)),),
            oracle=(town_target(domain),),
            transferred=(transferred_val(domain),),
        )
    for domain in b.domains:
        rows += (
            Row(
                f"oracle {domain}",
                replace(base, source=town_target(domain, "train"), validation=None),
                targets=(domain,),
            ),
        )
    return Experiment(
        name="zodi benchmark",
        town=TownConfig(),
        transfers={
            "transferred": replace(town_transfer(*b.domains), mode=b.mode),
            "transferred-val": replace(town_transfer(*b.domains, split="val"), mode=b.mode),
        },
        rows=rows,
        targets=tuple(Target(domain, town_target(domain)) for domain in b.domains),
        seeds=b.seeds,
    )


def table(scores: Scores) -> str:
    """Markdown: mIoU % mean ± standard deviation per row, rule and target, and the share of the gap that is
    closed by the last checkpoint."""
    domains = tuple(scores["source only", "last"])
    lines = [
        f"| mIoU % | checkpoint | {' | '.join(domains)} | mean |",
        "|---|---|" + "---|" * (len(domains) + 1),
    ]
    for (row, rules), found in by_checkpoint(scores).items():
        values = " | ".join(spread(found[d]) for d in domains)
        lines.append(f"| {row} | {rules} | {values} | {mean(mean(found[d]) for d in domains):.1f} |")
    source, *ours, oracle = ({d: mean(scores[name, "last"][d]) for d in domains} for name in NAMES)
    for name, row in zip(NAMES[1:3], ours, strict=True):
        gap = [100 * (row[d] - source[d]) / (oracle[d] - source[d]) for d in domains]
        lines.append(
            f"| gap closed, {name} | last | {' | '.join(f'{g:.0f} %' for g in gap)} | {mean(gap):.0f} % |"
        )
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    run_experiment(experiment(b), b.out)
    lines = read_json(b.out / "scores.json", list)
    told = {
        "scores": lines,
        "steps": b.steps,
        "images": b.images,
        "seeds": b.seeds,
        "mode": b.mode,
        "precision": b.precision,
    }
    write_results(b.out, "zodi", table(scores_of(lines)), told | {"protocol": protocol(TownConfig())})


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

"""The town benchmark: source only, source + jitter, ZoDi and the oracle on five targets, mean and deviation over seeds.

    python benchmarks/town.py runs/town-benchmark

Writes OUT/town.md (the README's table) and OUT/town.json (every figure, machine, versions, date). The oracle trains on
labelled frames of the target: not attainable, and the measure of the gap. Running it again continues.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from statistics import mean
from typing import Literal

import tyro
from settings import Trainings, circumstances, protocol

from segshift.config import TownConfig
from segshift.experiments import run_experiment
from segshift.metrics import spread
from segshift.recipes.experiment import Experiment, Row, Target
from segshift.recipes.town import town_target, town_training, town_transfer
from segshift.recipes.zodi import town_rows
from segshift.runs import read_json, write_json

NAMES = ("source only", "source + jitter", "ZoDi", "oracle")


@dataclass(frozen=True)
class Benchmark(Trainings):
    """What is run; the defaults are the README's."""

    mode: Literal["default", "reference"] = "default"
    """Mode of the transfer."""


def experiment(b: Benchmark) -> Experiment:
    """Every training of the table; a network that knows one domain is evaluated there alone."""
    base = replace(town_training(steps=b.steps, images=b.images), validation=None, precision=b.precision)
    source, jitter, *zodi = town_rows(base, b.domains)
    oracles = (Row(f"oracle {domain}", replace(base, source=town_target(domain, "train"))) for domain in b.domains)
    alone = zip((*zodi, *oracles), (*b.domains, *b.domains), strict=True)
    return Experiment(
        name="town benchmark",
        town=TownConfig(),
        transfers={"transferred": replace(town_transfer(*b.domains), mode=b.mode)},
        rows=(source, jitter, *(replace(row, targets=(domain,)) for row, domain in alone)),
        targets=tuple(Target(domain, town_target(domain)) for domain in b.domains),
        seeds=b.seeds,
    )


def scores_of(lines: list[dict]) -> dict[str, dict[str, list[float]]]:
    """mIoU % of every seed by name and target, from the lines of scores.json: "ZoDi night" and its like in one row."""
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in NAMES}
    for line in lines:
        name = line["row"] if line["row"] in NAMES else line["row"].rsplit(" ", 1)[0]
        scores[name] |= line["miou"]
    return scores


def table(scores: dict[str, dict[str, list[float]]], domains: tuple[str, ...]) -> str:
    """Markdown: mIoU % mean ± standard deviation per row and target, and the share of the gap that is closed."""
    lines = [f"| mIoU % | {' | '.join(domains)} | mean |", "|---|" + "---|" * (len(domains) + 1)]
    means = {n: {d: mean(scores[n][d]) for d in domains} for n in NAMES}
    for n in NAMES:
        lines.append(f"| {n} | {' | '.join(spread(scores[n][d]) for d in domains)} | {mean(means[n].values()):.1f} |")
    for n in NAMES[1:3]:
        gap = [100 * (means[n][d] - means["source only"][d]) / (means["oracle"][d] - means["source only"][d]) for d in domains]
        lines.append(f"| gap closed, {n} | {' | '.join(f'{g:.0f} %' for g in gap)} | {mean(gap):.0f} % |")
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    run_experiment(experiment(b), b.out)
    scores = scores_of(read_json(b.out / "scores.json"))
    told = {
        "scores": scores, "steps": b.steps, "images": b.images, "seeds": b.seeds, "mode": b.mode, "precision": b.precision,
        "protocol": protocol(TownConfig()), **circumstances(),
    }  # fmt: skip
    write_json(b.out / "town.json", told)
    (b.out / "town.md").write_text(table(scores, b.domains))
    print(table(scores, b.domains), json.dumps(told["versions"]), sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

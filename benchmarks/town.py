"""The town benchmark: source only, source + jitter, ZoDi and the oracle on five targets, mean and deviation over seeds.

    python benchmarks/town.py runs/town-benchmark

Writes OUT/town.md (the README's table) and OUT/town.json (every figure, machine, versions, date). The oracle trains on
labelled frames of the target: not attainable, and the measure of the gap. Running it again continues.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro

from segshift.config import EvaluateConfig, PredictConfig, TownConfig, TransferConfig
from segshift.experiments import fill, slug
from segshift.recipes import TOWN_DOMAINS, Experiment, Row, Target, town_rows, town_target, town_training
from segshift.runs import read_json, write_json
from segshift.stages import evaluate, predict, train, transfer
from segshift.town import writer


@dataclass(frozen=True)
class Benchmark:
    """What is run; the defaults are the README's."""

    out: tyro.conf.Positional[Path]
    seeds: int = 3
    """Trainings per cell. Town and transferred images are the same for all."""
    steps: int = 300
    """Optimizer steps of every training."""
    images: int = 12
    """Images per step of every training."""
    domains: tuple[str, ...] = TOWN_DOMAINS
    mode: str = "default"
    """Mode of the transfer: default or reference."""


def rows(b: Benchmark, seed: int) -> list[tuple[Row, tuple[str, ...]]]:
    """Each training, and the targets it is evaluated on (a network adapted to one domain only there)."""
    base = replace(town_training(steps=b.steps, images=b.images, seed=seed), validation=None)
    source, jitter, *zodi = town_rows(base, b.domains)
    oracles = (
        Row(f"oracle {d}", replace(base, source=town_target(d, "train"))) for d in b.domains
    )
    one = zip((*zodi, *oracles), (*b.domains, *b.domains), strict=True)
    return [(source, b.domains), (jitter, b.domains), *((row, (domain,)) for row, domain in one)]


def score(row: Row, target: Target, folder: Path) -> float:
    """mIoU % of a trained row on a target, from the PNGs it predicts."""
    predictions, evaluation = folder / "predictions" / target.name, folder / "evaluation" / target.name
    if not (evaluation / "metrics.json").exists():
        predict.predict(PredictConfig(run=str(folder), data=target.data, checkpoint="last"), predictions)
        evaluate.evaluate(EvaluateConfig(predictions=str(predictions), data=target.data), evaluation)
    return 100 * read_json(evaluation / "metrics.json")["miou"]


def table(scores: dict[str, dict[str, list[float]]], domains: tuple[str, ...]) -> str:
    """Markdown: mIoU % mean ± standard deviation per row and target, and the share of the gap that is closed."""

    def cell(values: list[float]) -> str:
        return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"

    names = ("source only", "source + jitter", "ZoDi", "oracle")
    lines = [f"| mIoU % | {' | '.join(domains)} | mean |", "|---|" + "---|" * (len(domains) + 1)]
    means = {n: {d: mean(scores[n][d]) for d in domains} for n in names}
    for n in names:
        lines.append(f"| {n} | {' | '.join(cell(scores[n][d]) for d in domains)} | {mean(means[n].values()):.1f} |")
    for n in names[1:3]:
        gap = [100 * (means[n][d] - means["source only"][d]) / (means["oracle"][d] - means["source only"][d]) for d in domains]
        lines.append(f"| gap closed, {n} | {' | '.join(f'{g:.0f} %' for g in gap)} | {mean(gap):.0f} % |")
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    writer.town(TownConfig(), b.out / "town")
    source = fill(town_target("clear", "train"), {"out": str(b.out)})
    transfer.transfer(TransferConfig(source=source, to=b.domains, mode=b.mode), b.out / "transferred")
    scores: dict[str, dict[str, list[float]]] = {}
    for seed in range(b.seeds):
        for row, domains in rows(b, seed):
            names = {"out": str(b.out)}
            targets = tuple(Target(d, town_target(d)) for d in domains)
            e = fill(Experiment("benchmark", (row,), targets), names)
            folder = b.out / f"seed-{seed}" / slug(row.name)
            train.train(e.rows[0].train, folder)
            name = row.name.rsplit(" ", 1)[0] if row.name.startswith(("ZoDi", "oracle")) else row.name
            for target in e.targets:
                scores.setdefault(name, {}).setdefault(target.name, []).append(score(e.rows[0], target, folder))
        print(table(scores, b.domains), flush=True)
        write_json(
            b.out / "town.json",
            {
                "scores": scores, "steps": b.steps, "images": b.images, "seeds": seed + 1, "mode": b.mode,
                "protocol": "embedded town, 160 source and 160 target training frames, 40 validation frames a domain, "
                "19 classes, 128x256, last checkpoint",
                "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
                "versions": {p: version(p) for p in ("torch", "diffusers", "segmentation-models-pytorch")},
                "date": date.today().isoformat(),
            },
        )  # fmt: skip
        (b.out / "town.md").write_text(table(scores, b.domains))
    print(json.dumps(read_json(b.out / "town.json")["versions"]))


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

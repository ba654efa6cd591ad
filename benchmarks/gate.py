"""The generation gate on the town: ZoDi from gated and from ungated transfers, at 20 and at 10 sampling
steps.

    python benchmarks/gate.py runs/gate-benchmark

The generator is the weaker the fewer steps it takes. Trainings of a seed have equal steps and equal images
per step, whatever their transfer cost; that is reported beside them. The gate's reference network is trained
on the source with jitter, once. Writes OUT/gate.md and OUT/gate.json (every figure, machine, versions, date).
Running it again continues.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import tyro
from settings import Trainings, protocol, scores_of, write_results

from segshift.config import DiffusionConfig, GateConfig, TownConfig
from segshift.recipes.experiment import Experiment, Row, Target, with_validation
from segshift.recipes.runner import ScoreTable, by_checkpoint, fill, run_experiment
from segshift.recipes.town import JITTER, town_target, town_training, town_transfer
from segshift.recipes.zodi import town_rows, transferred_val
from segshift.runs import read_json, read_lines, slug
from segshift.scoring.metrics import spread
from segshift.stages import train
from segshift.town import writer


@dataclass(frozen=True)
class Benchmark(Trainings):
    """What is run. The gate's reference network is the same for all seeds."""

    sampling_steps: tuple[int, ...] = (20, 10)
    """DDIM steps of the transfers that are compared."""
    town: TownConfig = field(default_factory=TownConfig)
    gate: GateConfig = field(default_factory=lambda: GateConfig("{out}/reference"))
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)


def variants(b: Benchmark) -> dict[str, tuple[int, bool]]:
    """By name in the table: DDIM steps, and whether gated."""
    return {
        f"{s} steps, gate {'on' if gated else 'off'}": (s, gated)
        for s in b.sampling_steps
        for gated in (False, True)
    }


def experiment(b: Benchmark) -> Experiment:
    """ZoDi on every variant's images, one training per domain. All are judged on the same transferred
    validation frames, which are made as a user without a gate makes them."""
    base = replace(town_training(steps=b.steps, images=b.images), precision=b.precision)
    transfers = {"transferred-val": replace(town_transfer(*b.domains, split="val"), diffusion=b.diffusion)}
    rows: tuple[Row, ...] = ()
    for name, (steps, gated) in variants(b).items():
        gate = b.gate if gated else None
        transfers[slug(name)] = replace(
            town_transfer(*b.domains), steps=steps, diffusion=b.diffusion, gate=gate
        )
        for domain, row in zip(b.domains, town_rows(base, b.domains)[2:], strict=True):
            images = (f"cityscapes:{{out}}/{slug(name)}/{domain}:train",)
            row = Row(f"{name} {domain}", replace(row.train, transferred=images), targets=(domain,))
            rows += with_validation(
                (row,), oracle=(town_target(domain),), transferred=(transferred_val(domain),)
            )
    targets = tuple(Target(domain, town_target(domain)) for domain in b.domains)
    return Experiment("gate benchmark", rows, targets, transfers, b.town, b.seeds)


def cost(tree: Path) -> dict[str, float]:
    """Of one domain's manifest: seconds a frame with its part of the gate's measuring, and shares of frames
    and of labelled pixels."""
    measuring = tree.parent / "gate.json"
    before = read_json(measuring)["seconds"] if measuring.exists() else 0.0
    domains = len(list(tree.parent.glob("*/manifest.jsonl")))
    lines = read_lines(tree / "manifest.jsonl")
    gates = [line["gate"] for line in lines if "gate" in line]
    share = {
        "redrawn": [gate["tries"] > 1 for gate in gates],
        "failed": [not gate["passed"] for gate in gates],
        "dropped": [gate["decision"] == "dropped" for gate in gates],
        "ignored": [gate["failing_share"] * (gate["decision"] == "ignored") for gate in gates],
        "draws": [gate["tries"] for gate in gates] or [1],
    }
    numbers = {name: float(mean(values)) if values else 0.0 for name, values in share.items()}
    return {"seconds": mean(line["seconds"] for line in lines) + before / domains / len(lines), **numbers}


def table(scores: ScoreTable, costs: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: mIoU % mean ± standard deviation over seeds by variant, rule and target, and what each
    variant cost.
    """
    domains = list(next(iter(scores.values())))
    lines = [
        f"| mIoU % | checkpoint | {' | '.join(domains)} | mean |",
        "|---|---|" + "---|" * (len(domains) + 1),
    ]
    for (row, rules), found in by_checkpoint(scores).items():
        over = [mean(values) for values in zip(*(found[d] for d in domains), strict=True)]  # by seed
        lines.append(
            f"| {row} | {rules} | {' | '.join(spread(found[d]) for d in domains)} | {spread(over)} |"
        )
    lines += [
        "",
        "| transfer | s/frame, measuring included | draws/frame | redrawn | failed after all tries | "
        "dropped | pixels ignored |",
        "|---|" + "---|" * 6,
    ]
    for name, by_domain in costs.items():
        of = {key: mean(by_domain[d][key] for d in domains) for key in by_domain[domains[0]]}
        shares = " | ".join(f"{100 * of[key]:.0f} %" for key in ("redrawn", "failed", "dropped", "ignored"))
        lines.append(f"| {name} | {of['seconds']:.2f} | {of['draws']:.2f} | {shares} |")
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    writer.town(b.town, b.out / "town")
    reference = replace(
        town_training(steps=b.steps, images=b.images), validation=None, jitter=JITTER, precision=b.precision
    )
    train.train(fill(reference, {"out": str(b.out)}), b.out / "reference")
    run_experiment(experiment(b), b.out)
    scores = read_json(b.out / "scores.json", list)
    costs = {name: {d: cost(b.out / slug(name) / d) for d in b.domains} for name in variants(b)}
    told = {
        "scores": scores,
        "transfers": costs,
        "steps": b.steps,
        "images": b.images,
        "seeds": b.seeds,
        "precision": b.precision,
        "thresholds": {
            name: read_json(b.out / slug(name) / "gate.json")
            for name, (_, gated) in variants(b).items()
            if gated
        },
        "protocol": protocol(b.town),
    }
    write_results(b.out, "gate", table(scores_of(scores), costs), told)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

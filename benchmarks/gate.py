"""The generation gate on the town: ZoDi from gated and from ungated transfers, at 20 and at 10 sampling steps.

    python benchmarks/gate.py runs/gate-benchmark

The generator is the weaker the fewer steps it takes. Trainings of a seed have equal steps and equal images per step,
whatever their transfer cost; that is reported beside them. The gate's reference network is trained on the source with
jitter, once. Writes OUT/gate.md and OUT/gate.json (every figure, machine, versions, date). Running it again continues.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro

from segshift.config import (
    DiffusionConfig,
    EvaluateConfig,
    GateConfig,
    PredictConfig,
    TownConfig,
    TransferConfig,
)
from segshift.experiments import fill
from segshift.recipes.town import JITTER, TOWN_DOMAINS, town_target, town_training
from segshift.recipes.zodi import town_rows
from segshift.runs import read_json, read_lines, write_json
from segshift.stages import evaluate, predict, train, transfer
from segshift.town import writer


@dataclass(frozen=True)
class Benchmark:
    """What is run."""

    out: tyro.conf.Positional[Path]
    seeds: int = 3
    """Trainings per cell. Town, reference network and transferred images are the same for all."""
    steps: int = 300
    """Optimizer steps of every training."""
    images: int = 12
    """Images per step of every training."""
    sampling_steps: tuple[int, ...] = (20, 10)
    """DDIM steps of the transfers that are compared."""
    domains: tuple[str, ...] = TOWN_DOMAINS
    town: TownConfig = field(default_factory=TownConfig)
    gate: GateConfig = field(default_factory=lambda: GateConfig("{out}/reference"))
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)


def transferred(b: Benchmark, steps: int, gated: bool) -> Path:
    """The transferred trees of one variant."""
    names = {"out": str(b.out)}
    config = TransferConfig(
        source=fill(town_target("clear", "train"), names), to=b.domains, steps=steps, diffusion=b.diffusion,
        gate=fill(b.gate, names) if gated else None,
    )  # fmt: skip
    return transfer.transfer(config, b.out / f"transferred-{steps}-{'gate' if gated else 'plain'}")


def cost(tree: Path) -> dict[str, float]:
    """Of one domain's manifest: seconds a frame, and shares of frames and of labelled pixels."""
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
    return {"seconds": mean(line["seconds"] for line in lines), **numbers}


def miou(b: Benchmark, tree: Path, domain: str, seed: int) -> float:
    """mIoU % on the target after an adaptation to the transferred `tree`."""
    names = {"out": str(b.out)}
    base = replace(town_training(steps=b.steps, images=b.images, seed=seed), validation=None)
    *_, zodi = town_rows(base, (domain,))
    config = replace(zodi.train, transferred=(f"cityscapes:{tree / domain}:train",))
    folder, data = b.out / f"seed-{seed}" / tree.name / domain, fill(town_target(domain), names)
    train.train(fill(config, names), folder)
    if not (folder / "evaluation" / "metrics.json").exists():
        predict.predict(PredictConfig(run=str(folder), data=data, checkpoint="last"), folder / "predictions")
        evaluate.evaluate(EvaluateConfig(predictions=str(folder / "predictions"), data=data), folder / "evaluation")
    return 100 * read_json(folder / "evaluation" / "metrics.json")["miou"]


def table(scores: dict[str, dict[str, list[float]]], costs: dict[str, dict[str, dict[str, float]]], domains: tuple[str, ...]) -> str:
    """Markdown: mIoU % mean ± standard deviation over seeds by variant and target, and what each variant cost."""

    def cell(values: list[float]) -> str:
        return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"

    lines = [f"| mIoU % | {' | '.join(domains)} | mean |", "|---|" + "---|" * (len(domains) + 1)]
    for name, row in scores.items():
        over = [mean(values) for values in zip(*(row[d] for d in domains), strict=True)]  # by seed
        lines.append(f"| {name} | {' | '.join(cell(row[d]) for d in domains)} | {cell(over)} |")
    lines += ["", "| transfer | s/frame | draws/frame | redrawn | failed after all tries | dropped | pixels ignored |", "|---|" + "---|" * 6]
    for name, by_domain in costs.items():
        of = {key: mean(by_domain[d][key] for d in domains) for key in by_domain[domains[0]]}
        shares = " | ".join(f"{100 * of[key]:.0f} %" for key in ("redrawn", "failed", "dropped", "ignored"))
        lines.append(f"| {name} | {of['seconds']:.2f} | {of['draws']:.2f} | {shares} |")
    return "\n".join(lines) + "\n"


def main(b: Benchmark) -> None:
    writer.town(b.town, b.out / "town")
    reference = replace(town_training(steps=b.steps, images=b.images), validation=None, jitter=JITTER)
    train.train(fill(reference, {"out": str(b.out)}), b.out / "reference")
    trees = {
        f"{steps} steps, gate {'on' if gated else 'off'}": transferred(b, steps, gated)
        for steps in b.sampling_steps
        for gated in (False, True)
    }
    costs = {name: {d: cost(tree / d) for d in b.domains} for name, tree in trees.items()}
    scores: dict[str, dict[str, list[float]]] = {}
    for seed in range(b.seeds):
        for name, tree in trees.items():
            for domain in b.domains:
                scores.setdefault(name, {}).setdefault(domain, []).append(miou(b, tree, domain, seed))
        print(table(scores, costs, b.domains), flush=True)
        write_json(
            b.out / "gate.json",
            {
                "scores": scores, "transfers": costs, "steps": b.steps, "images": b.images, "seeds": seed + 1,
                "thresholds": {name: read_json(tree / "gate.json") for name, tree in trees.items() if name.endswith("on")},
                "protocol": f"embedded town, {b.town.source_train} source frames, {b.town.target_val} validation frames "
                f"a domain, 19 classes, {b.town.height}x{b.town.width}, last checkpoint",
                "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
                "versions": {p: version(p) for p in ("torch", "diffusers", "segmentation-models-pytorch")},
                "date": date.today().isoformat(),
            },
        )  # fmt: skip
        (b.out / "gate.md").write_text(table(scores, costs, b.domains))


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

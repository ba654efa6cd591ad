"""ZoDi on the town, beside its controls and a training on the target's labels, on five targets.

    python benchmarks/zodi.py runs/zodi

Every row by every selection rule that it has a validation set for: the last checkpoint, the best on source
validation, the best on transferred validation, and the best on the target's labels, which is not attainable.
A network for all targets is chosen by the mean over them.

The controls train as ZoDi does, with equal steps and images, on other pictures in place of its own:
    noise            Gaussian noise with the mean and deviation of each of ZoDi's pictures (`noise`)
    weather filters  the source under classical filters (`weather`)
    ZoDi + filters   each frame's picture by ZoDi or by the filters, one or the other by chance
    perfect pictures the same streets as the town itself renders them in the target's weather: what a
                     generator without a fault would be worth (`truth`)

Writes OUT/zodi.md and OUT/zodi.json (every figure,
machine, versions, date). Running it again continues.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean
from typing import Literal

import tyro
from settings import Trainings, protocol, scores_of, write_results

from segshift.config import TownConfig, TransferConfig
from segshift.recipes.experiment import Experiment, Row, Target, with_validation
from segshift.recipes.runner import ScoreTable, by_checkpoint, run_experiment
from segshift.recipes.town import town_target, town_training, town_transfer
from segshift.recipes.zodi import town_rows, transferred_val
from segshift.runs import read_json
from segshift.scoring.metrics import spread

PICTURES = {
    "noise": ("noise-{domain}",),
    "weather filters": ("filters",),
    "ZoDi": ("transferred",),
    "ZoDi + filters": ("transferred", "filters"),
    "perfect pictures": ("truth",),
}
"""Rows that train as ZoDi does, and the folders of transfers that their pictures are from."""
NAMES = ("source only", "source + jitter", *PICTURES, "oracle")


@dataclass(frozen=True)
class Benchmark(Trainings):
    """What is run; the defaults are those of docs/results.md."""

    mode: Literal["default", "reference"] = "default"
    """Mode of the transfer."""
    rows: tuple[str, ...] = NAMES
    """Rows of the table to train."""


def experiment(b: Benchmark) -> Experiment:
    """Every training of the table; a network that knows one domain is evaluated there alone."""
    base = replace(town_training(steps=b.steps, images=b.images), precision=b.precision)
    source, jitter, *zodi = town_rows(base, b.domains)
    everywhere = {
        "oracle": tuple(map(town_target, b.domains)),
        "transferred": tuple(map(transferred_val, b.domains)),
    }
    rows = with_validation((source, jitter), **everywhere)
    for name, folders in PICTURES.items():
        for domain, row in zip(b.domains, zodi, strict=True):
            trees = tuple(f"cityscapes:{{out}}/{f.format(domain=domain)}/{domain}:train" for f in folders)
            rows += with_validation(
                (Row(f"{name} {domain}", replace(row.train, transferred=trees), (domain,)),),
                oracle=(town_target(domain),),
                transferred=(transferred_val(domain),) if "transferred" in folders else (),
            )
    for domain in b.domains:
        rows += (
            Row(
                f"oracle {domain}",
                replace(base, source=town_target(domain, "train"), validation=None),
                targets=(domain,),
            ),
        )
    rows = tuple(row for row in rows if any(row.name in (n, f"{n} {d}") for n in b.rows for d in b.domains))
    transfers = {
        "transferred": replace(town_transfer(*b.domains), mode=b.mode),
        "transferred-val": replace(town_transfer(*b.domains, split="val"), mode=b.mode),
        "filters": replace(town_transfer(*b.domains), generator="weather:build"),
        "truth": replace(town_transfer(*b.domains), generator="truth:build"),
    }
    transfers |= {
        f"noise-{domain}": TransferConfig(
            source=f"cityscapes:{{out}}/transferred/{domain}:train", to=(domain,), generator="noise:build"
        )
        for domain in b.domains
    }
    return Experiment(
        name="zodi benchmark",
        town=TownConfig(),
        transfers={name: config for name, config in transfers.items() if _needed(name, rows, transfers)},
        rows=rows,
        targets=tuple(Target(domain, town_target(domain)) for domain in b.domains),
        seeds=b.seeds,
    )


def _needed(name: str, rows: tuple[Row, ...], transfers: dict[str, TransferConfig]) -> bool:
    """Whether a row, or a transfer that a row needs, reads the folder of this name."""
    if any(f"{{out}}/{name}/" in repr(row.train) for row in rows):
        return True
    readers = [other for other, config in transfers.items() if f"{{out}}/{name}/" in config.source]
    return any(_needed(other, rows, transfers) for other in readers)


def table(scores: ScoreTable) -> str:
    """Markdown: mIoU % mean ± standard deviation per row, rule and target, and the share of the gap that is
    closed by the last checkpoint."""
    domains = tuple(dict.fromkeys(domain for found in scores.values() for domain in found))
    lines = [
        f"| mIoU % | checkpoint | {' | '.join(domains)} | mean |",
        "|---|---|" + "---|" * (len(domains) + 1),
    ]
    for (row, rules), found in by_checkpoint(scores).items():
        values = " | ".join(spread(found[d]) for d in domains)
        lines.append(f"| {row} | {rules} | {values} | {mean(mean(found[d]) for d in domains):.1f} |")
    means = {
        name: {d: mean(scores[name, "last"][d]) for d in domains}
        for name in NAMES
        if (name, "last") in scores
    }
    source, oracle = means.pop("source only", None), means.pop("oracle", None)
    for name, row in means.items() if source and oracle else ():
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

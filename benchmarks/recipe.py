"""A recipe's table over seeds, with machine, versions and date: the ablations of both methods, and ICCLD on
the town.

    python benchmarks/recipe.py zodi-town-ablations runs/zodi-ablations
    python benchmarks/recipe.py iccld-town-game-ablations runs/iccld-game --seeds 3 --precision bf16

Runs what `segshift run NAME OUT` runs. Writes OUT/<name>.md and OUT/<name>.json: mIoU % per row and target,
and for rows that were predicted with uncertainty the area under the curve of risk against coverage (the less,
the better a map ranks the errors). Running it again continues.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Literal

import tyro
from settings import scores_of, write_results

from segshift.recipes import RECIPES
from segshift.recipes.experiment import Experiment, Row
from segshift.recipes.runner import by_checkpoint, fill, run_experiment
from segshift.runs import InputError, read_json, slug
from segshift.scoring.metrics import spread

Values = dict[str, dict[str, list[float]]]
"""By row and column, one value a seed."""


@dataclass(frozen=True)
class Benchmark:
    """What is run."""

    name: tyro.conf.Positional[str]
    """Name of a recipe."""
    out: tyro.conf.Positional[Path]
    seeds: int = 3
    """Trainings of every row."""
    rows: tuple[str, ...] = ()
    """Rows to run, by name; none takes all."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of every training."""
    data: dict[str, str] = field(default_factory=dict)
    """Where the data sets that the recipe names are unpacked, as for `segshift run`."""


def experiment(b: Benchmark) -> Experiment:
    """Raises: InputError for a recipe that is not there, and as `chosen`."""
    if b.name not in RECIPES:
        raise InputError(f"no recipe '{b.name}': there are {', '.join(RECIPES)}")
    e = fill(RECIPES[b.name], b.data, keep=("out", "rows"))
    rows = (replace(row, train=replace(row.train, precision=b.precision)) for row in chosen(e.rows, b.rows))
    return replace(e, rows=tuple(rows), seeds=b.seeds)


def chosen(rows: tuple[Row, ...], names: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows of these names; all for none. Raises: InputError for a row that is not there."""
    there = [row.name for row in rows]
    if unknown := [name for name in names if name not in there]:
        raise InputError(f"no row '{unknown[0]}': there are {', '.join(there)}")
    return tuple(row for row in rows if row.name in (names or there))


def areas(e: Experiment, out: Path) -> dict[str, Values]:
    """By target: the area under risk against coverage, times 1,000, of every map (columns), row and
    sampling."""
    found: dict[str, Values] = {}
    for row in (row for row in e.rows if row.uncertainty):
        targets = [t.name for t in e.targets if not row.targets or t.name in row.targets]
        places = [(target, row.name, target) for target in targets]
        places += [
            (targets[0], f"{row.name}, DDIM steps {s}, draws {d}", f"{targets[0]}-steps-{s}-draws-{d}")
            for s, d in row.samplings
        ]
        for (target, name, place), seed in product(places, range(e.seeds)):
            metrics = read_json(
                out / f"seed-{seed}" / slug(row.name) / "evaluation" / "last" / place / "metrics.json"
            )
            for kind, curve in metrics.get("risk_coverage", {}).items():
                found.setdefault(target, {}).setdefault(name, {}).setdefault(kind, []).append(
                    1000 * curve["area"]
                )
    return found


def table(head: str, values: Values) -> str:
    """Markdown: mean ± standard deviation over seeds. A " | " in `head` and in the rows' names parts the
    first columns.
    """
    columns = list(dict.fromkeys(name for row in values.values() for name in row))
    lines = [f"| {head} | {' | '.join(columns)} |", "|" + "---|" * (1 + head.count(" | ") + len(columns))]
    lines += [
        f"| {name} | {' | '.join(spread(row.get(c, [])) for c in columns)} |" for name, row in values.items()
    ]
    return "\n".join(lines) + "\n"


def tables(scores: list[dict], risks: dict[str, Values]) -> str:
    """Markdown: mIoU % by row and checkpoint of the lines of scores.json, and what `areas` found by
    target."""
    lines = {f"{row} | {rules}": found for (row, rules), found in by_checkpoint(scores_of(scores)).items()}
    return "\n".join(
        [
            table("mIoU % | checkpoint", lines),
            *(table(f"risk-coverage area x 1000, {t}", v) for t, v in risks.items()),
        ]
    )


def write_tables(e: Experiment, out: Path, name: str, **told: object) -> None:
    """Write OUT/<name>.md and, with what else is `told`, OUT/<name>.json of an experiment that was run; print
    the tables.
    """
    scores, risks = read_json(out / "scores.json", list), areas(e, out)
    write_results(out, name, tables(scores, risks), {"scores": scores, "risk_coverage_area": risks, **told})


def main(b: Benchmark) -> None:
    e = experiment(b)
    run_experiment(e, b.out)
    write_tables(e, b.out, b.name, seeds=b.seeds, precision=b.precision)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

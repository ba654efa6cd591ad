"""Run a named experiment: its stages in order, each skipping what is finished (ours)."""

from __future__ import annotations

import re
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from segshift.config import EvaluateConfig, PredictConfig, ReportConfig, TrainConfig, TransferConfig
from segshift.recipes import RECIPES, Experiment
from segshift.runs import InputError, begin, read_config, read_json, tuples
from segshift.stages import evaluate, predict, report, train, transfer
from segshift.town import writer

T = TypeVar("T")

_STAGES = {
    "transfer": (TransferConfig, transfer.transfer), "train": (TrainConfig, train.train), "predict": (PredictConfig, predict.predict),
    "evaluate": (EvaluateConfig, evaluate.evaluate), "report": (ReportConfig, report.report),
}  # fmt: skip


def recipes() -> Table:
    """Every recipe with the number its paper published."""
    view = Table("recipe", "published", title="recipes", caption="run one: segshift run NAME OUT --data cityscapes /data/cityscapes ...")
    for recipe in RECIPES.values():
        view.add_row(recipe.name, recipe.published or "(embedded town)")
    return view


def run(name: str, out: Path | None = None, data: dict[str, str] | None = None) -> Path:
    """Run a recipe by name, or repeat a run from its `config.json`.

    `data`: where the data sets that the recipe names are unpacked, by name. Raises: InputError.
    """
    if name.endswith(".json"):
        path = Path(name)
        stage = read_json(path).get("stage")
        out = out or path.parent
        if stage in _STAGES:
            kind, function = _STAGES[stage]
            return function(read_config(path, kind), out)
        return run_experiment(read_config(path, Experiment), out)
    if name not in RECIPES:
        raise InputError(f"no recipe '{name}': there are {', '.join(RECIPES)}; or name the config.json of a run")
    return run_experiment(fill(RECIPES[name], data or {}, keep="out"), out or Path("runs") / name)


def fill(value: T, names: dict[str, str], keep: str | None = None) -> T:
    """Replace `{name}` in a string, or in every string of a dataclass. Raises: InputError for a name that is not given."""

    def replace_in(item: Any) -> Any:
        if isinstance(item, str):
            return re.sub(r"\{(\w+)\}", found, item)
        if isinstance(item, dict):
            return {key: replace_in(each) for key, each in item.items()}
        return tuple(replace_in(each) for each in item) if isinstance(item, list | tuple) else item

    def found(match: re.Match) -> str:
        if match[1] == keep:
            return match[0]
        if match[1] not in names:
            raise InputError(f"where is {match[1]} unpacked? add --data {match[1]} /path/to/{match[1]}")
        return str(names[match[1]])

    return TypeAdapter(type(value)).validate_python(tuples(replace_in(asdict(value) if is_dataclass(value) else value)))


def run_experiment(experiment: Experiment, out: Path) -> Path:
    """Town (if any), transfer, train each row, predict and evaluate it on each target, report. Returns `out`.

    Raises: InputError, also when `out` holds another experiment.
    """
    begin(out, "run", experiment)
    e = fill(experiment, {"out": str(out)})
    say = Console()
    if e.town is not None:
        say.rule("town")
        writer.town(e.town, out / "town")
    shown: list[str] = []
    if e.transfer is not None:
        say.rule(f"transfer to {', '.join(e.transfer.to)}")
        shown.append(str(transfer.transfer(e.transfer, out / "transferred")))
    scores: dict[str, dict[str, float]] = {}
    for row in e.rows:
        folder = out / slug(row.name)
        say.rule(f"train: {row.name}")
        train.train(row.train, folder)
        shown.append(str(folder))
        scores[row.name] = {}
        for target in e.targets:
            predictions, evaluation = folder / "predictions" / target.name, folder / "evaluation" / target.name
            predict.predict(
                PredictConfig(run=str(folder), data=target.data, device=row.train.device), predictions
            )
            evaluate.evaluate(
                EvaluateConfig(predictions=str(predictions), data=target.data, classes=row.train.classes), evaluation
            )
            scores[row.name][target.name] = read_json(evaluation / "metrics.json")["miou"]
            shown.append(str(evaluation))
    say.print(table(e, scores))
    page = report.report(ReportConfig(runs=tuple(shown), title=e.name), out)
    say.print(f"page: {page / 'index.html' if page.is_dir() else page}")
    return out


def table(experiment: Experiment, scores: dict[str, dict[str, float]]) -> Table:
    """mIoU % per row and target, and each row's gain over the first."""
    title = f"{experiment.name}: mIoU % on the target's labels, which no training saw"
    view = Table(title=title, caption=f"published: {experiment.published}" if experiment.published else None)
    view.add_column("")
    for target in experiment.targets:
        view.add_column(target.name, justify="right")
    first = scores[experiment.rows[0].name]
    for row in experiment.rows:
        view.add_row(row.name, *(f"{100 * scores[row.name][t.name]:.1f}" for t in experiment.targets))
    for row in experiment.rows[1:]:
        gains = (100 * (scores[row.name][t.name] - first[t.name]) for t in experiment.targets)
        view.add_row(f"{row.name}, gain", *(f"{gain:+.1f}" for gain in gains), style="bold")
    return view


def slug(text: str) -> str:
    """A folder name: lower case, words joined by '-'."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

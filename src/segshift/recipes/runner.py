"""Run a named experiment: its stages in order, each skipping what is finished (ours)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from segshift import execution, networks, outputs, records
from segshift.config import (
    CHECKPOINTS,
    EngineConfig,
    EstimateConfig,
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    Select,
    TownConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.data import frames
from segshift.page import build
from segshift.recipes import RECIPES
from segshift.recipes.experiment import Experiment, Row, Target
from segshift.runs import (
    InputError,
    Saved,
    failures,
    read_config,
    read_json,
    slug,
    tuples,
    user_path,
    write_failures,
    write_json,
)
from segshift.scoring.metrics import spread
from segshift.settings import inputs
from segshift.stages import estimate, evaluate, predict, report, train, transfer
from segshift.town import writer
from segshift.training import checkpoints

T = TypeVar("T")
ScoreTable = dict[tuple[str, Select], dict[str, list[float]]]
"""By row and selection rule: mIoU % by target, one for each seed."""

_STAGES: dict[str, tuple[type, Callable[..., Path]]] = {
    "town": (TownConfig, writer.town),
    "transfer": (TransferConfig, transfer.transfer),
    "train": (TrainConfig, train.train),
    "predict": (PredictConfig, predict.predict),
    "evaluate": (EvaluateConfig, evaluate.evaluate),
    "estimate": (EstimateConfig, estimate.estimate),
    "report": (ReportConfig, report.report),
}


def run(
    name: str | os.PathLike[str],
    out: str | Path | None = None,
    data: dict[str, str] | None = None,
    seeds: int | None = None,
    where: EngineConfig = EngineConfig(),
) -> Path:
    """Run a recipe by name, or repeat a run from its `config.json`.

    `data`: where the data sets that the recipe names are unpacked, by name. `seeds`: trainings of every row,
    1 or more; None for the experiment's own number. `where`: what does the work. Raises: InputError.
    """
    name = os.fspath(name)
    if seeds is not None and not isinstance(seeds, int):
        raise InputError(f"seeds is {seeds!r}: expected a whole number of trainings of every row")
    if name.endswith(".json"):
        path = Path(user_path(name))
        stage = read_json(path, Saved)["stage"]
        out = out or path.parent
        if stage in _STAGES and seeds is not None:
            raise InputError(
                f"{path} is a run of one stage, {stage}, and only recipes run over seeds: leave --seeds out"
            )
        if stage in _STAGES:
            kind, function = _STAGES[stage]
            config: Any = read_config(path, kind)
            if where != EngineConfig():
                if not hasattr(config, "where"):
                    raise InputError(f"{path} is a run of {stage}, which is one process: leave --engine out")
                config = replace(config, where=where)
            return function(config, out)
        if stage != "run":
            raise InputError(
                f"{path} is of stage '{stage}', expected run, {', '.join(_STAGES)}: give its own command "
                "again"
            )
        experiment = read_config(path, Experiment)
    elif name in RECIPES:
        experiment, out = fill(RECIPES[name], data or {}, keep=("out", "rows")), out or Path("runs") / name
    else:
        raise InputError(
            f"no recipe '{name}': there are {', '.join(RECIPES)}; or name the config.json of a run"
        )
    return run_experiment(experiment if seeds is None else replace(experiment, seeds=seeds), out, where)


def fill(value: T, names: dict[str, str], keep: tuple[str, ...] = ()) -> T:
    """Replace `{name}` in a string, or in every string of a dataclass, but for the names to `keep`.

    Raises: InputError for a name that is not given.
    """

    def replace_in(item: Any) -> Any:
        if isinstance(item, str):
            return re.sub(r"\{(\w+)\}", found, item)
        if isinstance(item, dict):
            return {key: replace_in(each) for key, each in item.items()}
        return tuple(replace_in(each) for each in item) if isinstance(item, list | tuple) else item

    def found(match: re.Match) -> str:
        if match[1] in keep:
            return match[0]
        if match[1] not in names:
            raise InputError(f"where is {match[1]} unpacked? add --data {match[1]} /path/to/{match[1]}")
        return str(names[match[1]])

    return TypeAdapter(type(value)).validate_python(
        tuples(replace_in(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value))
    )


def run_experiment(experiment: Experiment, out: str | Path, where: EngineConfig = EngineConfig()) -> Path:
    """Town (if any), transfers, every row trained on every seed, predicted and evaluated by every selection
    rule that it has a set for, and a report. Returns `out`; OUT/scores.json holds the table: mIoU % of every
    seed by row, checkpoint and target.

    Trainings are in `OUT/seed-<n>/<row>`; an experiment that is finished can be continued with more seeds.
    Frames that failed in a transfer are listed in OUT/failures.jsonl. `where`: an engine transfers the frames
    on all of its workers, and then gives each a row of a seed. Raises: InputError, also when `out` holds
    another experiment; before anything is written for data sets that are not there.
    """
    execution.one_process("run", execution.STAGES_FIRST)
    if experiment.seeds < 1:
        raise InputError(f"--seeds is {experiment.seeds}, expected 1 or more trainings of every row")
    output = outputs.open_output(
        out, "run", experiment, free=("seeds",), begun=lambda out: any(out.glob("*/**/config.json"))
    )
    _preflight(experiment)
    with outputs.alone(output.path):
        output.claim()
        _run(fill(experiment, {"out": str(output.path)}, keep=("rows",)), output.path, where)
    return output.path


def _run(e: Experiment, out: Path, where: EngineConfig) -> None:
    """The stages of an experiment whose paths are filled in, but for the rows'."""
    say = Console()
    if e.town is not None:
        say.rule("town")
        writer.town(e.town, out / "town")
    shown: list[str] = []
    for folder, config in e.transfers.items():
        say.rule(f"{folder}: {', '.join(config.to)}")
        shown.append(str(transfer.transfer(replace(config, where=where), out / folder)))
    write_failures(out, [line for folder in shown for line in failures(Path(folder))])
    scores: ScoreTable = {}
    job = Trainings(e, out)
    todo = [(seed, i) for seed in range(e.seeds) for i in range(len(e.rows))]
    found: dict[tuple[int, int], tuple[list[str], ScoreTable]] = {}
    complete = 0
    with (
        execution.workers(where, job, e.rows[0].train.device) as workers,
        execution.draining() as asked,
    ):
        for result in workers.map("rows", todo, asked, job.after(todo)):
            if isinstance(result, execution.Lost):
                seed, i = result.item
                raise InputError(f"row '{e.rows[i].name}', seed {seed}: {result.why}; run again to continue")
            key, folders, part = result
            found[key] = folders, part
            while complete < e.seeds and all((complete, i) in found for i in range(len(e.rows))):
                for i in range(len(e.rows)):
                    folders, part = found[complete, i]
                    shown += folders
                    for line, by_target in part.items():
                        for target, values in by_target.items():
                            scores.setdefault(line, {}).setdefault(target, []).extend(values)
                lines = [{"row": row, "checkpoint": rule, "miou": by} for (row, rule), by in scores.items()]
                write_json(out / "scores.json", lines)
                say.print(table(e, scores))
                complete += 1
    page = report.write(build.page(ReportConfig(runs=tuple(shown), title=e.name)), out)
    say.print(f"page: {page / 'index.html'}")


@dataclass(frozen=True)
class Trainings:
    """The job of a worker: rows of an experiment."""

    experiment: Experiment
    out: Path

    def home(self, seed: int) -> Path:
        return self.out / f"seed-{seed}"

    def of(self, seed: int) -> tuple[Row, ...]:
        return fill(self.experiment, {"rows": str(self.home(seed))}).rows

    def after(self, items: Sequence[tuple[int, int]]) -> list[list[int]]:
        """By (seed, number of the row): the indices of those whose folders its training reads."""
        found: list[list[int]] = []
        for k, (seed, i) in enumerate(items):
            rows = self.of(seed)
            read = " ".join(inputs(rows[i].train))
            found.append(
                [
                    j
                    for j in range(k)
                    if items[j][0] == seed and str(self.home(seed) / slug(rows[items[j][1]].name)) in read
                ]
            )
        return found

    def rows(
        self, items: Iterable[tuple[int, int]], asked: Callable[[], bool]
    ) -> Iterator[tuple[tuple[int, int], list[str], ScoreTable]]:
        """Of each (seed, number of the row): itself, the folders to report on, and the scores."""
        for seed, i in items:
            if asked():
                return
            row = self.of(seed)[i]
            Console().rule(f"train: {row.name}, seed {seed}")
            scores: ScoreTable = {}
            shown = _row(row, self.experiment.targets, self.home(seed) / slug(row.name), seed, scores)
            yield (seed, i), shown, scores


def _preflight(experiment: Experiment) -> None:
    """Whether the user's data sets are there, and the weights that encoders start from, which are downloaded
    here: all that a later stage would miss, before the first one has taken its days. Raises: InputError."""
    trainings = [row.train for row in experiment.rows]
    given: list[str | None] = [config.source for config in experiment.transfers.values()]
    given += [target.data for target in experiment.targets]
    for t in trainings:
        given += [t.source, *t.more_sources, t.validation, *t.transferred_validation, *t.oracle_validation]
    unlabelled = [name for t in trainings for name in (t.target, *t.transferred)]
    data = {
        name: frames.load(name)
        for name in dict.fromkeys(filter(None, given + unlabelled))
        if "{out}" not in name
    }
    for name in data.keys() & set(given):
        frames.require_labels(data[name])
    used = [
        (t.network, data[t.source].space.classes)
        for t in trainings
        if t.source in data and t.network.pretrained
    ]
    for i, (network, classes) in enumerate(used):
        if (network, classes) not in used[:i]:
            networks.build(network, classes)


def _row(row: Row, targets: tuple[Target, ...], folder: Path, seed: int, scores: ScoreTable) -> list[str]:
    """Train a row on a seed and add its `scores`; returns the folders to report on. A checkpoint that several
    rules choose is predicted and evaluated once, in the folder of the first of them."""
    config = replace(row.train, seed=row.train.seed + seed)
    train.train(config, folder)
    shown = [str(folder)]
    chosen = [target for target in targets if not row.targets or target.name in row.targets]
    steps_of = checkpoints.chosen_steps(folder)
    alike: dict[int | None, list[Select]] = {}
    for rule in checkpoints.rules(config):
        alike.setdefault(steps_of.get(rule), []).append(rule)  # rules that choose the same step, by it
    jobs: list[tuple[tuple[Select, ...], Target, tuple[int, int] | None]]
    jobs = [(tuple(rules), target, None) for rules, target in product(alike.values(), chosen)]
    jobs += [(("last",), chosen[0], sampling) for sampling in row.samplings]
    for rules, target, sampling in jobs:
        rule = rules[0]
        steps, draws = sampling or (None, None)
        name = row.name if sampling is None else f"{row.name}, DDIM steps {steps}, draws {draws}"
        place = target.name if sampling is None else f"{target.name}-steps-{steps}-draws-{draws}"
        predictions, evaluation = (folder / stage / rule / place for stage in ("predictions", "evaluation"))
        settings = PredictConfig(
            run=str(folder),
            data=target.data,
            checkpoint=rule,
            device=config.device,
            uncertainty=row.uncertainty and rule == "last",
            sampling_steps=steps,
            draws=draws,
        )
        predict.predict(settings, predictions)
        evaluate.evaluate(
            EvaluateConfig(predictions=str(predictions), data=target.data, classes=config.classes), evaluation
        )
        miou = read_json(evaluation / "metrics.json", records.METRICS)["miou"]
        if miou is None:
            raise InputError(
                f"{target.data} has no labelled pixel and no score: name labelled frames as the target "
                f"'{target.name}'"
            )
        for rule in rules:
            scores.setdefault((name, rule), {}).setdefault(target.name, []).append(100 * miou)
        shown.append(str(evaluation))
    return shown


def table(experiment: Experiment, scores: ScoreTable) -> Table:
    """mIoU % per row, selection rule and target, and each row's gain over the first by the same rule."""
    title = f"{experiment.name}: mIoU % on the target's labels, which no training saw"
    about = [f"published: {experiment.published}"] if experiment.published else []
    about += ["mean ± standard deviation over seeds"] if experiment.seeds > 1 else []
    view = Table(title=title, caption="; ".join(about) or None)
    view.add_column("")
    view.add_column("checkpoint")
    for target in experiment.targets:
        view.add_column(target.name, justify="right")
    for (row, rules), found in by_checkpoint(scores).items():
        view.add_row(row, rules, *(spread(found.get(t.name, [])) for t in experiment.targets))
    for (row, rules), found in by_checkpoint(gains(scores, experiment.rows[0].name)).items():
        view.add_row(
            f"{row}, gain",
            rules,
            *(spread(found.get(t.name, []), "+") for t in experiment.targets),
            style="bold",
        )
    return view


def by_checkpoint(scores: ScoreTable) -> dict[tuple[str, str], dict[str, list[float]]]:
    """By row and checkpoint, a line of a table each. Rules by which a row has the same scores everywhere
    share a line. Rows called oracle are trained on the target's labels."""
    lines: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in dict.fromkeys(row for row, _ in scores):
        called = re.sub("^oracle", "trained on the target's labels (not attainable)", row)
        rules = [rule for name, rule in scores if name == row]
        while rules:
            alike = [rule for rule in rules if scores[row, rule] == scores[row, rules[0]]]
            lines[called, ", ".join(CHECKPOINTS[rule] for rule in alike)] = scores[row, rules[0]]
            rules = [rule for rule in rules if rule not in alike]
    return lines


def gains(scores: ScoreTable, first: str) -> ScoreTable:
    """Of every other row over the row `first` of the same rule, target and seed."""
    return {
        (row, rule): {
            target: [
                ours - theirs
                for ours, theirs in zip(values, scores[first, rule].get(target, []), strict=False)
            ]
            for target, values in found.items()
        }
        for (row, rule), found in scores.items()
        if row != first and (first, rule) in scores
    }

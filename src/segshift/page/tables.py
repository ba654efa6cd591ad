"""The headline tables of a report: a row for each checkpoint, a column for each domain, and a table for each
set of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from segshift import records
from segshift.data import frames
from segshift.page import charts, inputs
from segshift.page.inputs import Folder
from segshift.runs import InputError
from segshift.scoring import predictions
from segshift.scoring.metrics import spread


@dataclass(frozen=True)
class ScoredModel:
    """One row of the headline table: a run's checkpoint, or a folder of predictions from elsewhere."""

    key: str
    name: str
    about: str
    """Which checkpoint, and what was sampled."""
    rules: tuple[str, ...]
    """Selection rules that choose this checkpoint; of predictions from elsewhere, what is known instead."""
    details: str
    """`about` without the checkpoint."""
    seed: Path | None = None
    """The folder `seed-<n>` of an experiment, of a run in it."""
    row: str = ""
    """Its row in the experiment's table."""

    @property
    def oracle(self) -> bool:
        """Whether it saw labels of the target: its checkpoint was chosen by them, or it is called the
        oracle."""
        return self.rules == ("oracle",) or self.name.lower().split("/")[-1].startswith("oracle")


@dataclass
class Column:
    """One column of the headline table: the frames of one domain, evaluated under one protocol."""

    name: str
    about: str
    data: str
    classes: tuple[str, ...]
    scores: dict[str, records.Scores] = field(default_factory=dict)
    """By key of the model: one part of its metrics.json (miou, pixel_accuracy, iou, confusion, calibration,
    ...).
    """
    sources: dict[str, tuple[Folder, str | None]] = field(default_factory=dict)
    """By key of the model: the evaluation, and the domain to take its frames from (None: all together)."""
    models: list[ScoredModel] = field(default_factory=list)

    @property
    def best(self) -> float | None:
        """The highest mIoU % of the column that is attainable, where there is something to be better than."""
        found = self.values([model for model in self.models if not model.oracle])
        return max(found) if len(found) > 1 else None

    @property
    def calibrated(self) -> set[str]:
        """Keys of the models whose confidence was evaluated."""
        return {key for key, scores in self.scores.items() if scores.get("calibration")}

    def values(self, models: Sequence[ScoredModel], name: str | None = None) -> list[float]:
        """mIoU %, or IoU % of a class, of the models that have one here."""
        scores = [self.scores[m.key] for m in models if m.key in self.scores]
        found = [s["iou"][name] if name else s["miou"] for s in scores]
        return [100 * value for value in found if value is not None]

    def difference(
        self, model: ScoredModel, first: ScoredModel | None, name: str | None = None
    ) -> float | None:
        """Points of mIoU, or of a class' IoU, of a model over the first; None where one of them has none."""
        if first is None or not {model.key, first.key} <= self.scores.keys():
            return None
        scores = (self.scores[model.key], self.scores[first.key])
        ours, theirs = (s["iou"][name] if name else s["miou"] for s in scores)
        return None if ours is None or theirs is None else 100 * (ours - theirs)


@dataclass
class Group:
    """Columns over the same classes, with the models that have a score there."""

    classes: tuple[str, ...]
    colours: dict[str, str]
    models: list[ScoredModel] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)

    def first(self, model: ScoredModel, rule: str | None = None) -> ScoredModel | None:
        """What a model's gain is counted from: in an experiment its first row, of the same seed, chosen by
        the same `rule` or by one of the rules that choose the model. Of a run outside an experiment, the
        first that shares its rule, or else the first of all. None where that is not there, or is the model
        itself."""
        rules = {rule} if rule else set(model.rules)
        alike = [m for m in self.models if m.seed == model.seed and rules & set(m.rules)]
        if model.seed:
            row = next(m.row for m in self.models if m.seed and m.seed.parent == model.seed.parent)
            found = next((m for m in alike if m.row == row), None)
        else:
            found = alike[0] if alike[0] != model else self.models[0]
        return None if found == model else found

    def called(self, model: ScoredModel) -> str:
        """The model's name, and what tells it from others of that name."""
        alike = [set(other.about.split(", ")) for other in self.models if other.name == model.name]
        return ", ".join(
            [model.name, *(part for part in model.about.split(", ") if part not in set.intersection(*alike))]
        )

    def heading(self, column: Column) -> str:
        """What stands under a column's name: its data, and what tells it from other columns of that name."""
        others = [other for other in self.columns if other is not column and other.name == column.name]
        first, *rest = column.about.split("; ")
        apart = [part for part in rest if any(part not in other.about.split("; ") for other in others)]
        return "; ".join(
            [first, *apart, *([column.data] if any(other.about == column.about for other in others) else ())]
        )

    @property
    def over_seeds(self) -> list[tuple[str, str, tuple[tuple[ScoredModel, ScoredModel | None], ...]]]:
        """Name, checkpoint, and every seed's model with what it gains over, of rows with several seeds. Rules
        that choose the same checkpoint in every seed, and the same to gain over, share a line."""
        by_rule: dict[tuple[Path, str, str], dict[str, list[ScoredModel]]] = {}
        for model in self.models:
            if model.seed is None:
                continue
            seeds_of = by_rule.setdefault((model.seed.parent, model.row, model.details), {})
            for rule in model.rules:
                seeds_of.setdefault(rule, []).append(model)
        lines: dict[tuple, list[str]] = {}
        for key, found in by_rule.items():
            seeds = max(map(len, found.values()))
            for rule, models in found.items():
                # Of one sampling, other rules may choose its checkpoint in some seeds
                if 1 < len(models) == seeds:
                    pairs = tuple((model, self.first(model, rule)) for model in models)
                    lines.setdefault((*key, pairs), []).append(rule)
        several = len({home for home, *_ in lines}) > 1
        return [
            (
                f"{home.name}/{name}" if several else name,
                ", ".join(filter(None, (predictions.selection(rules), details))),
                pairs,
            )
            for (home, name, details, pairs), rules in lines.items()
        ]

    def spread(
        self, column: Column, pairs: Sequence[tuple[ScoredModel, ScoredModel | None]], name: str | None = None
    ) -> tuple[str, str]:
        """mIoU %, or IoU % of a class, and gain, mean ± standard deviation over seeds; with their number
        where some lack it.
        """
        first = pairs[0][0].seed
        assert first is not None
        home = first.parent
        seeds = len({model.seed for model in self.models if model.seed and model.seed.parent == home})
        gains = [gain for pair in pairs if (gain := column.difference(*pair, name)) is not None]
        found = ((column.values([model for model, _ in pairs], name), ""), (gains, "+"))
        own, over = (
            spread(v, sign) + (f" (n = {len(v)})" if 0 < len(v) < seeds else "") for v, sign in found
        )
        return own, over

    def risks(self, column: Column) -> list[tuple[str, Markup]]:
        """Line charts of the error rate against the share of pixels kept, a chart a map, a curve a model."""
        curves: dict[str, dict[int, list[tuple[float, float]]]] = {}
        for model in column.models:
            for name, found in column.scores[model.key].get("risk_coverage", {}).items():
                points = zip(found["coverage"], found["risk"], strict=True)
                curves.setdefault(name, {})[self.models.index(model)] = [
                    (100 * k, 100 * r) for k, r in points
                ]
        names = [self.called(model) for model in self.models]
        return [
            (name, Markup(charts.line_chart(f"errors kept by {name}", c, names)))
            for name, c in curves.items()
        ]


def groups_of(evaluations: Sequence[Folder]) -> list[Group]:
    """The tables of all evaluations. Raises: InputError for files that are broken, and for two folders that
    evaluate the same predictions."""
    groups: dict[tuple, Group] = {}
    columns: dict[tuple, Column] = {}
    results = [inputs.scores(folder) for folder in evaluations]
    pairs = zip(evaluations, results, strict=True)
    homes = [r["model"]["run"] if r["model"] else f.config.predictions for f, r in pairs]
    for folder, result, home, name in zip(evaluations, results, homes, inputs.names(homes), strict=True):
        classes = tuple(result["classes"])
        key = (result["data"]["space"], classes)
        group = groups.setdefault(key, Group(classes, result["colours"]))
        made: Mapping[str, Any] = result["model"] or {"selection": "predictions from elsewhere"}
        about = predictions.how(made)
        run = Path(home).resolve()
        seed = run.parent if re.fullmatch(r"seed-\d+", run.parent.name) else None
        rules = tuple(made.get("rules") or [made["selection"]])
        row = inputs.TITLES.get(run.name, run.name) if seed else ""
        model = ScoredModel(f"{run} {about}", name, about, rules, predictions.details(made), seed, row)
        if model not in group.models:
            group.models.append(model)
        # its frames kept their source's domain
        tree = f"{Path(folder.config.data.split(':')[1]).name}, transferred"
        moved = result["data"]["transferred"] and len(result["domains"]) == 1
        parts: dict[str, tuple[records.Scores, str | None]] = {
            tree if moved else domain: (scores, domain) for domain, scores in result["domains"].items()
        }
        if len(parts) > 1:
            parts["all"] = (result, None)
        for title, (scores, domain) in parts.items():
            setting = result["setting"]  # the selection of the checkpoint belongs to the row
            layout, root, subset = frames.split(folder.config.data)
            place = (key, title, setting, layout, root.resolve(), subset)
            if place not in columns:
                columns[place] = Column(title, setting, folder.config.data, classes)
                group.columns.append(columns[place])
            column = columns[place]
            if column.scores.get(model.key) == scores:
                continue  # of another rule that chooses the same checkpoint
            if model.key in column.scores:
                other = column.sources[model.key][0].path
                raise InputError(
                    f"{other} and {folder.path} evaluate the same predictions of {name} on {title}: name "
                    "one of them"
                )
            column.models.append(model)
            column.scores[model.key] = scores
            column.sources[model.key] = (folder, domain)
    return list(groups.values())

"""Report: one self-contained page over runs (ours).

The page reads what the other stages wrote and computes no score of its own: trainings, evaluations,
estimates, predictions without labels, and transferred trees, each recognised by its config.json. Scores are
grouped by the classes they are a mean over, and groups are never mixed: a mean over 19 classes and one over
11 share no table.
"""

from __future__ import annotations

import json
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segshift import records, runs
from segshift.config import (
    EstimateConfig,
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.data import frames
from segshift.data.labels import LabelSpace
from segshift.methods import METHODS
from segshift.page import charts as drawing
from segshift.page import gallery
from segshift.page.gallery import Gallery, Pictures, Predicted
from segshift.runs import InputError
from segshift.scoring import bootstrap, estimate, metrics, predictions
from segshift.scoring.metrics import spread

_log = logging.getLogger(__name__)

_STAGES: dict[str, type] = {
    "train": TrainConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "estimate": EstimateConfig,
    "transfer": TransferConfig,
}
_NAMES = {key: m.title for m in METHODS.values() for key in (m.name, runs.slug(m.title))} | {
    "oracle": "Oracle"
}


@dataclass(frozen=True)
class Folder:
    """One folder of the report's input."""

    path: Path
    stage: str
    config: Any
    saved: dict[str, Any]
    """`config` as config.json holds it."""


@dataclass(frozen=True)
class Model:
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
    models: list[Model] = field(default_factory=list)

    @property
    def best(self) -> float | None:
        """The highest mIoU % of the column that is attainable, where there is something to be better than."""
        found = self.values([model for model in self.models if not model.oracle])
        return max(found) if len(found) > 1 else None

    @property
    def calibrated(self) -> set[str]:
        """Keys of the models whose confidence was evaluated."""
        return {key for key, scores in self.scores.items() if scores.get("calibration")}

    def values(self, models: Sequence[Model], name: str | None = None) -> list[float]:
        """mIoU %, or IoU % of a class, of the models that have one here."""
        scores = [self.scores[m.key] for m in models if m.key in self.scores]
        found = [s["iou"][name] if name else s["miou"] for s in scores]
        return [100 * value for value in found if value is not None]

    def difference(self, model: Model, first: Model | None, name: str | None = None) -> float | None:
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
    models: list[Model] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)

    def first(self, model: Model, rule: str | None = None) -> Model | None:
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

    def called(self, model: Model) -> str:
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
    def over_seeds(self) -> list[tuple[str, str, tuple[tuple[Model, Model | None], ...]]]:
        """Name, checkpoint, and every seed's model with what it gains over, of rows with several seeds. Rules
        that choose the same checkpoint in every seed, and the same to gain over, share a line."""
        by_rule: dict[tuple[Path, str, str], dict[str, list[Model]]] = {}
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
        self, column: Column, pairs: Sequence[tuple[Model, Model | None]], name: str | None = None
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
            (name, Markup(drawing.line_chart(f"errors kept by {name}", c, names)))
            for name, c in curves.items()
        ]


def page(config: ReportConfig) -> str:
    """The page over the folders in `config.runs`. Raises: InputError, as `report`."""
    folders = [_recognise(Path(name)) for name in dict.fromkeys(config.runs)]
    if not folders:
        raise InputError("no folder to report on: name run folders, evaluation folders or transferred trees")
    of = {stage: [f for f in folders if f.stage == stage] for stage in _STAGES}
    groups, pictures = _groups(of["evaluate"]), Pictures()
    parts = {
        "title": config.title,
        "groups": [(group, _evaluated(group, pictures)) for group in groups],
        "estimates": _estimates(of["estimate"], of["evaluate"]),
        "unlabelled": _unlabelled(of["predict"], pictures),
        "transfers": _transfers(of["transfer"], pictures),
        "curves": _curves(of["train"]),
        "settings": _settings(folders),
        "environment": _environment(),
        "packs": pictures.packs(),
    }
    environment = Environment(
        loader=PackageLoader("segshift.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "compact": _compact}
    environment.globals |= {"series": drawing.SERIES, "heat_map": _heat_map, "reliability": _reliability}
    return environment.get_template("report.html").render(parts)


def _recognise(path: Path) -> Folder:
    file = path / "config.json"
    if not file.exists() and (path / "manifest.jsonl").exists():
        file = path.parent / "config.json"  # one domain of a transfer
    if not file.exists():
        raise InputError(f"no config.json in {path}: name a folder that segshift {', '.join(_STAGES)} wrote")
    saved: runs.Saved = runs.read_json(file, runs.Saved)
    stage = saved["stage"]
    if stage not in _STAGES:
        raise InputError(f"{path} holds a run of stage '{stage}': name folders of {', '.join(_STAGES)}")
    config: Any = runs.read_config(file, _STAGES[stage], stage)
    if isinstance(config, PredictConfig) and config.images is not None:
        raise InputError(
            f"{path} holds predictions of --images: name one of --data, which has frames to show"
        )
    try:
        if isinstance(config, EvaluateConfig | PredictConfig):
            frames.split(config.data or "")
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return Folder(path, stage, config, saved["config"])


def _names(paths: list[str | Path]) -> list[str]:
    """What each run is called: its folder's name, with as many parents' as tell it from other runs."""
    parts = [name.rpartition("/") for name in runs.short_names(paths)]
    return ["".join((*before, _NAMES.get(last, last))) for *before, last in parts]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _compact(value: Any) -> Markup:
    """JSON that can stand inside a script element: no text of the user can end it."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _heat_map(confusion: list[list[int]], classes: tuple[str, ...]) -> Markup:
    return Markup(drawing.heat_map(np.array(confusion), classes))


def _reliability(found: dict, index: int) -> Markup:
    return Markup(drawing.reliability(found, index))


def _groups(evaluations: list[Folder]) -> list[Group]:
    groups: dict[tuple, Group] = {}
    columns: dict[tuple, Column] = {}
    results = [_scores(folder) for folder in evaluations]
    pairs = zip(evaluations, results, strict=True)
    homes = [r["model"]["run"] if r["model"] else f.config.predictions for f, r in pairs]
    for folder, result, home, name in zip(evaluations, results, homes, _names(homes), strict=True):
        classes = tuple(result["classes"])
        key = (result["data"]["space"], classes)
        group = groups.setdefault(key, Group(classes, result["colours"]))
        made: Mapping[str, Any] = result["model"] or {"selection": "predictions from elsewhere"}
        about = predictions.how(made)
        run = Path(home).resolve()
        seed = run.parent if re.fullmatch(r"seed-\d+", run.parent.name) else None
        rules = tuple(made.get("rules") or [made["selection"]])
        row = _NAMES.get(run.name, run.name) if seed else ""
        model = Model(f"{run} {about}", name, about, rules, predictions.details(made), seed, row)
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


def _result(folder: Folder, name: str, kind: Any) -> Any:
    file = folder.path / name
    if not file.exists():
        raise InputError(f"no {file}: run segshift {folder.stage} again to finish it")
    return runs.read_json(file, kind)


def _scores(evaluation: Folder) -> records.Metrics:
    return _result(evaluation, "metrics.json", records.METRICS)


def _evaluated(group: Group, pictures: Pictures) -> Gallery:
    """Every frame that was evaluated, with every model's prediction."""
    firsts = [
        None if first is None else group.models.index(first) for first in map(group.first, group.models)
    ]
    shown = Gallery(
        "predictions", "mIoU", group.classes, list(map(group.called, group.models)), firsts=firsts
    )
    listed: list[tuple[Column, dict[str, Predicted], list[str]]] = []
    for column in group.columns:
        column.models.sort(key=group.models.index)
        found = {model.key: _predicted(*column.sources[model.key]) for model in column.models}
        listed.append(
            (column, found, list(dict.fromkeys(id for each in found.values() for id in each.scores)))
        )
    shown.frames = sum(len(ids) for *_, ids in listed)
    for column, found, ids in listed:
        if not ids:
            continue  # all domains together, whose frames are in their own columns
        twice = sum(other.name == column.name for other in group.columns) > 1
        name = f"{column.name}, {group.heading(column)}" if twice else column.name
        try:
            data = frames.load(column.data)
            columns = [found.get(model.key) for model in group.models]
            gallery.add_evaluated(shown, name, data, ids, columns, pictures)
        except InputError as error:  # the numbers stand without their pictures
            shown.notes.append(f"No pictures: {error}")
    return shown


def _predicted(evaluation: Folder, domain: str | None) -> Predicted:
    scored = _scores(evaluation)
    lines, by_class = [line for line in scored["frames"] if line["domain"] == domain], {}
    if (evaluation.path / "frames.npz").exists():
        confusion = records.read_matrices(evaluation.path, scored)
        by_class = {line["id"]: metrics.iou(confusion[line["id"]]).tolist() for line in lines}
    by_frame = {line["id"]: line["miou"] for line in lines}
    return Predicted(Path(evaluation.config.predictions), by_frame, by_class)


def _unlabelled(folders: list[Folder], pictures: Pictures) -> list[tuple[str, Gallery]]:
    """Galleries of predictions alone, as of a test split, by data set."""
    by_data: dict[str, dict[str, Predicted]] = {}
    for folder, name in zip(folders, _names([f.config.run for f in folders]), strict=True):
        lines = runs.read_lines(folder.path / "predictions.jsonl", records.Prediction)
        scores = {line["id"]: line["confidence"] for line in lines}
        columns = by_data.setdefault(folder.config.data, {})
        columns[name if name not in columns else str(folder.path)] = Predicted(folder.path, scores)
    return [(data, _predicted_alone(data, columns, pictures)) for data, columns in by_data.items()]


def _predicted_alone(data: str, columns: dict[str, Predicted], pictures: Pictures) -> Gallery:
    try:
        return gallery.predicted(frames.load(data), columns, pictures)
    except InputError as error:
        return Gallery("predictions", "", (), list(columns), notes=[f"No pictures: {error}"])


def _transfers(folders: list[Folder], pictures: Pictures) -> list[dict]:
    """By source data set: its frames, their layouts, and each domain's pictures of them."""
    sources: dict[str, dict[str, tuple[Path, list[dict]]]] = {}
    for folder in folders:
        inside = [folder.path] if (folder.path / "manifest.jsonl").exists() else sorted(folder.path.iterdir())
        for tree in inside:
            if lines := runs.read_lines(tree / "manifest.jsonl", records.Transferred):
                trees, name = sources.setdefault(folder.config.source, {}), lines[0]["domain"]
                trees[name if name not in trees else str(tree)] = (tree, lines)
    return [
        {
            "source": source,
            "domains": [{"name": name, **_domain(lines)} for name, (_, lines) in trees.items()],
            "gallery": gallery.transferred(source, trees, pictures),
        }
        for source, trees in sources.items()
    ]


def _domain(lines: list[dict]) -> dict:
    """How a domain was made, and what the gate did there."""
    gates = [line["gate"] for line in lines if "gate" in line]
    counts = {
        "drawn again": sum(gate["tries"] > 1 for gate in gates),
        "with parts ignored": sum(gate["decision"] == "ignored" for gate in gates),
        "dropped": sum(gate["decision"] == "dropped" for gate in gates),
    }
    told = [f"{len(lines)} frames", *(f"{count} {what}" for what, count in counts.items() if count)]
    strengths = sorted({line["strength"] for line in lines})
    strength = f"{strengths[0]:g}" if len(strengths) == 1 else f"{strengths[0]:g} to {strengths[-1]:g}"
    return {"prompt": lines[0]["prompt"], "strength": strength, "told": ", ".join(told)}


def _same(result: Mapping[str, Any], domain: str) -> tuple:
    """What an estimate and the evaluation that is its truth have in common."""
    model = result["model"]
    return model["weights"], model.get("sampling"), tuple(result["classes"]), domain


def _truth(scores: list[float | None], what: str) -> float | None:
    """The true mIoU, of all evaluations that are `_same`; None where they differ, as those of two
    subsets do."""
    if len(set(scores)) > 1:
        _log.warning(
            "several true scores for the estimate of %s: none is shown; leave all evaluations but one out",
            what,
        )
        return None
    return scores[0] if scores else None


def _estimates(folders: list[Folder], evaluations: list[Folder]) -> list[dict]:
    """Estimates beside the truth, where the same weights were evaluated on real frames of the domain; by
    classes.
    """
    truths: dict[tuple, list[float | None]] = {}
    for evaluation in evaluations:
        result = _scores(evaluation)
        if result["model"] and not result["data"]["transferred"]:
            for domain, scores in result["domains"].items():
                # As the estimate, which leaves the others out
                labelled = bootstrap.shown(np.array(scores["confusion"]))
                truths.setdefault(_same(result, domain), []).append(
                    metrics.plain(bootstrap.mean(labelled).item())
                )
    groups: dict[tuple, dict] = {}
    results, ranked = [], []
    for folder in folders:
        if len(folder.config.run) == 1:
            results.append(_result(folder, "estimate.json", records.ESTIMATE))
        else:
            ranking = _result(folder, "ranking.json", records.RANKING)
            results += ranking["candidates"].values()
            ranked.append(ranking)
    for result, name in zip(results, _names([r["model"]["run"] for r in results]), strict=True):
        classes = tuple(result["classes"])
        group = groups.setdefault(classes, {"classes": classes, "networks": [], "pairs": [], "rankings": []})
        network = {
            "name": name,
            "about": result["protocol"],
            "level": result["level"],
            "rows": [],
            "judge": estimate.judge(result),
        }
        for slug, domain in result["domains"].items():
            true = _truth(truths.get(_same(result, slug), []), f"{name}, {domain['name']}")
            row = {
                "name": domain["name"],
                "predicted": domain["corrected"]["miou"],
                "true": true,
                "source": domain["source"]["miou"]["value"],
                "cost": domain["transfer_cost"],
                "failing": domain["failing"],
                "drop": domain["drop"],
                "iou": domain["corrected"]["iou"],
                "source_iou": domain["source"]["iou"],
            }
            network["rows"].append(row)
            if true is not None and row["predicted"]["value"] is not None:
                what = f"{name}, {row['name']}"
                group["pairs"].append((true, row["predicted"]["value"], len(group["networks"]), what))
        group["networks"].append(network)
    for ranking in ranked:
        first = next(iter(ranking["candidates"].values()))
        groups[tuple(first["classes"])]["rankings"].append(ranking)
    for group in groups.values():
        errors = [abs(guess - true) for true, guess, *_ in group["pairs"]]
        group["error"] = 100 * sum(errors) / len(errors) if errors else None
        group["chart"] = Markup(drawing.agreement(group["pairs"])) if len(errors) > 1 else None
    return list(groups.values())


def _curves(folders: list[Folder]) -> dict:
    """Line charts of what the trainings logged (`segshift.training.checkpoints`), all runs in one chart of a
    name; scores over other classes in charts of their own."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    files = [folder.path / "labels.json" for folder in folders]
    found_spaces = [runs.read_json(file, LabelSpace) if file.exists() else None for file in files]
    spaces = [space and (space.name, space.classes) for space in found_spaces]
    for index, folder in enumerate(folders):
        over = "" if len(set(spaces)) == 1 else " ({}, {} classes)".format(*spaces[index] or ("", "unknown"))
        for line in runs.read_lines(folder.path / "metrics.jsonl", records.LOGGED):
            values = {f"loss: {name}": value for name, value in line.items() if name not in records.NO_LOSS}
            judged = {
                name: told["miou"]
                for name, told in line.get("validation", {}).items()
                if told["miou"] is not None
            }
            values |= {f"mIoU on {name}, %{over}": 100 * miou for name, miou in judged.items()}
            values |= line.get("observed", {})
            values |= {"learning rate": line["lr"]} if "lr" in line else {}
            for name, value in values.items():
                found.setdefault(name, {}).setdefault(index, []).append((line["step"], value))
    names = _names([folder.path for folder in folders])
    charts = [(name, Markup(drawing.line_chart(name, curves, names))) for name, curves in found.items()]
    return {"names": names, "charts": charts}


def _flat(value: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key} ") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def _settings(folders: list[Folder]) -> dict:
    """Every folder's settings, and where those of the trainings differ."""
    trainings = [f for f in folders if f.stage == "train"]
    flat = [_flat(f.saved) for f in trainings]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [(key, [json.dumps(s.get(key)) for s in flat]) for key in keys]
    texts = []
    for f in folders:
        file = f.path / "environment.json"
        made = runs.read_json(file, records.Versions) if file.exists() else None
        text = json.dumps(f.saved, indent=2, ensure_ascii=False)
        texts.append({"stage": f.stage, "path": str(f.path), "config": text, "environment": made})
    return {
        "names": _names([f.path for f in trainings]),
        "differ": [row for row in rows if len(set(row[1])) > 1],
        "folders": texts,
    }


def _environment() -> dict[str, str]:
    """What the page was made with."""
    found = {"Python": platform.python_version(), "Platform": platform.platform()}
    for package in (
        "segshift",
        "torch",
        "torchvision",
        "diffusers",
        "transformers",
        "numpy",
        "opencv-python-headless",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

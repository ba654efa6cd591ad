"""Report: one self-contained page over runs (ours).

The page reads what the other stages wrote and computes no score of its own: trainings, evaluations, predictions
without labels, and transferred trees, each recognised by its config.json. Scores are grouped by the classes they
are a mean over, and groups are never mixed: a mean over 19 classes and one over 11 share no table.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segshift import drawing, frames, predictions, runs
from segshift.config import ReportConfig
from segshift.frames import Dataset, Frame
from segshift.runs import InputError

SHOWN = 4
"""Frames in a gallery of predictions."""
SHOWN_TRANSFERRED = 6
"""Frames in the gallery of transferred images."""
THUMBNAIL = 420
"""Width of pictures in pixels."""
_NO_LOSS = ("step", "lr", "seconds", "score", "validation")
_NAMES = {"zodi": "ZoDi", "source-only": "Source only", "source_only": "Source only", "oracle": "Oracle"}


@dataclass(frozen=True)
class Folder:
    """One folder of the report's input."""

    path: Path
    stage: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """One row of the headline table: a run's checkpoint, or a folder of predictions from elsewhere."""

    key: str
    name: str
    about: str


@dataclass
class Column:
    """One column of the headline table: the frames of one domain, evaluated under one protocol."""

    name: str
    about: str
    classes: tuple[str, ...]
    scores: dict[str, dict] = field(default_factory=dict)
    """By key of the model: miou, pixel_accuracy, iou, confusion; one part of its metrics.json."""
    sources: dict[str, tuple[Folder, str | None]] = field(default_factory=dict)
    """By key of the model: the evaluation, and the domain to take its frames from (None: no gallery)."""
    models: list[Model] = field(default_factory=list)
    gallery: list[dict] = field(default_factory=list)
    note: str = ""

    @property
    def best(self) -> float | None:
        """The highest mIoU of the column, where there is something to be better than."""
        found = [scores["miou"] for scores in self.scores.values() if scores["miou"] is not None]
        return max(found) if len(found) > 1 else None

    def difference(self, model: Model, first: Model, name: str | None = None) -> float | None:
        """Points of mIoU, or of a class' IoU, of a model over the first; None where one of them has none."""
        scores = [self.scores.get(m.key) for m in (model, first)]
        values = [s and (s["iou"][name] if name else s["miou"]) for s in scores]
        return None if None in values else 100 * (values[0] - values[1])


@dataclass
class Group:
    """Columns over the same classes, with the models that have a score there."""

    classes: tuple[str, ...]
    colours: dict[str, str]
    models: list[Model] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)


def report(config: ReportConfig, out: Path) -> Path:
    """Write OUT/index.html over the folders in `config.runs`; returns `out`. Nothing else in `out` is touched.

    Raises: InputError when a folder is not one that train, predict, evaluate or transfer wrote.
    """
    folders = [_recognise(Path(name)) for name in dict.fromkeys(config.runs)]
    if not folders:
        raise InputError("no folder to report on: name run folders, evaluation folders or transferred trees")
    evaluations = [f for f in folders if f.stage == "evaluate"]
    groups = _groups(evaluations)
    with runs.progress("report", sum(len(g.columns) for g in groups) + 1) as bar:
        for group in groups:
            for column in group.columns:
                _fill_gallery(column, group)
                bar.advance()
        page = {
            "title": config.title,
            "groups": groups,
            "unlabelled": [_unlabelled(f) for f in folders if f.stage == "predict"],
            "transfers": _transfers([f for f in folders if f.stage == "transfer"]),
            "curves": _curves([f for f in folders if f.stage == "train"]),
            "settings": _settings(folders),
            "environment": _environment(),
        }
        bar.advance()
    environment = Environment(
        loader=PackageLoader("segshift.stages", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = _percent
    environment.globals |= {"series": drawing.SERIES, "heat_map": _heat_map}
    with runs.atomic(out / "index.html") as temporary:
        temporary.write_text(environment.get_template("report.html").render(page), encoding="utf-8")
    return out


def _recognise(path: Path) -> Folder:
    file = path / "config.json"
    if not file.exists() and (path / "manifest.jsonl").exists():
        file = path.parent / "config.json"  # one domain of a transfer
    if not file.exists():
        raise InputError(f"no config.json in {path}: name a folder that segshift train, predict, evaluate or transfer wrote")
    saved = runs.read_json(file)
    if saved.get("stage") not in ("train", "predict", "evaluate", "transfer"):
        raise InputError(
            f"{path} holds a run of stage '{saved.get('stage')}': name folders of train, predict, evaluate or transfer"
        )
    return Folder(path, saved["stage"], saved["config"])


def _names(paths: list[str | Path]) -> list[str]:
    """What each run is called: its folder's name, with its parent's where runs elsewhere have the same."""
    whole = [Path(path).resolve() for path in paths]
    homes: dict[str, set[Path]] = {}
    for path in whole:
        homes.setdefault(path.name, set()).add(path)
    short = [_NAMES.get(path.name, path.name) for path in whole]
    return [
        name if len(homes[path.name]) == 1 else f"{path.parent.name}/{name}"
        for path, name in zip(whole, short, strict=True)
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _heat_map(confusion: list[list[int]], classes: tuple[str, ...]) -> Markup:
    return Markup(drawing.heat_map(np.array(confusion), classes))


def _groups(evaluations: list[Folder]) -> list[Group]:
    groups: dict[tuple, Group] = {}
    columns: dict[tuple, Column] = {}
    results = [_result(folder) for folder in evaluations]
    homes = [r["model"]["run"] if r["model"] else f.config["predictions"] for f, r in zip(evaluations, results, strict=True)]
    for folder, result, home, name in zip(evaluations, results, homes, _names(homes), strict=True):
        classes = tuple(result["classes"])
        key = (result["data"]["space"], classes)
        group = groups.setdefault(key, Group(classes, result["colours"]))
        selection = result["model"]["selection"] if result["model"] else "predictions from elsewhere"
        model = Model(f"{Path(home).resolve()} {selection}", name, selection)
        if model not in group.models:
            group.models.append(model)
        parts = {domain: (scores, domain) for domain, scores in result["domains"].items()}
        if len(parts) > 1:
            parts["all"] = (result, None)
        for title, (scores, domain) in parts.items():
            about = result["setting"]  # the selection of the checkpoint belongs to the row
            place = (key, title, about, folder.config["data"])
            if place not in columns:
                columns[place] = Column(title, about, classes)
                group.columns.append(columns[place])
            column = columns[place]
            if model not in column.models:
                column.models.append(model)
            column.scores[model.key] = scores
            column.sources[model.key] = (folder, domain)
    return list(groups.values())


def _result(evaluation: Folder) -> dict:
    file = evaluation.path / "metrics.json"
    if not file.exists():
        raise InputError(f"no {file}: run segshift evaluate again to finish it")
    return runs.read_json(file)


def _fill_gallery(column: Column, group: Group) -> None:
    """Frames from the lowest to the highest mIoU of the column's first model, with every model's prediction."""
    column.models.sort(key=group.models.index)
    per_frame = {}
    for model in column.models:
        folder, domain = column.sources[model.key]
        lines = runs.read_json(folder.path / "metrics.json")["frames"]
        per_frame[model.key] = {line["id"]: line["miou"] for line in lines if line["domain"] == domain}
    first = per_frame[column.models[0].key]
    ids = sorted((id for id, score in first.items() if score is not None), key=lambda id: (first[id], id))
    if not ids:
        return  # all domains together, whose frames are in their own columns
    try:
        data = frames.load(column.sources[column.models[0].key][0].config["data"])
        by_id = {frame.id: frame for frame in data.frames}
        for i in _spread(len(ids), SHOWN):
            if ids[i] not in by_id:
                raise InputError(f"frame '{ids[i]}' was evaluated and is not in {data.name}: restore it")
            scores = {key: found.get(ids[i]) for key, found in per_frame.items()}
            column.gallery.append(_row(by_id[ids[i]], data, column, group, scores))
    except InputError as error:  # the numbers stand without their pictures
        column.gallery.clear()
        column.note = f"No pictures: {error}"


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, evenly spread, first and last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def _row(frame: Frame, data: Dataset, column: Column, group: Group, scores: dict[str, float | None]) -> dict:
    image, label = frames.read_image(frame.image), frames.read_label(frame, data.space)
    pictures = []
    for model in column.models:
        folder = Path(column.sources[model.key][0].config["predictions"])
        pred = predictions.read(frames.place(data, frame, folder), data.space)
        wrong = drawing.errors(image, label, pred) if pred.shape == label.shape else None
        pictures.append({
            "model": model,
            "index": group.models.index(model),
            "score": scores[model.key],
            "classes": _painted(pred, data),
            "errors": None if wrong is None else drawing.thumbnail(wrong, THUMBNAIL),
        })  # fmt: skip
    image = drawing.thumbnail(image, THUMBNAIL)
    return {"id": frame.id, "image": image, "truth": _painted(label, data), "predictions": pictures}


def _painted(label: np.ndarray, data: Dataset) -> str:
    return drawing.thumbnail(drawing.paint(label, data.space.colours), THUMBNAIL, flat=True)


def _unlabelled(folder: Folder) -> dict:
    """A gallery of predictions alone, as of a test split."""
    data = frames.load(folder.config["data"])
    there = [f for f in data.frames if frames.place(data, f, folder.path).exists()]
    rows = []
    for i in _spread(len(there), SHOWN):
        pred = predictions.read(frames.place(data, there[i], folder.path), data.space)
        image = drawing.thumbnail(frames.read_image(there[i].image), THUMBNAIL)
        rows.append({"id": there[i].id, "image": image, "prediction": _painted(pred, data)})
    return {"name": _names([folder.config["run"]])[0], "data": folder.config["data"], "count": len(there), "rows": rows}


def _transfers(folders: list[Folder]) -> list[dict]:
    """By source data set: its frames, their layouts, and each domain's pictures of them."""
    sources: dict[str, list[tuple[Path, list[dict]]]] = {}
    for folder in folders:
        inside = [folder.path] if (folder.path / "manifest.jsonl").exists() else sorted(folder.path.iterdir())
        for tree in inside:
            if lines := runs.read_lines(tree / "manifest.jsonl"):
                sources.setdefault(folder.config["source"], []).append((tree, lines))
    return [_transfer(source, trees) for source, trees in sources.items()]


def _transfer(source: str, trees: list[tuple[Path, list[dict]]]) -> dict:
    domains = [
        {"name": lines[0]["domain"], "prompt": lines[0]["prompt"], "strength": lines[0]["strength"], "count": len(lines)}
        for _, lines in trees
    ]
    shown = {"source": source, "domains": domains, "rows": [], "note": ""}
    try:
        data = frames.load(source)
        done = set.intersection(*({line["id"] for line in lines} for _, lines in trees))
        there = [frame for frame in data.frames if frame.id in done]
        for i in _spread(len(there), SHOWN_TRANSFERRED):
            frame = there[i]
            pictures = [frames.read_image(frames.place(data, frame, tree)) for tree, _ in trees]
            row = {"id": frame.id, "image": drawing.thumbnail(frames.read_image(frame.image), THUMBNAIL), "layout": None}
            if frame.label is not None:
                row["layout"] = _painted(frames.read_label(frame, data.space), data)
            row["pictures"] = [drawing.thumbnail(picture, THUMBNAIL) for picture in pictures]
            shown["rows"].append(row)
    except InputError as error:
        shown["rows"].clear()
        shown["note"] = f"No pictures: {error}"
    return shown


def _curves(folders: list[Folder]) -> dict:
    """Line charts of what the trainings logged (`segshift.checkpoints`), all runs in one chart of a name."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for index, folder in enumerate(folders):
        for line in runs.read_lines(folder.path / "metrics.jsonl"):
            values = {f"loss: {name}": value for name, value in line.items() if name not in _NO_LOSS}
            judged = {name: told["miou"] for name, told in line.get("validation", {}).items() if told["miou"] is not None}
            values |= {f"mIoU on {name}, %": 100 * miou for name, miou in judged.items()}
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
    flat = [_flat(f.config) for f in trainings]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [(key, [json.dumps(s.get(key)) for s in flat]) for key in keys]
    texts = []
    for f in folders:
        file = f.path / "environment.json"
        made = runs.read_json(file) if file.exists() else None
        text = json.dumps(f.config, indent=2, ensure_ascii=False)
        texts.append({"stage": f.stage, "path": str(f.path), "config": text, "environment": made})
    return {
        "names": _names([f.path for f in trainings]),
        "differ": [row for row in rows if len(set(row[1])) > 1],
        "folders": texts,
    }


def _environment() -> dict[str, str]:
    """What the page was made with."""
    found = {"Python": platform.python_version(), "Platform": platform.platform()}
    for package in ("segshift", "torch", "torchvision", "diffusers", "transformers", "numpy", "opencv-python-headless"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

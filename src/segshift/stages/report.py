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
    gallery: list[dict] = field(default_factory=list)
    note: str = ""


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
                _fill_gallery(column, group.models)
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
    environment.filters |= {"percent": _percent, "gain": _gain}
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


def _name(path: str | Path) -> str:
    name = Path(path).resolve().name
    return _NAMES.get(name, name)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _gain(value: float | None, first: float | None) -> float | None:
    """Difference in percentage points."""
    return None if value is None or first is None else 100 * (value - first)


def _heat_map(scores: dict, classes: tuple[str, ...]) -> str:
    return drawing.heat_map(np.array(scores["confusion"]), classes)


def _groups(evaluations: list[Folder]) -> list[Group]:
    groups: dict[tuple, Group] = {}
    columns: dict[tuple, Column] = {}
    for folder in evaluations:
        file = folder.path / "metrics.json"
        if not file.exists():
            raise InputError(f"no {file}: run segshift evaluate again to finish it")
        result = runs.read_json(file)
        classes = tuple(result["classes"])
        key = (result["data"]["space"], classes)
        group = groups.setdefault(key, Group(classes, result["colours"]))
        model = _model(folder, result["model"])
        if model not in group.models:
            group.models.append(model)
        parts = {domain: (scores, domain) for domain, scores in result["domains"].items()}
        if len(parts) > 1:
            parts["all"] = (result, None)
        for name, (scores, domain) in parts.items():
            about = result["setting"]  # the selection of the checkpoint belongs to the row
            place = (key, name, about, str(folder.config["data"]))
            if place not in columns:
                columns[place] = Column(name, about, classes)
                group.columns.append(columns[place])
            columns[place].scores[model.key] = scores
            columns[place].sources[model.key] = (folder, domain)
    return list(groups.values())


def _model(evaluation: Folder, told: dict | None) -> Model:
    if told is None:
        path = evaluation.config["predictions"]
        return Model(str(Path(path).resolve()), _name(path), "predictions from elsewhere")
    return Model(f"{Path(told['run']).resolve()} {told['selection']}", _name(told["run"]), told["selection"])


def _fill_gallery(column: Column, models: list[Model]) -> None:
    """Frames from the lowest to the highest mIoU of the first model, with every model's prediction."""
    models = [m for m in models if m.key in column.sources]
    first, domain = column.sources[models[0].key]
    if domain is None:
        return
    try:
        data = frames.load(first.config["data"])
        scored = [f for f in runs.read_json(first.path / "metrics.json")["frames"] if f["domain"] == domain]
        scored = sorted((f for f in scored if f["miou"] is not None), key=lambda f: (f["miou"], f["id"]))
        by_id = {frame.id: frame for frame in data.frames}
        for i in _spread(len(scored), SHOWN):
            column.gallery.append(_row(by_id[scored[i]["id"]], data, scored[i]["miou"], column, models))
    except (InputError, KeyError) as error:
        column.gallery.clear()
        column.note = f"No pictures: {error}"


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, evenly spread, first and last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def _row(frame: Frame, data: Dataset, score: float, column: Column, models: list[Model]) -> dict:
    image, label = frames.read_image(frame.image), frames.read_label(frame, data.space)
    row = {
        "id": frame.id,
        "score": score,
        "image": drawing.thumbnail(image, THUMBNAIL),
        "truth": drawing.thumbnail(drawing.paint(label, data.space.colours), THUMBNAIL, flat=True),
        "predictions": [],
    }
    for index, model in enumerate(models):
        folder = Path(column.sources[model.key][0].config["predictions"])
        pred = predictions.read(frames.place(data, frame, folder), data.space)
        picture = {"model": model, "index": index, "classes": _painted(pred, data), "errors": None}
        if pred.shape == label.shape:
            picture["errors"] = drawing.thumbnail(drawing.errors(image, label, pred), THUMBNAIL)
        row["predictions"].append(picture)
    return row


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
    return {"name": _name(folder.config["run"]), "data": folder.config["data"], "count": len(there), "rows": rows}


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
    """Line charts of everything the trainings logged, all runs of a name in one chart."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for index, folder in enumerate(folders):
        for line in runs.read_lines(folder.path / "metrics.jsonl"):
            for name, value in _flat(line).items():
                if name not in ("step", "seconds") and " iou " not in name and value is not None:
                    found.setdefault(name, {}).setdefault(index, []).append((line["step"], value))
    names = [_name(folder.path) for folder in folders]
    charts = [(name, drawing.line_chart(name, curves, names)) for name, curves in found.items()]
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
    texts = [(f.stage, str(f.path), json.dumps(f.config, indent=2, ensure_ascii=False)) for f in folders]
    return {
        "names": [_name(f.path) for f in trainings],
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

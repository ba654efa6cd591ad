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
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segshift import records, runs
from segshift.config import ReportConfig
from segshift.data import frames
from segshift.data.labels import LabelSpace
from segshift.page import charts, gallery, inputs, tables
from segshift.page.gallery import Gallery, Packs, Predicted
from segshift.page.inputs import Folder
from segshift.page.tables import Column, Group
from segshift.runs import InputError
from segshift.scoring import bootstrap, estimate, metrics

_log = logging.getLogger(__name__)


def page(config: ReportConfig) -> str:
    """The page over the folders in `config.runs`. Raises: InputError, as `report`."""
    folders = [inputs.recognise(Path(name)) for name in dict.fromkeys(config.runs)]
    if not folders:
        raise InputError("no folder to report on: name run folders, evaluation folders or transferred trees")
    of = {stage: [f for f in folders if f.stage == stage] for stage in inputs.STAGES}
    groups, pictures = tables.groups_of(of["evaluate"]), Packs()
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
    environment.globals |= {"series": charts.SERIES, "heat_map": _heat_map, "reliability": _reliability}
    return environment.get_template("report.html").render(parts)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _compact(value: Any) -> Markup:
    """JSON that can stand inside a script element: no text of the user can end it."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _heat_map(confusion: list[list[int]], classes: tuple[str, ...]) -> Markup:
    return Markup(charts.heat_map(np.array(confusion), classes))


def _reliability(found: dict, index: int) -> Markup:
    return Markup(charts.reliability(found, index))


def _evaluated(group: Group, pictures: Packs) -> Gallery:
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
    scored = inputs.scores(evaluation)
    lines, by_class = [line for line in scored["frames"] if line["domain"] == domain], {}
    if (evaluation.path / "frames.npz").exists():
        confusion = records.read_matrices(evaluation.path, scored)
        by_class = {line["id"]: metrics.iou(confusion[line["id"]]).tolist() for line in lines}
    by_frame = {line["id"]: line["miou"] for line in lines}
    return Predicted(Path(evaluation.config.predictions), by_frame, by_class)


def _unlabelled(folders: list[Folder], pictures: Packs) -> list[tuple[str, Gallery]]:
    """Galleries of predictions alone, as of a test split, by data set."""
    by_data: dict[str, dict[str, Predicted]] = {}
    for folder, name in zip(folders, inputs.names([f.config.run for f in folders]), strict=True):
        lines = runs.read_lines(folder.path / "predictions.jsonl", records.Prediction)
        scores = {line["id"]: line["confidence"] for line in lines}
        columns = by_data.setdefault(folder.config.data, {})
        columns[name if name not in columns else str(folder.path)] = Predicted(folder.path, scores)
    return [(data, _predicted_alone(data, columns, pictures)) for data, columns in by_data.items()]


def _predicted_alone(data: str, columns: dict[str, Predicted], pictures: Packs) -> Gallery:
    try:
        return gallery.predicted(frames.load(data), columns, pictures)
    except InputError as error:
        return Gallery("predictions", "", (), list(columns), notes=[f"No pictures: {error}"])


def _transfers(folders: list[Folder], pictures: Packs) -> list[dict]:
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
    summary = [f"{len(lines)} frames", *(f"{count} {what}" for what, count in counts.items() if count)]
    strengths = sorted({line["strength"] for line in lines})
    strength = f"{strengths[0]:g}" if len(strengths) == 1 else f"{strengths[0]:g} to {strengths[-1]:g}"
    return {"prompt": lines[0]["prompt"], "strength": strength, "summary": ", ".join(summary)}


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
        result = inputs.scores(evaluation)
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
            results.append(inputs.read(folder, "estimate.json", records.ESTIMATE))
        else:
            ranking = inputs.read(folder, "ranking.json", records.RANKING)
            results += ranking["candidates"].values()
            ranked.append(ranking)
    for result, name in zip(results, inputs.names([r["model"]["run"] for r in results]), strict=True):
        classes = tuple(result["classes"])
        group = groups.setdefault(classes, {"classes": classes, "networks": [], "pairs": [], "rankings": []})
        network = {
            "name": name,
            "about": result["protocol"],
            "level": result["level"],
            "rows": [],
            "judge": estimate.judge_name(result),
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
        group["chart"] = Markup(charts.agreement(group["pairs"])) if len(errors) > 1 else None
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
                name: score["miou"]
                for name, score in line.get("validation", {}).items()
                if score["miou"] is not None
            }
            values |= {f"mIoU on {name}, %{over}": 100 * miou for name, miou in judged.items()}
            values |= line.get("observed", {})
            values |= {"learning rate": line["lr"]} if "lr" in line else {}
            for name, value in values.items():
                found.setdefault(name, {}).setdefault(index, []).append((line["step"], value))
    names = inputs.names([folder.path for folder in folders])
    drawn = [(name, Markup(charts.line_chart(name, curves, names))) for name, curves in found.items()]
    return {"names": names, "charts": drawn}


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
        "names": inputs.names([f.path for f in trainings]),
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

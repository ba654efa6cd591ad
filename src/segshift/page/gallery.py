"""Galleries of the report page: every frame that was evaluated, transferred or predicted, with small pictures
(ours).

A gallery is a table. A row is a frame, a column a run (kind `predictions`) or a target domain (kind
`transfers`):

    row     id, domain (index into `domains`), size (width, height of its pictures), has (classes in its
            truth, by index), image, truth, source (pictures or null; `source`
            is what a transferred image was made from),
            gate (score or null), cells
    cell    p (picture or null), s (score or null), c (score by class, or null), note, u (picture of the
            prediction's entropy, where it was written); null where a run has none
    picture index into the page's pictures: WebP in base64, each once, in packs that the page unpacks when it
    shows them

Pictures are drawn as large as their number allows, so that a page over thousands of frames can still be
opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from segshift import records, runs
from segshift.config import TransferConfig
from segshift.data import frames
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import IGNORE
from segshift.page import charts as drawing
from segshift.runs import InputError
from segshift.scoring import predictions

Strip = dict[str, Any]

WIDTHS = ((400, 420), (3_000, 320), (15_000, 256))
"""Pictures of a gallery up to a number, and their width in pixels; more are FINEST wide."""
FINEST = 192
PACK = 100
"""Pictures in a pack."""


class Packs:
    """The pictures of a page, each once, in the order in which they came, in packs of PACK."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def add(self, picture: str | None) -> int | None:
        """The number of a picture, the same for the same one."""
        return None if picture is None else self._places.setdefault(picture, len(self._places))

    def packs(self) -> list[str]:
        """All pictures, PACK to a text."""
        all_of_them = list(self._places)
        return [" ".join(all_of_them[i : i + PACK]) for i in range(0, len(all_of_them), PACK)]


@dataclass
class Gallery:
    """One gallery, as the page's script reads it."""

    kind: Literal["predictions", "transfers"]
    score: str
    """What the cells' scores are called; "" where there are none."""
    classes: tuple[str, ...]
    columns: list[str]
    domains: list[str] = field(default_factory=list)
    rows: list[Strip] = field(default_factory=list)
    firsts: list[int | None] = field(default_factory=list)
    """By column, the one that its gain is counted from."""
    notes: list[str] = field(default_factory=list)
    """What could not be shown, and why."""
    frames: int = 0
    """Of all data sets that will be added, where there are several."""

    @property
    def labelled(self) -> bool:
        """Whether some row tells which classes it shows."""
        return any(row["has"] for row in self.rows)

    @property
    def uncertain(self) -> bool:
        """Whether some prediction comes with a picture of its entropy."""
        return any(cell and cell.get("u") is not None for row in self.rows for cell in row["cells"])

    def add(self, found: Sequence[Frame], make: Callable[[Frame, int], Strip], pictures: Packs) -> None:
        """Make a row of each frame; `make` is given the width of its pictures too."""
        width = _width(max(self.frames, len(found)) * (len(self.columns) + 2))

        def attempt(frame: Frame) -> Strip | InputError:
            try:
                return make(frame, width)
            except InputError as error:
                return error

        failed: list[InputError] = []
        with ThreadPoolExecutor() as pool, runs.progress("pictures", len(found)) as bar:
            for row in pool.map(attempt, found):
                bar.advance()
                if isinstance(row, InputError):
                    failed.append(row)
                    continue
                for key in ("image", "truth", "source"):
                    row[key] = pictures.add(row[key])
                for cell in filter(None, row["cells"]):
                    cell |= {key: pictures.add(cell[key]) for key in ("p", "u") if key in cell}
                self.rows.append(row)
        if failed:
            self.notes.append(f"No pictures of {len(failed)} of {len(found)} frames: {failed[0]}")


@dataclass(frozen=True)
class Predicted:
    """A run's predictions, with the scores of their frames where they were evaluated."""

    folder: Path
    scores: Mapping[str, float | None]
    """By frame id, in [0, 1]."""
    by_class: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By frame id, in the order of the gallery's classes; nan where a class is neither in the truth nor
    predicted.
    """


def add_evaluated(
    gallery: Gallery,
    domain: str,
    data: Dataset,
    ids: Sequence[str],
    columns: Sequence[Predicted | None],
    pictures: Packs,
) -> None:
    """Add the frames `ids` of a labelled data set, with every column's prediction."""
    gallery.domains.append(domain)
    index, sources, gates = len(gallery.domains) - 1, *_origin(data)
    train_ids = [data.space.names.index(name) for name in gallery.classes]

    def make(frame: Frame, width: int) -> Strip:
        image, label = frames.read_image(frame.image), frames.read_label(frame, data.space)
        # What the scores do not count is void here too
        label = np.where(np.isin(label, train_ids), label, IGNORE)
        size = drawing.fit(image.shape, width)
        has = _classes(label, train_ids)
        source = sources.get(frame.id)
        return {
            "id": frame.id,
            "domain": index,
            "size": size,
            "has": has,
            "image": drawing.thumbnail(image, size),
            "truth": _painted(label, data, size),
            "source": None if source is None else drawing.thumbnail(frames.read_image(source.image), size),
            "gate": gates.get(frame.id, {}).get("score"),
            "cells": [
                None if column is None else _cell(column, frame, data, size, has) for column in columns
            ],
        }

    by_id = {frame.id: frame for frame in data.frames}
    gone = [id for id in ids if id not in by_id]
    if gone:
        gallery.notes.append(
            f"No pictures of {len(gone)} of {len(ids)} frames: '{gone[0]}' was evaluated and is not in "
            f"{data.name}"
        )
    gallery.add([by_id[id] for id in ids if id in by_id], make, pictures)


def _cell(
    column: Predicted, frame: Frame, data: Dataset, size: tuple[int, int], has: list[int]
) -> dict | None:
    file = frames.place(data, frame, column.folder)
    if frame.id not in column.scores and not file.exists():
        return None
    try:
        picture, note = _painted(predictions.read(file, data.space), data, size), ""
    except InputError:
        picture, note = None, "prediction not there"  # its score and the other columns stand
    found = column.by_class.get(frame.id)
    by_class = None if found is None else [_short(v) if c in has else None for c, v in enumerate(found)]
    entropy = frames.place(data, frame, column.folder / "uncertainty" / "entropy")
    return {
        "p": picture,
        "s": _short(column.scores.get(frame.id)),
        "c": by_class,
        "note": note,
        "u": drawing.thumbnail(drawing.heat(entropy), size) if entropy.exists() else None,
    }


def predicted(data: Dataset, columns: Mapping[str, Predicted], pictures: Packs) -> Gallery:
    """Predictions without labels, by the name of their run."""
    gallery = Gallery("predictions", "confidence", data.space.names, list(columns))
    there = [
        f for f in data.frames if any(frames.place(data, f, c.folder).exists() for c in columns.values())
    ]
    gallery.domains = list(dict.fromkeys(frame.domain for frame in there))

    def make(frame: Frame, width: int) -> Strip:
        image = frames.read_image(frame.image)
        size = drawing.fit(image.shape, width)
        cells = [_cell(column, frame, data, size, []) for column in columns.values()]
        return {
            "id": frame.id,
            "domain": gallery.domains.index(frame.domain),
            "size": size,
            "has": [],
            "image": drawing.thumbnail(image, size),
            "truth": None,
            "source": None,
            "gate": None,
            "cells": cells,
        }

    gallery.add(there, make, pictures)
    return gallery


def transferred(source: str, trees: Mapping[str, tuple[Path, list[dict]]], pictures: Packs) -> Gallery:
    """What was made of the frames of `source`: by domain, the tree and the lines of its manifest."""
    lines = {name: {line["id"]: line for line in of_tree} for name, (_, of_tree) in trees.items()}
    judged = any("gate" in line for by_id in lines.values() for line in by_id.values())
    gallery = Gallery("transfers", "gate score" if judged else "", (), list(trees))
    try:
        data = frames.load(source)
    except InputError as error:  # the rest of the page stands without its pictures
        gallery.notes.append(f"No pictures: {error}")
        return gallery
    gallery.classes = data.space.names
    gallery.domains = list(dict.fromkeys(frame.domain for frame in data.frames))

    def make(frame: Frame, width: int) -> Strip:
        image = frames.read_image(frame.image)
        label = None if frame.label is None else frames.read_label(frame, data.space)
        size = drawing.fit(image.shape, width)
        return {
            "id": frame.id,
            "domain": gallery.domains.index(frame.domain),
            "size": size,
            "has": [] if label is None else _classes(label, range(data.space.classes)),
            "image": drawing.thumbnail(image, size),
            "truth": None if label is None else _painted(label, data, size),
            "source": None,
            "gate": None,
            "cells": [
                _transfer(frames.place(data, frame, tree), lines[name].get(frame.id), data, size)
                for name, (tree, _) in trees.items()
            ],
        }

    gallery.add(
        [frame for frame in data.frames if any(frame.id in by_id for by_id in lines.values())], make, pictures
    )
    return gallery


def _transfer(file: Path, line: dict | None, data: Dataset, size: tuple[int, int]) -> dict | None:
    """A transferred picture, and what the gate found: shares of the agreement it expects, by class too."""
    if line is None:
        return None
    gate = line.get("gate", {})
    kept = [gate.get("agreement", {}).get(name) for name in data.space.names]
    by_class = [_short(min(1.0, pair[1] / pair[0])) if pair and pair[0] else None for pair in kept]
    picture = None if frames.was_dropped(line) else drawing.thumbnail(frames.read_image(file), size)
    draws = f"{gate['tries']} draws" if gate.get("tries", 1) > 1 else ""
    decision = {"ignored": "parts ignored", "dropped": "dropped"}.get(gate.get("decision"), "")
    note = ", ".join(filter(None, (draws, decision)))
    return {"p": picture, "s": _short(gate.get("score")), "c": by_class if gate else None, "note": note}


def _origin(data: Dataset) -> tuple[dict[str, Frame], dict[str, dict]]:
    """Of a transferred data set: its source frames, and what the gate said, by id. Empty where it cannot be
    told.
    """
    config = data.root.parent / "config.json"
    if not data.transferred or not config.exists():
        return {}, {}
    lines = runs.read_lines(data.root / "manifest.jsonl", records.Line)
    gates = {line["id"]: line.get("gate", {}) for line in lines}
    try:
        source = frames.load(runs.read_config(config, TransferConfig, "transfer").source)
        return {frame.id: frame for frame in source.frames}, gates
    except InputError:
        return {}, gates


def _classes(label: np.ndarray, train_ids: Sequence[int]) -> list[int]:
    """Indices into `train_ids` of those that occur in a label [H, W] uint8."""
    there = np.bincount(label.ravel(), minlength=256) > 0
    return [index for index, train_id in enumerate(train_ids) if there[train_id]]


def _painted(label: np.ndarray, data: Dataset, size: tuple[int, int]) -> str:
    small = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    return drawing.thumbnail(drawing.paint(small, data.space.colours), size, flat=True)


def _short(value: float | None) -> float | None:
    """Three decimals are enough to sort and to read; JSON has no nan."""
    return None if value is None or value != value else round(value, 3)


def _width(count: int) -> int:
    return next((width for most, width in WIDTHS if count <= most), FINEST)

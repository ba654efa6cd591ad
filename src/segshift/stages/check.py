"""Check: read every file of a data set, say what is wrong, and count how often each class occurs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segshift import execution, outputs, runs
from segshift.config import CheckConfig
from segshift.data import frames
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import IGNORE, LabelSpace

_CHUNK = 16
"""Frames handed to a process at a time."""


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs."""

    name: str
    pixels: int
    frames: int


@dataclass(frozen=True)
class Report:
    """What `check` found; check.json holds the same."""

    data: str
    frames: int
    labelled: int
    """Frames whose label could be read."""
    unlabelled: int
    """Frames of subsets that have no label at all, which is no fault."""
    domains: dict[str, int]
    """Frames per domain."""
    sizes: dict[str, int]
    """Frames per image size, "WIDTHxHEIGHT"."""
    classes: tuple[ClassCount, ...]
    """By train id."""
    void_pixels: int
    failures: tuple[runs.Failure, ...]
    """{"id", "error"} of every fault. A frame may have several."""


def check(config: CheckConfig, out: str | Path | None = None) -> Report:
    """Read every file of a data set in parallel, print a table, and return it with all faults. With `out`,
    write OUT/check.json, OUT/classes.jsonl (pixels per frame and class, for rare-class sampling) and
    OUT/failures.jsonl.

    Faults are: images without label where others of the same subset have one, labels without image,
    unreadable and truncated files, labels of another size than their image (not in transferred trees), values
    outside the label space, names that other stages cannot write, and missing frames of a published list. A
    subset without any label, such as a test set, is no fault.

    A script that calls this with more than one process needs `if __name__ == "__main__":` around the call.

    Raises: InputError when the data set cannot be listed.
    """
    dataset = frames.load(config.data)
    output = None
    if out is not None:
        output = outputs.open_output(
            out, "check", config, free=("workers",), begun=lambda out: (out / "check.json").exists()
        )
    bare, unlabelled = _without_label(dataset)
    faults = [*dataset.left_out, *bare]
    sizes: Counter[str] = Counter()
    pixels, occurrences = np.zeros((2, 256), np.int64)
    labelled = 0
    per_frame = []
    with runs.progress("check", len(dataset.frames)) as bar:
        for frame, (size, counts, errors) in zip(dataset.frames, _walk(dataset, config.workers), strict=True):
            faults += [(frame.id, error) for error in errors]
            sizes.update([size] if size else [])
            if counts is not None:
                labelled += 1
                pixels += counts
                per_frame.append({"id": frame.id, "pixels": counts[: dataset.space.classes].tolist()})
                occurrences += counts > 0
            bar.advance()
    report = Report(
        data=dataset.name,
        frames=len(dataset.frames),
        labelled=labelled,
        unlabelled=unlabelled,
        domains=dict(Counter(frame.domain for frame in dataset.frames)),
        sizes=dict(sizes.most_common()),
        classes=tuple(
            ClassCount(name, int(pixels[i]), int(occurrences[i]))
            for i, name in enumerate(dataset.space.names)
        ),
        void_pixels=int(pixels[IGNORE]),
        failures=tuple({"id": id, "error": error} for id, error in faults),
    )
    if output is not None:
        output.claim()
        runs.write_json(output.path / "check.json", report)
        runs.write_lines(output.path / "classes.jsonl", per_frame)
        runs.write_lines(output.path / "failures.jsonl", list(report.failures))
    _print(report)
    return report


def _without_label(dataset: Dataset) -> tuple[list[tuple[str, str]], int]:
    """(id, reason) of frames that have no label although others of their subset have one, and the number of
    frames in subsets without any."""
    parts = defaultdict(list)
    for frame in dataset.frames:
        parts[frames.part_of(dataset, frame)[0].name].append(frame)
    labelled = [part for part in parts.values() if any(frame.label for frame in part)]
    bare = [frame for part in labelled for frame in part if not frame.label]
    reasons = [
        (frame.id, f"no label {frames.place(dataset, frame, dataset.root, 'label')}") for frame in bare
    ]
    return reasons, len(dataset.frames) - sum(map(len, labelled))


def _walk(dataset: Dataset, workers: int) -> Iterator[tuple[str | None, np.ndarray | None, list[str]]]:
    """`_inspect` of every frame, in order."""
    inspect = partial(_inspect, space=dataset.space, transferred=dataset.transferred)
    workers = min(workers or runs.cpus(), -(-len(dataset.frames) // _CHUNK))
    if workers == 1:
        yield from map(inspect, dataset.frames)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        with execution.starting_workers():
            found = pool.map(inspect, dataset.frames, chunksize=_CHUNK)
        yield from found


def _inspect(
    frame: Frame, space: LabelSpace, transferred: bool
) -> tuple[str | None, np.ndarray | None, list[str]]:
    """Image size, pixels per train id (int64 [256]) and faults. What cannot be read is None."""
    size, counts, errors = None, None, []
    try:
        height, width = frames.read_image(frame.image).shape[:2]
        size = f"{width}x{height}"
    except runs.InputError as error:
        errors.append(str(error))
    if frame.label is not None:
        try:
            label = frames.read_label(frame, space)
            counts = np.bincount(label.ravel(), minlength=256)
            label_size = f"{label.shape[1]}x{label.shape[0]}"
            if size and size != label_size and not transferred:
                errors.append(f"image {frame.image} is {size}, its label {label_size}: they must be equal")
        except runs.InputError as error:
            errors.append(str(error))
    return size, counts, errors


def _print(report: Report) -> None:
    total = sum(c.pixels for c in report.classes)
    console = Console()
    console.print(report.data, style="bold", markup=False, highlight=False)
    if report.labelled:
        table = Table()
        for column in ("class", "% of labelled pixels", "frames"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for c in report.classes:
            share = f"{100 * c.pixels / max(total, 1):.3f}"
            table.add_row(escape(c.name), share, str(c.frames), style="" if c.frames else "dim")
        console.print(table)
    for what, counts in (("domain", report.domains), ("image size", report.sizes)):
        console.print(
            f"{what}: " + ", ".join(f"{name} ({count})" for name, count in counts.items()), markup=False
        )
    broken = report.frames - report.unlabelled - report.labelled
    summary = [f"{report.frames} frames", f"{broken} without a readable label" if broken else ""]
    if report.unlabelled == report.frames:
        summary.append("no labels: an unlabelled set")
    elif report.unlabelled:
        summary.append(f"{report.unlabelled} in subsets without labels")
    console.print(", ".join(filter(None, summary)))

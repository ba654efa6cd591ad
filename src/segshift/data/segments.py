"""COCO's panoptic lists: the category of every segment that a label PNG draws.

annotations/panoptic_NAME.json      categories: id, name; annotations: file_name, segments_info: id,
                                    category_id
annotations/panoptic_NAME/*.png     the segment's id in each pixel: red + 256 green + 65536 blue; 0 is void
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from segshift.data.labels import LabelSpace
from segshift.runs import InputError

MOST = 65535
"""Largest id of a category."""


def space(file: Path) -> LabelSpace:
    """The label space of a list, its classes in the order of their ids and all black. Raises: InputError."""
    return _current(file)[0]


def categories(pixels: np.ndarray, label: Path) -> np.ndarray:
    """A label PNG's pixels [H, W, 3] uint8 to the categories' ids [H, W] uint16, 0 for void.

    Raises: InputError when the list beside its folder does not name it, or not one of its segments.
    """
    file = label.parent.with_suffix(".json")
    segments = _current(file)[1].get(label.name)
    if segments is None:
        raise InputError(f"{file} has no annotation of {label.name}: restore it, or remove the frame")
    ids, place = np.unique(pixels.astype(np.int64) @ np.array([1, 256, 65536]), return_inverse=True)
    known = {0: 0} | segments
    strange = [str(id) for id in ids.tolist() if id not in known]
    if strange:
        raise InputError(
            f"label {label} draws the segments {', '.join(strange[:4])}, which {file} does not name: restore "
            "both, or remove the frame"
        )
    return np.array([known[id] for id in ids.tolist()], np.uint16)[place.reshape(pixels.shape[:2])]


def _current(file: Path) -> tuple[LabelSpace, dict[str, dict[int, int]]]:
    return _read(file, file.stat().st_mtime_ns if file.exists() else 0)


@lru_cache(maxsize=4)  # COCO's lists are large
def _read(file: Path, _changed: int) -> tuple[LabelSpace, dict[str, dict[int, int]]]:
    """The label space, and by PNG the category of each segment. Raises: InputError."""
    try:
        content: Any = json.loads(file.read_bytes())
        kinds = sorted((int(kind["id"]), str(kind["name"])) for kind in content["categories"])
        found = {
            str(one["file_name"]): {int(s["id"]): int(s["category_id"]) for s in one["segments_info"]}
            for one in content["annotations"]
        }
        ids, names = zip(*kinds, strict=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file} is no panoptic list of COCO ({type(error).__name__}: {str(error)[:60]}): restore it"
        ) from error
    used = {category for segments in found.values() for category in segments.values()}
    if (
        not 0 < ids[0] <= ids[-1] <= MOST
        or len({*ids}) < len(ids)
        or len({*names}) < len(ids)
        or len(ids) > 255
    ):
        raise InputError(
            f"{file} has {len(ids)} categories with ids {ids[0]} to {ids[-1]}, expected 1 to 255 of them, "
            f"with names and ids from 1 to {MOST} of their own"
        )
    if not used <= {*ids}:
        raise InputError(f"{file} has a segment of category {min(used - {*ids})}, which it does not name")
    return LabelSpace("coco", names, ((0, 0, 0),) * len(ids), ids, (0,), panoptic=True), found

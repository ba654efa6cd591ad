"""Frames: what a data set is made of, and the functions that read the published trees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segshift.labels import LabelSpace


@dataclass(frozen=True)
class Frame:
    """One image and, where there is one, its label map."""

    id: str
    """Unique in its data set; the same for a source frame and everything made from it."""
    domain: str
    """clear, night, fog, rain, snow, game, synthia, or the folder's own name."""
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """Frames of one layout, with the label space their label files are written in."""

    name: str
    """As the user wrote it: layout:path[:subset]."""
    layout: str
    root: Path
    subset: str
    frames: tuple[Frame, ...]
    space: LabelSpace
    transferred: bool = False
    """True for a tree that `segshift transfer` wrote (manifest.jsonl at its root): images may be smaller than
    labels there."""


def load(spec: str) -> Dataset:
    """Read the data set that `layout:path[:subset]` names. Raises: InputError."""
    raise NotImplementedError


def read_image(path: Path) -> np.ndarray:
    """RGB [H, W, 3] uint8, from JPEG or PNG: grey, palette, RGBA and 16-bit images are converted. Raises: InputError."""
    raise NotImplementedError


def read_label(frame: Frame, space: LabelSpace) -> np.ndarray:
    """Train ids [H, W] uint8. Raises: InputError on unreadable files and on values outside the label space."""
    raise NotImplementedError

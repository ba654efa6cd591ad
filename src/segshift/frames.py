"""Frames: what a data set is made of, how they are read, and how those of two data sets are paired.

A data set is named `layout:path[:subset]`, and `load` lists its frames without opening them. The layouts are those
of segshift.layouts. Everything is matched by frame id; the order of a listing means nothing.
"""

from __future__ import annotations

import logging
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
import yaml
from PIL import Image

from segshift import runs
from segshift.labels import LabelSpace
from segshift.layouts import LAYOUTS, Layout, Part
from segshift.runs import InputError

_log = logging.getLogger(__name__)


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
    tree: Layout | None = None
    """Where everything lies under `root`."""
    left_out: tuple[tuple[str, str], ...] = ()
    """(frame id, reason) of what is no frame: labels without an image, frames of a published list that are not
    there, and GTA5's frames whose image and label differ in size or have no readable header."""


def load(spec: str) -> Dataset:
    """List the frames of the data set that `layout:path[:subset]` names, without opening them.

    Raises: InputError on an unknown layout or subset, a missing or empty folder, and an id that occurs twice.
    """
    layout, path, subset = split(spec)
    tree = LAYOUTS[layout](path)
    if not tree.root.is_dir():
        raise InputError(f"no folder {tree.root} for '{spec}': name the folder that the data set was unpacked in")
    parts = tree.choose(subset)
    if not parts:
        names = ", ".join(part.name for part in tree.parts if part.name)
        there = f"name one of {names}" if names else "it has none"
        more = " without the published split.mat" if layout == "gta5" and not names else ""
        raise InputError(f"no subset '{subset}' in {path}{more}: {there}; leave the subset out for all frames")
    found: list[Frame] = []
    left_out: list[tuple[str, str]] = []
    for part in parts:
        inside, without = _list(tree.root, part)
        found += inside
        left_out += without
    if not found:
        there = ", ".join(sorted(p.name for p in tree.root.iterdir())[:8]) or "nothing"
        raise InputError(
            f"no image {' or '.join(part.images for part in parts[:3])} in {tree.root}, where there is {there}: "
            f"name the folder that the {layout} data set was unpacked in"
        )
    twice = [id for id, count in Counter(frame.id for frame in found).items() if count > 1]
    if twice:
        paths = " and ".join(str(frame.image) for frame in found if frame.id == twice[0])
        raise InputError(f"frame id '{twice[0]}' belongs to {paths}: rename one of them, or name one subset")
    transferred = (tree.root / "manifest.jsonl").exists()
    if layout == "gta5" and not transferred:
        uneven = dict(_uneven(found))
        found = [frame for frame in found if frame.id not in uneven]
        left_out += uneven.items()
    if left_out:
        id, why = left_out[0]
        _log.warning("%s: %d frames left out, the first is '%s': %s", spec, len(left_out), id, why)
    return Dataset(spec, layout, tree.root, subset, tuple(found), tree.space, transferred, tree, tuple(left_out))


def split(spec: str) -> tuple[str, Path, str]:
    """Layout, folder and subset of layout:path[:subset]. Raises: InputError for an unknown layout."""
    layout, _, rest = spec.partition(":")
    if layout not in LAYOUTS or not rest:
        raise InputError(f"'{spec}' names no data set: write layout:path[:subset], layout one of {', '.join(LAYOUTS)}")
    path = Path(rest).expanduser()
    if path.exists() or ":" not in rest:  # a path may hold a colon itself
        return layout, path, ""
    rest, _, subset = rest.rpartition(":")
    return layout, Path(rest).expanduser(), subset


def _list(root: Path, part: Part) -> tuple[list[Frame], list[tuple[str, str]]]:
    """Frames of a part, and (id, reason) of what has no image."""
    images = part.find(root, part.images)
    labels = part.find(root, part.labels) if part.labels else {}
    if part.ids is not None:
        listed = {(id,) for id in part.ids}
        images = {stars: path for stars, path in images.items() if stars in listed}
        labels = {stars: path for stars, path in labels.items() if stars in listed}
        bare = sorted(listed - images.keys())
    else:
        bare = sorted(labels.keys() - images.keys())
    found = [Frame(part.id(stars), part.domain, path, labels.get(stars)) for stars, path in images.items()]
    return found, [(part.id(stars), f"no image {root / part.fill(stars, part.images)}") for stars in bare]


def _uneven(found: Iterable[Frame]) -> list[tuple[str, str]]:
    """(id, reason) of frames whose headers say that image and label differ in size, or cannot be read."""

    def compare(frame: Frame) -> str | None:
        try:
            (h, w), (label_h, label_w) = image_size(frame.image), image_size(frame.label)
        except InputError as error:
            if getattr(error.__cause__, "errno", None) is not None:
                raise  # a disk that does not answer says nothing about the frame
            return str(error)
        return None if (h, w) == (label_h, label_w) else f"{frame.image} is {w}x{h}, its label {label_w}x{label_h}"

    labelled = [frame for frame in found if frame.label]
    with ThreadPoolExecutor(16) as pool:  # thousands of headers, perhaps on a network disk
        return [(f.id, why) for f, why in zip(labelled, pool.map(compare, labelled), strict=True) if why]


def part_of(dataset: Dataset, frame: Frame) -> tuple[Part, tuple[str, ...]]:
    """The part of the layout that a frame belongs to, and what the `*` of its image pattern stand for."""
    path = frame.image.relative_to(dataset.root)
    return next((part, stars) for part in dataset.tree.parts if (stars := part.stars(path, part.images)))


def place(dataset: Dataset, frame: Frame, root: Path, what: Literal["image", "label"] = "image") -> Path:
    """Where a frame's image (as PNG) or label lies in a tree of the same layout under another root."""
    if what == "image":
        return root / frame.image.relative_to(dataset.root).with_suffix(".png")
    part, stars = part_of(dataset, frame)
    if part.labels is None:
        raise InputError(f"{dataset.name} says nowhere where labels lie: give `labels` in its dataset.yaml")
    return root / part.fill(stars, part.labels)


def describe(dataset: Dataset, root: Path) -> None:
    """Write what a tree under `root`, filled by `place`, needs besides to be loaded: dataset.yaml or split.mat."""
    if dataset.tree.description is not None:
        told = dataset.tree.description | {"root": "."}
        told["images"] = str(PurePosixPath(told["images"]).with_suffix(".png"))
        if "subsets" in told:
            told["subsets"] = {part.name: part.domain for part in dataset.tree.parts}
        with runs.atomic(root / "dataset.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
    if dataset.layout == "gta5" and (dataset.root / "split.mat").exists():
        with runs.atomic(root / "split.mat") as temporary:
            shutil.copyfile(dataset.root / "split.mat", temporary)


def images_of(datasets: Iterable[Dataset]) -> set[Path]:
    """The image files of data sets, by which frames of two are known to be the same however the paths are spelt."""
    return {frame.image.resolve() for dataset in datasets for frame in dataset.frames}


def pair(source: Dataset, transferred: Dataset) -> list[tuple[Frame, Frame]]:
    """(frame, transferred frame) of the same id, in the source's order.

    Source frames that are listed in failures.jsonl at the transferred tree's root, or that its manifest says the
    gate dropped, are left out.
    Raises: InputError when any other frame has no counterpart.
    """
    ours, theirs = ({frame.id: frame for frame in d.frames} for d in (source, transferred))
    failed = {line["id"] for line in runs.failures(transferred.root)} | dropped(transferred.root)
    failed -= theirs.keys()
    missing = [id for id in ours if id not in theirs and id not in failed]
    extra = [id for id in theirs if id not in ours]
    for where, ids in ((transferred, missing), (source, extra)):
        if ids:
            first = ", ".join(f"'{id}'" for id in ids[:3])
            raise InputError(
                f"{source.name} has {len(ours)} frames and {transferred.name} {len(theirs)}, but {len(ids)} of them "
                f"are not in {where.name} (first {first}): name the subset that was transferred, or transfer it again"
            )
    if failed & ours.keys():
        count = len(failed & ours.keys())
        _log.warning("%s: %d frames left out, their transfer failed or was dropped", transferred.name, count)
    return [(frame, theirs[id]) for id, frame in ours.items() if id in theirs]


def dropped(root: Path) -> set[str]:
    """Ids of the frames that a transferred tree's manifest lists as dropped by the gate: they have no image."""
    return {line["id"] for line in runs.read_lines(root / "manifest.jsonl") if was_dropped(line)}


def was_dropped(line: dict) -> bool:
    """Whether a line of a manifest says that the gate dropped its frame."""
    return line.get("gate", {}).get("decision") == "dropped"


def require_labels(dataset: Dataset) -> None:
    """Raises: InputError when a frame has no label, naming where it was looked for."""
    bare = [frame for frame in dataset.frames if frame.label is None]
    if bare:
        expected = place(dataset, bare[0], dataset.root, "label")
        raise InputError(
            f"no label for frame '{bare[0].id}' ({len(bare)} of {len(dataset.frames)} frames of {dataset.name} have "
            f"none), expected {expected}: {dataset.tree.cure}"
        )


def require_sizes(dataset: Dataset) -> None:
    """Raises: InputError when an image and its label differ in size, which only those of a transferred tree may."""
    uneven = [] if dataset.transferred else _uneven(dataset.frames)
    if uneven:
        id, why = uneven[0]
        raise InputError(
            f"image and label of frame '{id}' have not the same size ({why}), one of {len(uneven)} such frames of "
            f"{dataset.name}: repair or remove them, segshift check lists them all"
        )


_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on files that are missing, truncated or no pictures."""


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except _BROKEN as error:
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path} links to {path.readlink()}, which is gone: restore it, or transfer again") from error
        raise InputError(f"cannot read {path} ({error}): restore the file, or remove the frame") from error


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone. Raises: InputError."""
    with _open(path) as picture:
        return picture.height, picture.width


def read_image(path: Path) -> np.ndarray:
    """RGB [H, W, 3] uint8, from JPEG or PNG: grey, palette, RGBA and 16-bit images are converted. Raises: InputError."""
    with _open(path) as picture:
        if picture.mode.startswith("I"):  # 16-bit grey; Pillow takes the upper byte of 16-bit colour by itself
            grey = (np.asarray(picture) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.array(picture.convert("RGB"))


def read_label(frame: Frame, space: LabelSpace) -> np.ndarray:
    """Train ids [H, W] uint8. Raises: InputError on unreadable files and on values outside the label space."""
    return space.to_train(read_ids(frame, space))


def read_ids(frame: Frame, space: LabelSpace) -> np.ndarray:
    """The data set's own values [H, W], which `space` turns into train ids. Raises: InputError, as `read_label`."""
    ids = _read_ids(frame.label, space)
    unknown = space.unknown(ids, truth=True)
    if unknown:
        raise InputError(
            f"label {frame.label} holds the values {', '.join(map(str, unknown[:8]))}, which are neither a class nor "
            f"void of '{space.name}': correct the file, or for your own data name them in dataset.yaml"
        )
    return ids


def write_void(frame: Frame, space: LabelSpace, void: np.ndarray, path: Path) -> None:
    """Copy a frame's label file to `path` with the pixels `void`, bool [H, W], as void; all others keep their value.

    The copy has the file's own format; only where that has no value or colour for void, it is grey and holds values.
    Raises: InputError.
    """
    ids, value = read_ids(frame, space), space.ignored_ids[0]
    ids = np.where(void, value, ids).astype(np.uint16 if max(value, int(ids.max())) > 255 else np.uint8)
    copy = Image.fromarray(ids)
    with _open(frame.label) as picture:
        if picture.mode == "P" and value < 256:
            indices, palette = np.where(void, np.uint8(value), np.asarray(picture)), picture.getpalette("RGB")
            if np.array_equal(_from_palette(indices, palette, space), ids):
                copy = Image.fromarray(indices)
                copy.putpalette(palette + [0] * (768 - len(palette)))
        elif picture.mode not in ("1", "L", "I;16", "P") and space.red_channel:
            copy = cv2.imdecode(np.fromfile(frame.label, np.uint8), cv2.IMREAD_UNCHANGED)
            copy[void, 2] = value
        elif picture.mode not in ("1", "L", "I;16", "P"):
            colour = next((colour for colour, id in space.file_colours if id in space.ignored_ids), None)
            if colour is not None:
                copy = Image.fromarray(np.where(void[..., None], np.uint8(colour), np.asarray(picture.convert("RGB"))))
    with runs.atomic(path) as temporary:
        if isinstance(copy, np.ndarray):  # Pillow writes no 16-bit colour
            temporary.write_bytes(cv2.imencode(".png", copy)[1])
        else:
            copy.save(temporary, format="PNG")


def _read_ids(path: Path, space: LabelSpace) -> np.ndarray:
    """The values of a label file [H, W], 0 to 65535. Raises: InputError."""
    with _open(path) as picture:
        if picture.mode in ("1", "L", "I;16"):
            return np.asarray(picture).astype(np.uint16 if picture.mode == "I;16" else np.uint8, copy=False)
        if picture.mode == "P":
            return _from_palette(np.asarray(picture), picture.getpalette("RGB"), space)
        if space.red_channel:
            picture.verify()  # checksums of the whole file: OpenCV reads half of a truncated one without a word
            pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)  # Pillow cuts 16 bits to 8
            return pixels[..., 2]  # blue, green, red
        return _from_colours(np.asarray(picture.convert("RGB")), path, space)


def _from_palette(indices: np.ndarray, palette: list[int], space: LabelSpace) -> np.ndarray:
    """The indices: they are the ids in the published files. Only where classes have other colours than theirs, as
    in files saved again with another palette, the ids of the colours."""
    colours = dict(space.file_colours)
    own = {id: colour for colour, id in space.file_colours if id not in space.ignored_ids}
    drawn = {i: tuple(palette[3 * i : 3 * i + 3]) for i in np.unique(indices).tolist()}
    if all(own.get(i, colour) == colour for i, colour in drawn.items()) or not colours.keys() >= set(drawn.values()):
        return indices
    table = np.zeros(256, np.uint16)
    table[list(drawn)] = [colours[colour] for colour in drawn.values()]
    return table[indices]


def _from_colours(pixels: np.ndarray, path: Path, space: LabelSpace) -> np.ndarray:
    if not space.file_colours:
        raise InputError(
            f"label {path} is a colour picture, expected one channel that holds values: give `classes` of its "
            "dataset.yaml as colours"
        )
    codes = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    known = {(r << 16) + (g << 8) + b: id for (r, g, b), id in space.file_colours}
    keys = np.array(sorted(known), np.uint32)
    place = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
    strange = np.unique(codes[keys[place] != codes])
    if len(strange):
        text = ", ".join(str((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255)) for c in strange[:4])
        raise InputError(
            f"label {path} holds the colours {text}, which are neither a class nor void of '{space.name}': correct "
            "the file, or for your own data name them in dataset.yaml"
        )
    return np.array([known[key] for key in keys.tolist()], np.uint16)[place]

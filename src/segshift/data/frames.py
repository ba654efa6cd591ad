"""Frames: what a data set is made of, how they are read, and how those of two data sets are paired.

A data set is named `layout:path[:subset]`, and `load` lists its frames without opening them. The layouts are
those of segshift.data.layouts. Everything is matched by frame id; the order of a listing means nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
import yaml
from PIL import Image, ImageOps, UnidentifiedImageError

from segshift import records, runs
from segshift.data import layouts, segments, tars
from segshift.data.labels import LabelSpace
from segshift.data.layouts import LAYOUTS, SUFFIXES, Layout, Part, is_below_root, path_of, printable
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

    @property
    def truth(self) -> Path:
        """The label map of a frame that has one."""
        assert self.label is not None
        return self.label


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
    transferred: bool
    """True for a tree that `segshift transfer` wrote (manifest.jsonl at its root): images may be smaller than
    labels there."""
    tree: Layout
    """Where everything lies under `root`."""
    left_out: tuple[tuple[str, str], ...] = ()
    """(frame id, reason) of what is no frame: labels without an image, frames of a published list that are
    not there, and GTA5's frames whose image and label differ in size or have no readable header."""


def load(spec: str) -> Dataset:
    """List the frames of the data set that `layout:path[:subset]` names, without opening them.

    Raises: InputError on an unknown layout or subset, a folder that is missing, empty or unreadable, and an
    id that occurs twice.
    """
    try:
        return _load(spec)
    except OSError as error:
        where = error.filename or spec
        raise InputError(
            f"cannot list {where} ({error.strerror}): name a folder that this user can read"
        ) from error


def _load(spec: str) -> Dataset:
    layout, path, subset = split(spec)
    tree = LAYOUTS[layout](path)
    if not tree.root.is_dir():
        raise InputError(
            f"no folder {tree.root} for '{spec}': name the folder that the data set was unpacked in"
        )
    parts = tree.choose(subset)
    if not parts:
        names = ", ".join(part.name for part in tree.parts if part.name)
        there = f"name one of {names}" if names else "it has none"
        more = " without the published split.mat" if layout == "gta5" and not names else ""
        raise InputError(
            f"no subset '{subset}' in {path}{more}: {there}; leave the subset out for all frames"
        )
    found: list[Frame] = []
    left_out: list[tuple[str, str]] = []
    for part in parts:
        inside, without = _list(tree.root, part, tree.description is not None)
        found += inside
        left_out += without
    if not found and not left_out:
        there = ", ".join(sorted(printable(p.name) for p in tree.root.iterdir())[:8]) or "nothing"
        raise InputError(
            f"no image {' or '.join(part.images for part in parts[:3])} in {tree.root}, where there is "
            f"{there[:100]}: name the folder that the {layout} data set was unpacked in"
        )
    twice = [id for id, count in Counter(frame.id for frame in found).items() if count > 1]
    if twice:
        paths = " and ".join([str(frame.image) for frame in found if frame.id == twice[0]][:2])
        raise InputError(f"frame id '{twice[0]}' belongs to {paths}: rename one of them, or name one subset")
    transferred = (tree.root / "manifest.jsonl").exists()
    if layout == "gta5" and not transferred:
        uneven = dict(_uneven(found))
        found = [frame for frame in found if frame.id not in uneven]
        left_out += uneven.items()
    if not found:
        id, why = left_out[0]
        raise InputError(
            f"{spec} has no frame that can be used, the first of {len(left_out)} is '{id}': {why}"
        )
    if left_out:
        id, why = left_out[0]
        _log.warning("%s: %d frames left out, the first is '%s': %s", spec, len(left_out), id, why)
    return Dataset(
        spec, layout, tree.root, subset, tuple(found), tree.space, transferred, tree, tuple(left_out)
    )


def split(spec: str) -> tuple[str, Path, str]:
    """Layout, folder and subset of layout:path[:subset]. Raises: InputError for anything else."""
    layout, _, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if layout not in LAYOUTS or not rest:
        shown = printable(str(spec))
        raise InputError(
            f"'{shown}' names no data set: write layout:path[:subset], layout one of {', '.join(LAYOUTS)}"
        )
    path = path_of(rest)
    if ":" not in rest or os.path.exists(path):  # a path may hold a colon itself
        return layout, path, ""
    rest, _, subset = rest.rpartition(":")
    return layout, path_of(rest), subset


def _list(root: Path, part: Part, own: bool) -> tuple[list[Frame], list[tuple[str, str]]]:
    """Frames of a part, and (id, reason) of what has no image or no name that stages can write. own: of the
    user's description."""
    images = part.find(root, part.images)
    labels = part.find(root, part.labels) if part.labels else {}
    if part.ids is not None:
        listed: set[tuple[str, ...]] = {(id,) for id in part.ids}
        images = {stars: path for stars, path in images.items() if stars in listed}
        labels = {stars: path for stars, path in labels.items() if stars in listed}
        bare = sorted(listed - images.keys())
    else:
        bare = sorted(labels.keys() - images.keys())
    reasons = {stars: part.unusable(stars) for stars in images}
    found = [
        Frame(part.id(stars), part.domain, path, labels.get(stars))
        for stars, path in images.items()
        if not reasons[stars]
    ]
    left_out = [(stars, why) for stars, why in reasons.items() if why]
    left_out += [(stars, printable(_no_image(root / part.fill(stars, part.images), own))) for stars in bare]
    return found, [(printable(part.id(stars)), why) for stars, why in left_out]


def _no_image(expected: Path, own: bool) -> str:
    """Why a label has no image. own: of the user's description, where another suffix can be the reason."""
    suffixes = [f".{written}" for suffix in SUFFIXES for written in (suffix, suffix.upper())]
    there = next((path for s in suffixes if own and (path := expected.with_suffix(s)).exists()), None)
    if there is None or not expected.suffix:
        return f"no image {expected}"
    return (
        f"no image {expected}, but {there.name}: end `images` in dataset.yaml with a * that no suffix "
        "follows, which takes every kind of picture"
    )


def _uneven(found: Iterable[Frame]) -> list[tuple[str, str]]:
    """(id, reason) of frames whose headers say that image and label differ in size, or cannot be read."""

    def compare(frame: Frame) -> str | None:
        try:
            (h, w), (label_h, label_w) = image_size(frame.image), image_size(frame.truth)
        except InputError as error:
            if getattr(error.__cause__, "errno", None) is not None:
                raise  # a disk that does not answer says nothing about the frame
            return str(error)
        if (h, w) == (label_h, label_w):
            return None
        return f"{frame.image} is {w}x{h}, its label {label_w}x{label_h}"

    labelled = [frame for frame in found if frame.label]
    with ThreadPoolExecutor(16) as pool:  # thousands of headers, perhaps on a network disk
        return [(f.id, why) for f, why in zip(labelled, pool.map(compare, labelled), strict=True) if why]


class _Dumper(yaml.SafeDumper):
    """Repeats a list that occurs twice: `load` takes no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def part_of(dataset: Dataset, frame: Frame) -> tuple[Part, tuple[str, ...]]:
    """The part of the layout that a frame belongs to, and what the `*` of its image pattern stand for."""
    path = frame.image.relative_to(dataset.root)
    return next((part, stars) for part in dataset.tree.parts if (stars := part.stars(path, part.images)))


def place(dataset: Dataset, frame: Frame, root: Path, what: Literal["image", "label"] = "image") -> Path:
    """Where a frame's image (as PNG) or label lies in a tree of the same layout under another root.

    Raises: InputError when that is outside `root`, and for a label when the data set names no place for it.
    """
    if what == "image":
        inner = PurePath(os.path.relpath(frame.image, dataset.root))
    else:
        part, stars = part_of(dataset, frame)
        if part.labels is None:
            raise InputError(
                f"{dataset.name} does not say where labels lie: give `labels` in its dataset.yaml"
            )
        inner = PurePath(part.fill(stars, part.labels))
    if not is_below_root(inner):
        raise InputError(
            f"the {what} of frame '{frame.id}' would lie at {inner}, outside of {root}: move it below "
            f"{dataset.root}"
        )
    return root / (inner.with_suffix(".png") if what == "image" else inner)


def describe(dataset: Dataset, root: Path) -> None:
    """Write what `load` needs besides the files that `place` names under `root`: dataset.yaml, split.mat, or
    COCO's lists.

    Raises: InputError when images, which become PNGs, and labels would be the same files.
    """
    if dataset.tree.description is not None:
        record = dataset.tree.description | {"root": "."}
        record["images"] = str(PurePosixPath(record["images"]).with_suffix(".png"))
        if record.get("labels") and PurePosixPath(record["labels"]) == PurePosixPath(record["images"]):
            raise InputError(
                f"images and labels of {dataset.name} would both be {record['labels']}, since images are "
                "written as PNG: move the labels into another folder"
            )
        if "subsets" in record:
            record["subsets"] = {part.name: part.domain for part in dataset.tree.parts}
        _write_yaml(root, record)
    if dataset.layout == "gta5" and (dataset.root / "split.mat").exists():
        with runs.atomic(root / "split.mat") as temporary:
            shutil.copyfile(dataset.root / "split.mat", temporary)
    if dataset.layout == "coco":
        for file in (dataset.root / "annotations").glob("panoptic_*.json"):
            with runs.atomic(root / "annotations" / file.name) as temporary:
                shutil.copyfile(file, temporary)


def describe_tar(dataset: Dataset, root: Path) -> None:
    """Write the dataset.yaml of tar files under `root` that hold frames of `dataset`."""
    _write_yaml(root, layouts.describe_tar(dataset.space))


def _write_yaml(root: Path, record: dict[str, Any]) -> None:
    with runs.atomic(root / "dataset.yaml") as temporary:
        text = yaml.dump(record, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def images_of(datasets: Iterable[Dataset]) -> set[Path]:
    """The image files of data sets, links resolved: two frames are the same where these are equal."""
    return {Path(os.path.realpath(frame.image)) for dataset in datasets for frame in dataset.frames}


def pair(source: Dataset, transferred: Dataset) -> list[tuple[Frame, Frame]]:
    """(frame, transferred frame) of the same id, in the source's order.

    Source frames that are listed in failures.jsonl at the transferred tree's root, or that its manifest says
    the gate dropped, are left out.
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
                f"{source.name} has {len(ours)} frames and {transferred.name} {len(theirs)}, but {len(ids)} "
                f"of them are not in {where.name} (first {first}): name the subset that was transferred, or "
                "transfer it again"
            )
    if failed & ours.keys():
        count = len(failed & ours.keys())
        _log.warning("%s: %d frames left out, their transfer failed or was dropped", transferred.name, count)
    return [(frame, theirs[id]) for id, frame in ours.items() if id in theirs]


def dropped(root: Path) -> set[str]:
    """Ids of the frames that a transferred tree's manifest lists as dropped by the gate."""
    lines = runs.read_lines(root / "manifest.jsonl", records.Line)
    return {line["id"] for line in lines if was_dropped(line)}


def was_dropped(line: dict) -> bool:
    """Whether a line of a manifest says that the gate dropped its frame."""
    return line.get("gate", {}).get("decision") == "dropped"


def require_labels(dataset: Dataset) -> None:
    """Raises: InputError when a frame has no label, naming where it was looked for."""
    bare = [frame for frame in dataset.frames if frame.label is None]
    if bare:
        expected = place(dataset, bare[0], dataset.root, "label")
        without = {part_of(dataset, frame)[0].name for frame in bare}
        if without.isdisjoint(part_of(dataset, f)[0].name for f in dataset.frames if f.label is not None):
            some = "" if len(bare) == len(dataset.frames) else f"subset {', '.join(sorted(without))} of "
            raise InputError(
                f"no frame of {some}{dataset.name} has a label, the first is expected at {expected}: "
                f"{dataset.tree.cure}, or name a subset that has labels"
            )
        raise InputError(
            f"no label for frame '{bare[0].id}' ({len(bare)} of {len(dataset.frames)} frames of "
            f"{dataset.name} have none), expected {expected}: {dataset.tree.cure}"
        )


def require_sizes(dataset: Dataset) -> None:
    """Raises: InputError when image and label differ in size, unless the tree is a transferred one."""
    uneven = [] if dataset.transferred else _uneven(dataset.frames)
    if uneven:
        id, why = uneven[0]
        raise InputError(
            f"image and label of frame '{id}' have not the same size ({why}), one of {len(uneven)} such "
            f"frames of {dataset.name}: repair or remove them, segshift check lists them all"
        )


MAX_PIXELS = 178_956_970
"""Largest picture that is read. Pillow refuses larger ones by itself."""

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    cv2.error,
)
"""What Pillow and OpenCV raise on files that are missing, truncated, too large or no pictures."""

_RESTORE = "restore the file, or remove the frame"


@contextmanager
def open_picture(path: Path, cure: str = _RESTORE) -> Iterator[Image.Image]:
    """The picture in a file. Only what reads its pixels belongs into the block.

    Raises: InputError on a file that cannot be read, for which `cure` says what to do.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            opened = Image.open(tars.content(path))  # it warns of half of MAX_PIXELS, and of odd metadata
        with opened as picture:
            yield picture
    except _BROKEN as error:
        if path.is_symlink() and not path.exists():
            gone = f"{path} links to {path.readlink()}, which is gone"
            raise InputError(f"{gone}: restore it, or transfer again") from error
        raise InputError(f"cannot read {path} ({_reason(error)}): {cure}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture"
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:100]


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone. Raises: InputError."""
    with open_picture(path) as picture:
        return picture.height, picture.width


def read_image(path: Path, cure: str = _RESTORE, *, upright: bool = False) -> np.ndarray:
    """RGB [H, W, 3] uint8. Grey, palette, RGBA and 16-bit pictures are converted. Raises: InputError, as
    `open_picture`.

    upright: as the camera was held (EXIF), for pictures without labels; labels lie as the pixels do.
    """
    with open_picture(path, cure) as picture:
        return rgb(_turned(picture) if upright else picture)


def _turned(picture: Image.Image) -> Image.Image:
    """As the camera was held; as it is where the EXIF data are broken, of which Pillow warns."""
    with warnings.catch_warnings(action="ignore"):
        return ImageOps.exif_transpose(picture)


def rgb(picture: Image.Image) -> np.ndarray:
    """RGB [H, W, 3] uint8 of a picture of any mode."""
    if not picture.mode.startswith("I"):
        return np.array(picture.convert("RGB"))
    grey = np.array(picture)  # 16-bit grey; Pillow takes the upper byte of 16-bit colour by itself
    return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)


def one_channel(picture: Image.Image) -> np.ndarray | None:
    """The values [H, W], uint8 or uint16, of a grey picture, or the indices into a palette; else None."""
    if picture.mode == "I;16":
        return np.asarray(picture).astype(np.uint16, copy=False)
    return np.asarray(picture).astype(np.uint8, copy=False) if picture.mode in ("1", "L", "P") else None


def read_label(frame: Frame, space: LabelSpace) -> np.ndarray:
    """Train ids [H, W] uint8. Raises: InputError on unreadable files and on values outside `space`."""
    return space.to_train(read_ids(frame, space))


def read_ids(frame: Frame, space: LabelSpace) -> np.ndarray:
    """The data set's own values [H, W], not train ids. Raises: InputError, as `read_label`."""
    ids = _read_ids(frame.truth, space)
    unknown = space.unknown(ids, truth=True)
    if unknown:
        raise InputError(
            f"label {frame.label} holds the values {', '.join(map(str, unknown[:8]))}, which are neither a "
            f"class nor void of '{space.name}': correct the file, or for your own data name them in "
            "dataset.yaml"
        )
    return ids


def write_void(frame: Frame, space: LabelSpace, void: np.ndarray, path: Path) -> None:
    """Copy a frame's label file to `path`, with the pixels `void`, bool [H, W], as void.

    The copy has the file's format. Where that has no value or colour for void, it is grey and holds values.
    Raises: InputError.
    """
    ids, value = read_ids(frame, space), space.ignored_ids[0]
    ids = np.where(void, value, ids).astype(np.uint16 if max(value, int(ids.max())) > 255 else np.uint8)
    copy: Image.Image | np.ndarray = Image.fromarray(ids)
    with open_picture(frame.truth) as picture:
        indices, palette = one_channel(picture), picture.getpalette("RGB")
        colours = None if indices is not None or space.red_channel else np.asarray(picture.convert("RGB"))
    if indices is not None and palette is not None and value < 256:
        indices = np.where(void, np.uint8(value), indices)
        if np.array_equal(_from_palette(indices, palette, space), ids):
            copy = Image.fromarray(indices)
            copy.putpalette(palette + [0] * (768 - len(palette)))
    elif indices is None and space.red_channel:
        copy = _decode(frame.truth)
        copy[void, 2] = value
    elif colours is not None:
        colour = next((colour for colour, id in space.file_colours if id in space.ignored_ids), None)
        if colour is not None:
            copy = Image.fromarray(np.where(void[..., None], np.array(colour, np.uint8), colours))
    with runs.atomic(path) as temporary:
        if isinstance(copy, np.ndarray):  # Pillow writes no 16-bit colour
            temporary.write_bytes(cv2.imencode(".png", copy)[1].tobytes())
        else:
            copy.save(temporary, format="PNG")


def _read_ids(path: Path, space: LabelSpace) -> np.ndarray:
    """The values of a label file [H, W], 0 to 65535. Raises: InputError."""
    with open_picture(path) as picture:
        values, palette = one_channel(picture), picture.getpalette("RGB")
        colours = None if values is not None or space.red_channel else np.asarray(picture.convert("RGB"))
    if values is not None:
        return values if palette is None else _from_palette(values, palette, space)
    if colours is not None and space.panoptic:
        return segments.categories(colours, path)
    return _from_colours(colours, path, space) if colours is not None else _decode(path)[..., 2]


def _decode(path: Path) -> np.ndarray:
    """The pixels [H, W, 3 or 4] of a colour picture, blue first, with all of their 16 bits, which Pillow cuts
    to 8. Raises: InputError."""
    with open_picture(path) as picture:
        picture.verify()  # checksums of the whole file: OpenCV reads half of a truncated one without a word
        packed = tars.content(path)
        read = (
            np.fromfile(packed, np.uint8)
            if isinstance(packed, Path)
            else np.frombuffer(packed.read(), np.uint8)
        )
        pixels = cv2.imdecode(read, cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.ndim != 3:
            raise ValueError("no colour picture")
    return pixels


def _from_palette(indices: np.ndarray, palette: list[int], space: LabelSpace) -> np.ndarray:
    """The indices, which are the ids in the published files. Where classes have other colours than theirs,
    as in files saved again with another palette, the ids of the colours."""
    colours: dict[tuple[int, ...], int] = dict(space.file_colours)
    own = {id: colour for colour, id in space.file_colours if id not in space.ignored_ids}
    drawn = {i: tuple(palette[3 * i : 3 * i + 3]) for i in np.unique(indices).tolist()}
    published = all(own.get(i, colour) == colour for i, colour in drawn.items())
    if published or not colours.keys() >= set(drawn.values()):
        return indices
    table = np.zeros(256, np.uint16)
    table[list(drawn)] = [colours[colour] for colour in drawn.values()]
    return table[indices]


def _from_colours(pixels: np.ndarray, path: Path, space: LabelSpace) -> np.ndarray:
    if not space.file_colours:
        raise InputError(
            f"label {path} is a colour picture, expected one channel that holds values: give `classes` of "
            "its dataset.yaml as colours"
        )
    codes = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    known = {(r << 16) + (g << 8) + b: id for (r, g, b), id in space.file_colours}
    keys = np.array(sorted(known), np.uint32)
    place = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
    strange = np.unique(codes[keys[place] != codes])
    if len(strange):
        text = ", ".join(str((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255)) for c in strange[:4])
        raise InputError(
            f"label {path} holds the colours {text}, which are neither a class nor void of '{space.name}': "
            "correct the file, or for your own data name them in dataset.yaml"
        )
    return np.array([known[key] for key in keys.tolist()], np.uint16)[place]

"""Layouts: where the published data sets, and the user's own, keep their images and labels.

A layout is a list of `Part`s, each a pair of path patterns. What the last `*` of the image pattern stands for is
the frame's id, and the label of the same id is found with the label pattern: by name, never by position.

The user's own data (`folder:PATH`, or `folder:FILE.yaml`) is described by a `dataset.yaml`:

    root: /data/camvid                      # optional: absolute, or relative to this file; default: its folder
    images: "{subset}/images/*.jpg"         # relative to root
    labels: "{subset}/labels/*.png"         # optional; where no such file exists, frames have no label
    subsets: {day/train: day, day/val: day, dusk/train: dusk}     # name: domain; or a list of names; or left out
    classes: [sky, building, pole]          # label values 0, 1, 2; or {sky: 10, building: 20}; or, for labels
                                            # drawn in colours, {sky: [128, 128, 128], building: [128, 0, 0]}
    colours: {sky: [128, 128, 128]}         # optional: to draw classes in, where labels hold values
    ignore: [11]                            # label values (or colours) that are no class; default: [255]
    map: {cityscapes: {sky: sky, pole: pole}}      # optional: train in this space; classes not named are ignored

With several `*` in a pattern the id is what they stand for, joined by `_`.
"""

from __future__ import annotations

import colorsys
import glob
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import yaml
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from segshift.labels import CITYSCAPES, IGNORE, SYNTHIA, Colour, LabelSpace
from segshift.runs import InputError

CONDITIONS = ("fog", "night", "rain", "snow")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """Frames that lie together: one subset of one domain."""

    name: str
    """What a subset is chosen by: the whole of it ("night/val") or one of its steps ("night", "val")."""
    domain: str
    images: str
    """Pattern relative to the root, `*` standing for anything but a slash."""
    labels: str | None
    ids: tuple[str, ...] | None = None
    """The frames that are published, where a list is; None takes every image."""
    join: bool = False
    """The id joins what all `*` stand for; False: the last alone, which is unique in the published data sets."""

    def find(self, root: Path, pattern: str) -> dict[tuple[str, ...], Path]:
        """Files under `root` that match, sorted, by what each `*` stands for. Hidden files are none: a killed run
        leaves such behind, and so do other systems."""
        paths = sorted(root.glob("*".join(map(glob.escape, pattern.split("*")))))
        found = {self.stars(path.relative_to(root), pattern): path for path in paths}
        return {stars: path for stars, path in found.items() if stars and not any(s.startswith(".") for s in stars)}

    def stars(self, path: PurePath, pattern: str) -> tuple[str, ...] | None:
        """What each `*` of `pattern` stands for in `path`; None where it does not match."""
        match = re.fullmatch("([^/]*)".join(map(re.escape, pattern.split("*"))), path.as_posix())
        return match.groups() if match else None

    def fill(self, stars: tuple[str, ...], pattern: str) -> str:
        """`pattern` with its `*` replaced, in order."""
        texts = iter(stars)
        return re.sub(r"\*", lambda _: next(texts), pattern)

    def id(self, stars: tuple[str, ...]) -> str:
        return "_".join(stars) if self.join else stars[-1]


@dataclass(frozen=True)
class Layout:
    """One data set on disk."""

    root: Path
    parts: tuple[Part, ...]
    space: LabelSpace
    cure: str
    """What to do when labels are missing."""
    description: dict[str, Any] | None = None
    """The user's `dataset.yaml`; None for the published layouts."""

    def choose(self, subset: str) -> tuple[Part, ...]:
        """Parts of a subset, all of them for "". Empty when there is no such subset."""
        whole = tuple(part for part in self.parts if part.name == subset)
        return whole or tuple(part for part in self.parts if not subset or subset in part.name.split("/"))


def cityscapes(path: Path) -> Layout:
    """leftImg8bit and gtFine, as unpacked; the ids are `labelIds`."""
    parts = tuple(
        Part(s, "clear", f"leftImg8bit/{s}/*/*_leftImg8bit.png", f"gtFine/{s}/*/*_gtFine_labelIds.png") for s in SPLITS
    )
    return Layout(path, parts, CITYSCAPES, f"unpack gtFine_trainvaltest.zip in {path}")


def acdc(path: Path) -> Layout:
    """rgb_anon and gt, as unpacked. The reference frames (train_ref, ...) are no part of it."""
    parts = tuple(
        Part(f"{c}/{s}", c, f"rgb_anon/{c}/{s}/*/*_rgb_anon.png", f"gt/{c}/{s}/*/*_gt_labelIds.png")
        for c in CONDITIONS
        for s in SPLITS
    )
    return Layout(path, parts, CITYSCAPES, f"unpack gt_trainval.zip in {path}")


def gta5(path: Path) -> Layout:
    """images and labels, as unpacked; subsets from the published split.mat, without which there are none."""
    whole = Part("", "game", "images/*.png", "labels/*.png")
    subsets = tuple(replace(whole, name=name, ids=ids) for name, ids in _gta5_lists(path / "split.mat").items())
    return Layout(path, (whole, *subsets), CITYSCAPES, f"unpack 01_labels.zip to 10_labels.zip in {path}")


def _gta5_lists(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.exists():
        return {}
    try:
        lists = loadmat(path)
        return {name: tuple(f"{int(i):05d}" for i in lists[f"{name}Ids"].ravel()) for name in SPLITS}
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError) as error:
        raise InputError(
            f"cannot read trainIds, valIds and testIds in {path} ({error}): put the split.mat of the published "
            "read_mapping.zip there, or none and name no subset"
        ) from error


def synthia(path: Path) -> Layout:
    """RAND_CITYSCAPES: RGB and GT/LABELS."""
    part = Part("", "synthia", "RGB/*.png", "GT/LABELS/*.png")
    return Layout(path, (part,), SYNTHIA, f"unpack SYNTHIA_RAND_CITYSCAPES.rar in {path.parent}")


def folder(path: Path) -> Layout:
    """The user's own: `path` is a folder with a dataset.yaml, or such a file. Raises: InputError."""
    file = path if path.suffix in (".yaml", ".yml") and not path.is_dir() else path / "dataset.yaml"
    try:
        told = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"no {file}: a data set of layout 'folder' needs one, which names images, labels and classes"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {file}: {' '.join(str(error).split())}: correct it") from error
    fields = {"root", "images", "labels", "subsets", "classes", "colours", "ignore", "map"}
    if not isinstance(told, dict) or not {"images", "classes"} <= set(told) <= fields:
        got = ", ".join(map(str, told)) if isinstance(told, dict) else "no fields"
        raise InputError(f"{file} has {got}: expected images, classes and none but {', '.join(sorted(fields))}")
    root = file.parent / Path(str(told.get("root", "."))).expanduser()
    try:
        return Layout(root, _parts(told, root), _space(file, told), f"correct `labels` in {file}", told)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} describes no data set ({error}): follow the example in the documentation of segshift.layouts"
        ) from error


def _parts(told: dict[str, Any], root: Path) -> tuple[Part, ...]:
    images, labels = str(told["images"]), told.get("labels") and str(told["labels"])
    for pattern in filter(None, (images, labels)):
        where = PurePosixPath(pattern)
        if where.is_absolute() or ".." in where.parts or "**" in pattern or "*" not in pattern or not where.suffix:
            raise ValueError(f"pattern '{pattern}', expected one below root such as images/*.png")
    if labels and (labels.count("*") != images.count("*") or not labels.endswith(".png")):
        raise ValueError(f"labels '{labels}' for images '{images}', expected a pattern of PNGs with as many *")
    if ("{subset}" in images) != ("subsets" in told):
        raise ValueError("`subsets` and a {subset} in `images` go together, here is one of them")
    subsets = told.get("subsets", [""])
    if not isinstance(subsets, dict):
        subsets = dict.fromkeys(subsets, root.resolve().name)

    def part(name: str, domain: str) -> Part:
        own = (pattern and pattern.replace("{subset}", name) for pattern in (images, labels))
        return Part(name, domain, *own, join=True)

    return tuple(part(str(name), str(domain)) for name, domain in subsets.items())


def _space(file: Path, told: dict[str, Any]) -> LabelSpace:
    """The label space of a dataset.yaml. Colours stand for the values 0, 1, 2, and void for 255."""
    classes, ignore = told["classes"], told.get("ignore", [IGNORE])
    if isinstance(classes, list):
        classes = {name: i for i, name in enumerate(classes)}
    drawn = {name: _colour(value) for name, value in classes.items() if isinstance(value, list)}
    void = [_colour(value) for value in ignore if isinstance(value, list)]
    if len(drawn) not in (0, len(classes)) or (void and not drawn):
        raise ValueError("some classes are colours and some are values")
    values = range(len(drawn)) if drawn else [int(value) for value in classes.values()]
    ignored = tuple(int(value) for value in ignore if not isinstance(value, list)) or (IGNORE,)
    for meanings in ([*values, *ignored], [*drawn.values(), *void]):
        if len(set(meanings)) < len(meanings):
            raise ValueError("a label value or colour has two meanings")
    if not 0 < len(classes) <= IGNORE or not all(0 <= value <= 65535 for value in (*values, *ignored)):
        raise ValueError("expected 1 to 255 classes of values from 0 to 65535")
    colours = {name: _shade(i, len(classes)) for i, name in enumerate(classes)} | drawn
    for name, value in told.get("colours", {}).items():
        if name not in classes:
            raise ValueError(f"colours names {name}, which is no class")
        colours[name] = _colour(value)
    file_colours = (*zip(drawn.values(), values, strict=False), *((colour, ignored[0]) for colour in void))
    names = tuple(map(str, classes))
    own = LabelSpace(
        file.resolve().parent.name, names, tuple(colours[name] for name in classes), tuple(values), ignored,
        file_colours=file_colours,
    )  # fmt: skip
    return _onto(own, told["map"]) if "map" in told else own


def _colour(value: list[int]) -> Colour:
    red, green, blue = (int(v) for v in value)
    return red, green, blue


def _shade(index: int, count: int) -> Colour:
    """A colour of its own for each class that the user gave none."""
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(index / count, 0.8, 0.9 if index % 2 else 0.6))


def _onto(own: LabelSpace, wanted: dict[str, dict[str, str]]) -> LabelSpace:
    """Label files of `own`, read as classes of another space; own classes that are not mapped become void."""
    ((name, pairs),) = wanted.items()
    if name != CITYSCAPES.name:
        raise ValueError(f"map onto '{name}', expected onto cityscapes")
    strange = (pairs.keys() - set(own.names)) | (set(pairs.values()) - set(CITYSCAPES.names))
    if strange:
        raise ValueError(f"map names {', '.join(sorted(strange))}, which is no class")
    values = dict(zip(own.names, own.ids, strict=True))
    ids: dict[int, list[int]] = {}  # own values by train id
    for ours, theirs in pairs.items():
        ids.setdefault(CITYSCAPES.names.index(theirs), []).append(values[ours])
    free = (value for value in range(65536) if value not in own.ids + own.ignored_ids)
    return replace(
        own,
        names=CITYSCAPES.names,
        colours=CITYSCAPES.colours,
        ids=tuple(ids[i][0] if i in ids else next(free) for i in range(CITYSCAPES.classes)),
        ignored_ids=own.ignored_ids + tuple(values[ours] for ours in own.names if ours not in pairs),
        merged_ids=tuple((value, i) for i, found in ids.items() for value in found[1:]),
        absent=tuple(i for i in range(CITYSCAPES.classes) if i not in ids),
    )


LAYOUTS = {f.__name__: f for f in (cityscapes, acdc, gta5, synthia, folder)}

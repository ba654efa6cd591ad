"""Layouts: where the published data sets, and the user's own, keep their images and labels.

A layout is a list of `Part`s, each a pair of path patterns. What the last `*` of the image pattern stands for
is the frame's id, and the label of the same id is found with the label pattern: by name, never by position.

The user's own data (`folder:PATH`, or `folder:FILE.yaml`) is described by a `dataset.yaml`:

    root: /data/camvid                      # optional: absolute, or relative to this file; default "."
    images: "{subset}/images/*.jpg"         # below root; with images/* every picture: PNG, JPEG, TIFF, ...
    labels: "{subset}/labels/*.png"         # optional; where no such file exists, frames have no label
    subsets: {day/train: day, day/val: day, dusk/train: dusk}     # name: domain, or a list of names, or none
    classes: [sky, building, pole]          # label values 0, 1, 2; or {sky: 10, building: 20}; or, for labels
                                            # drawn in colours, {sky: [128, 128, 128], building: [128, 0, 0]}
    colours: {sky: [128, 128, 128]}         # optional: to draw classes in, where labels hold values
    ignore: [11]                            # label values (or colours) that are no class; default: [255]
    map: {cityscapes: {sky: sky, pole: pole}}  # optional: train in this space; other classes are ignored

With several `*` in a pattern the id is what they stand for, joined by `_`. Names are text, in quotes where
YAML would read a number or a truth value. Anchors, aliases and tags are refused.
"""

from __future__ import annotations

import colorsys
import os
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError, model_validator
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from segshift.data import segments, tars
from segshift.data.labels import CITYSCAPES, IGNORE, SYNTHIA, Colour, LabelSpace
from segshift.runs import InputError

CONDITIONS = ("fog", "night", "rain", "snow")
SPLITS = ("train", "val", "test")
SUFFIXES = ("png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp")
"""Pictures that a pattern without suffix matches, in upper and lower case."""
NAME_BYTES = 240
"""Longest name of a file. File systems allow 255 bytes; temporary files have longer names than results."""

_MAX_YAML_BYTES = 1 << 18
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and what stands for the bytes of a file name that is not UTF-8."""


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
    """True: the id joins what all `*` stand for. False: it is what the last one stands for."""

    def find(self, root: Path, pattern: str) -> dict[tuple[str, ...], Path]:
        """Files under `root` that match, sorted, by what each `*` stands for, without hidden ones: killed
        runs and other systems leave those behind.

        Raises: InputError when two pictures differ only in the suffix; OSError when a folder is unreadable.
        """
        found: dict[tuple[str, ...], Path] = {}
        for path in _matches(root, PurePosixPath(pattern).parts):
            stars = self.stars(path.relative_to(root), pattern)
            if not stars or any(star.startswith(".") for star in stars):
                continue
            if stars in found:
                raise InputError(
                    f"{found[stars]} and {path} are two pictures of one name: remove one, or name a suffix "
                    f"in `images`, as in {pattern}.png"
                )
            found[stars] = path
        return found

    def stars(self, path: PurePath, pattern: str) -> tuple[str, ...] | None:
        """What each `*` of `pattern` stands for in `path`; None where it does not match."""
        match = re.fullmatch(_regex(pattern), path.as_posix())
        return match.groups() if match else None

    def fill(self, stars: tuple[str, ...], pattern: str) -> str:
        """`pattern` with its `*` replaced, in order."""
        texts = iter(stars)
        return re.sub(r"\*", lambda _: next(texts), pattern)

    def id(self, stars: tuple[str, ...]) -> str:
        """The frame's id, of what the `*` stand for."""
        return "_".join(stars) if self.join else stars[-1]

    def unusable(self, stars: tuple[str, ...]) -> str | None:
        """Why a frame of this name cannot be written by other stages; None where it can."""
        return unusable([self.fill(stars, pattern) for pattern in (self.images, self.labels) if pattern])


def unusable(paths: Iterable[str]) -> str | None:
    """Why the files of a frame, relative to their root, cannot be written by stages; None where they can."""
    names = [step for path in paths for step in PurePosixPath(path).parts]
    if any(map(_ODD.search, names)):
        return "its name is no plain UTF-8 text: rename the file"
    longest = max(len(os.fsencode(name)) for name in names)
    if longest > NAME_BYTES:
        return f"its name has {longest} bytes, expected at most {NAME_BYTES}: rename the file"
    return None


def _regex(pattern: str) -> str:
    """A regular expression for `pattern`, with a group for each `*`. Any of SUFFIXES is added to a pattern
    that has none."""
    regex = "([^/]*)".join(map(re.escape, pattern.split("*")))
    return regex if PurePosixPath(pattern).suffix else rf"{regex}\.(?i:{'|'.join(SUFFIXES)})"


def _matches(folder: Path, steps: Sequence[str]) -> Iterator[Path]:
    """Paths below `folder` that match a pattern's steps, sorted. Raises: OSError when a folder cannot be
    listed, where glob leaves it out."""
    step, *rest = steps
    if rest and "*" not in step:
        yield from _matches(folder / step, rest)
        return
    regex = re.compile("[^/]*".join(map(re.escape, step.split("*"))) if rest else _regex(step))
    try:
        inside = os.listdir(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        if folder.suffix != ".tar":
            return
        inside = tars.names(folder)
    names = sorted(name for name in inside if regex.fullmatch(name))
    for name in names:
        if rest:
            yield from _matches(folder / name, rest)
        else:
            yield folder / name


def printable(text: str) -> str:
    """`text` with escapes (such as \\x1b) for control characters and for bytes that are not UTF-8."""
    return _ODD.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_below_root(path: PurePath) -> bool:
    """Whether `root / path` lies below any `root`: `path` is relative, not empty and has no `..`."""
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def path_of(text: str) -> Path:
    """The path that the user wrote, with `~` expanded. Raises: InputError for an unknown user, for control
    characters and for what is not UTF-8."""
    if _ODD.search(text):
        raise InputError(f"the path '{printable(text)}' is no plain UTF-8 text: rename the folder")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"no home folder for {text}: write the path in full") from error


@dataclass(frozen=True)
class Layout:
    """One data set on disk."""

    root: Path
    parts: tuple[Part, ...]
    space: LabelSpace
    cure: str
    """What to do where labels are missing, for the end of an error."""
    description: dict[str, Any] | None = None
    """The user's `dataset.yaml`; None for the published layouts."""

    def choose(self, subset: str) -> tuple[Part, ...]:
        """Parts of a subset, all of them for "". Empty when there is no such subset."""
        whole = tuple(part for part in self.parts if part.name == subset)
        return whole or tuple(part for part in self.parts if not subset or subset in part.name.split("/"))


def cityscapes(path: Path) -> Layout:
    """leftImg8bit and gtFine, as unpacked; labels are the `labelIds` files."""
    parts = tuple(
        Part(s, "clear", f"leftImg8bit/{s}/*/*_leftImg8bit.png", f"gtFine/{s}/*/*_gtFine_labelIds.png")
        for s in SPLITS
    )
    return Layout(path, parts, CITYSCAPES, f"unpack gtFine_trainvaltest.zip in {path}")


def acdc(path: Path) -> Layout:
    """rgb_anon and gt, as unpacked. The reference frames (train_ref, ...) are left out."""
    parts = tuple(
        Part(f"{c}/{s}", c, f"rgb_anon/{c}/{s}/*/*_rgb_anon.png", f"gt/{c}/{s}/*/*_gt_labelIds.png")
        for c in CONDITIONS
        for s in SPLITS
    )
    return Layout(path, parts, CITYSCAPES, f"unpack gt_trainval.zip in {path}")


_BROKEN_MAT = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    EOFError,
    NotImplementedError,
    MatReadError,
    zlib.error,
)
"""What scipy raises on files that are missing, truncated or no lists."""


def gta5(path: Path) -> Layout:
    """images and labels, as unpacked. Subsets need the published split.mat.

    Raises: InputError when split.mat is broken.
    """
    whole = Part("", "game", "images/*.png", "labels/*.png")
    subsets = tuple(
        replace(whole, name=name, ids=ids) for name, ids in _gta5_lists(path / "split.mat").items()
    )
    return Layout(path, (whole, *subsets), CITYSCAPES, f"unpack 01_labels.zip to 10_labels.zip in {path}")


def _gta5_lists(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.exists():
        return {}
    try:
        lists = loadmat(path)
        return {name: tuple(f"{int(i):05d}" for i in lists[f"{name}Ids"].ravel()) for name in SPLITS}
    except _BROKEN_MAT as error:
        raise InputError(
            f"cannot read trainIds, valIds and testIds in {path} ({error}): put the published split.mat of "
            "read_mapping.zip there, or remove the file and name no subset"
        ) from error


def synthia(path: Path) -> Layout:
    """RAND_CITYSCAPES: RGB and GT/LABELS."""
    part = Part("", "synthia", "RGB/*.png", "GT/LABELS/*.png")
    return Layout(path, (part,), SYNTHIA, f"unpack SYNTHIA_RAND_CITYSCAPES.rar in {path.parent}")


def coco(path: Path) -> Layout:
    """COCO's panoptic annotations, as unpacked: annotations/panoptic_NAME.json and its PNGs; the images in
    NAME or images/NAME.

    Raises: InputError when a list is missing, broken, or of other classes than the first.
    """
    lists = sorted((path / "annotations").glob("panoptic_*.json"))
    if not lists:
        raise InputError(
            f"no annotations/panoptic_*.json in {path}: unpack panoptic_annotations_trainval2017.zip "
            "there, and the zips of PNGs inside it"
        )
    spaces = [segments.space(file) for file in lists]
    other = next((file for file, space in zip(lists, spaces, strict=True) if space != spaces[0]), None)
    if other is not None:
        raise InputError(f"{other} has other categories than {lists[0]}: keep lists of the same in a folder")
    home = "images/" if (path / "images").is_dir() else ""
    names = [file.stem.removeprefix("panoptic_") for file in lists]
    parts = tuple(
        Part(name, "coco", f"{home}{name}/*", f"annotations/panoptic_{name}/*.png") for name in names
    )
    colours = tuple(_shade(i, spaces[0].classes) for i in range(spaces[0].classes))
    space = replace(spaces[0], colours=colours)
    return Layout(path, parts, space, f"unpack the zip of PNGs in {path}/annotations")


_Text = Annotated[str, StringConstraints(pattern=r"^[^\s\p{Cc}]([^\p{Cc}]*[^\s\p{Cc}])?$")]
"""Not empty, without control characters, without spaces around it."""
_Value = Annotated[int, Field(ge=0, le=65535)]
_Drawn = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]


def _inside(text: str) -> str:
    """A relative path, `./` removed. Raises: ValueError where it does not lead below the root."""
    path = PurePosixPath(text)
    if not is_below_root(path):
        raise ValueError("no path below root")
    return str(path)


def _subset(text: str) -> str:
    if "*" in text or _inside(text) != text:
        raise ValueError("no plain path below root")
    return text


def _pattern(text: str) -> str:
    text = _inside(text)
    if "*" not in text or "**" in text or "*" in PurePosixPath(text).suffix:
        raise ValueError("no pattern of files")
    return text


_Subset = Annotated[_Text, AfterValidator(_subset)]
_Pattern = Annotated[_Text, AfterValidator(_pattern)]


class Description(BaseModel, extra="forbid", strict=True):
    """A dataset.yaml, as the heading of this module shows it. A field's description says what it expects."""

    root: _Text = Field(".", description="a path")
    images: _Pattern = Field(
        description="a pattern below root such as images/*.png, or images/* for any picture"
    )
    labels: _Pattern | None = Field(None, description="a pattern of PNGs below root such as labels/*.png")
    subsets: (
        Annotated[list[_Subset], Field(min_length=1)] | Annotated[dict[_Subset, _Text], Field(min_length=1)]
    ) = Field([], description="a list of paths below root without *, or such paths with their domain")
    classes: list[_Text] | dict[_Text, _Value | _Drawn] = Field(
        description="a list of names, or names with values (0 to 65535) or colours such as [0, 128, 255]"
    )
    colours: dict[_Text, _Drawn] = Field({}, description="classes with colours such as [0, 128, 255]")
    ignore: list[_Value | _Drawn] = Field(
        [IGNORE], description="a list of label values from 0 to 65535 or of colours such as [0, 128, 255]"
    )
    map: dict[Literal["cityscapes"], dict[_Text, _Text]] = Field(
        {}, min_length=1, description="{cityscapes: {class: class of Cityscapes}}"
    )

    @property
    def meanings(self) -> dict[str, int | list[int]]:
        """The label value, or the colour, of each class."""
        if isinstance(self.classes, dict):
            return self.classes
        return {name: i for i, name in enumerate(self.classes)}

    @model_validator(mode="after")
    def _agree(self) -> Description:
        """Check what concerns several fields. Raises: ValueError."""
        if not 0 < len(self.classes) <= IGNORE:
            raise ValueError(f"`classes` holds {len(self.classes)} names, expected 1 to {IGNORE}")
        for field, names in (("subsets", self.subsets), ("classes", self.classes)):
            name, count = max(Counter(list(names)).items(), key=itemgetter(1), default=("", 0))
            if count > 1:
                raise ValueError(f"`{field}` names {_short(name)} twice, expected it once")
        if self.labels and (
            self.labels.count("*") != self.images.count("*") or not self.labels.endswith(".png")
        ):
            raise ValueError(
                f"`labels` is {self.labels}, expected a pattern of PNGs with as many * as {self.images}"
            )
        if ("{subset}" in self.images) != bool(self.subsets):
            raise ValueError("`subsets` and a {subset} in `images` go together, expected both or none")
        kinds = {type(value) for value in self.meanings.values()}
        if len(kinds) > 1 or (list in map(type, self.ignore) and list not in kinds):
            raise ValueError(
                "some classes are colours and some are values, expected the same for all and `ignore`"
            )
        void = self.ignore if int in map(type, self.ignore) else [*self.ignore, IGNORE]
        values = range(len(self.classes)) if list in kinds else []  # of classes that are drawn
        meanings = Counter(map(str, [*self.meanings.values(), *void, *values]))
        if max(meanings.values()) > 1:
            raise ValueError(
                "a label value or colour has two meanings, expected one of each in `classes` and `ignore`"
            )
        theirs = {name for pairs in self.map.values() for name in pairs.values()} - set(CITYSCAPES.names)
        ours = {name for pairs in self.map.values() for name in pairs} - set(self.meanings)
        for field, strange in (("colours", self.colours.keys() - set(self.meanings)), ("map", ours | theirs)):
            if strange:
                raise ValueError(f"`{field}` names {_short(min(strange))}, which is no class")
        return self


class _Loader(yaml.SafeLoader):
    """Plain YAML: aliases, which can multiply a small file, anchors, tags and repeated keys are errors."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            problem = "a description has no anchor (&), alias (*) or tag (!), and one stands"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            keys.add((key.tag, str(key.value)))
        return node


def folder(path: Path) -> Layout:
    """The user's own: `path` is a folder with a dataset.yaml, or such a file. Raises: InputError."""
    file = path if path.suffix in (".yaml", ".yml") and not path.is_dir() else path / "dataset.yaml"
    record = _read_yaml(file)
    fields, needed = Description.model_fields, {"images", "classes"}
    if not isinstance(record, dict) or not needed <= set(record) <= fields.keys():
        got = ", ".join(list(map(_short, record))[:8]) if isinstance(record, dict) and record else "no fields"
        raise InputError(
            f"{file} has {got}: it must have images and classes, and may have "
            f"{', '.join(sorted(fields.keys() - needed))}: leave out what is none of them"
        )
    return _described(file, record, f"put it there, or correct `labels` in {file}")


@dataclass(frozen=True)
class _Packed(Part):
    """Frames in tar files."""

    def stars(self, path: PurePath, pattern: str) -> tuple[str, ...] | None:
        found = super().stars(path, pattern)
        return None if found is None or "." in found[-1] else found  # KEY.label.png is no image

    def id(self, stars: tuple[str, ...]) -> str:
        return tars.id_of(stars[-1])


def tar(path: Path) -> Layout:
    """What `segshift transfer --output tar` writes (`segshift.data.tars`). Raises: InputError."""
    found = folder(path)
    domain = found.root.resolve().name
    return replace(found, parts=(_Packed("", domain, PACKED_IMAGES, PACKED_LABELS),))


PACKED_IMAGES, PACKED_LABELS = "*.tar/*.png", "*.tar/*.label.png"
"""Where they lie below the root."""


def describe_tar(space: LabelSpace) -> dict[str, Any]:
    """The dataset.yaml of such files, whose labels are train ids."""
    return {
        "images": PACKED_IMAGES,
        "labels": PACKED_LABELS,
        "classes": list(space.names),
        "colours": {name: list(colour) for name, colour in zip(space.names, space.colours, strict=True)},
        "ignore": [IGNORE],
    }


def ultralytics(path: Path) -> Layout:
    """Ultralytics' semantic segmentation: `path` is a data.yaml with `masks_dir`, or its folder.

    What `segshift transfer` writes of it describes itself by a dataset.yaml. Raises: InputError.
    """
    file = path if path.suffix in (".yaml", ".yml") and not path.is_dir() else path / "data.yaml"
    if not file.exists() and (path / "dataset.yaml").exists():
        return folder(path)
    record = _read_yaml(file)
    masks = record.get("masks_dir") if isinstance(record, dict) else None
    if not isinstance(masks, str) or "names" not in record:
        raise InputError(
            f"{file} has no `names` or no `masks_dir`: expected a data.yaml of Ultralytics with PNG "
            "masks; convert polygons to masks first"
        )
    folders = [PurePosixPath(str(record[split])).parts for split in SPLITS if record.get(split)]
    differ = [i for i, steps in enumerate(zip(*folders, strict=False)) if len(set(steps)) > 1]
    if len(folders) == 1:
        differ = [i for i, step in enumerate(folders[0]) if step != "images"][-1:]
    if len(differ) != 1 or len(set(map(len, folders))) > 1 or any(f.count("images") != 1 for f in folders):
        raise InputError(
            f"{file} names {_short([str(record.get(split)) for split in SPLITS])} as {', '.join(SPLITS)}, "
            "expected a folder each that differs in one step, such as images/train and images/val"
        )
    [place], names = differ, record["names"]
    steps = [*folders[0][:place], "{subset}", *folders[0][place + 1 :]]
    described = {
        "root": record.get("path", "."),
        "images": "/".join([*steps, "*"]),
        "labels": "/".join([masks if step == "images" else step for step in [*steps, "*.png"]]),
        "subsets": list(dict.fromkeys(folder[place] for folder in folders)),
        "classes": {name: value for value, name in names.items()} if isinstance(names, dict) else names,
    }
    return _described(file, described, f"put it there, or correct `masks_dir` in {file}")


def _described(file: Path, record: dict[str, Any], cure: str) -> Layout:
    """What `record` says, with the fields of a `Description`. Raises: InputError naming `file`."""
    try:
        description = Description.model_validate(record)
    except ValidationError as error:
        raise InputError(f"{file} describes no data set: {_wrong(error)}") from error
    try:
        root = file.parent / path_of(description.root)
    except InputError as error:
        raise InputError(f"{file} describes no data set: {error}") from error
    return Layout(
        root,
        _parts(description, root),
        _space(file, description),
        cure,
        record,
    )


def _read_yaml(file: Path) -> Any:
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"no {file}: a data set of this layout needs one, which names images, labels and classes"
        ) from error
    if len(content) > _MAX_YAML_BYTES:
        raise InputError(f"{file} has {len(content)} bytes, expected at most {_MAX_YAML_BYTES}: shorten it")
    try:
        return yaml.load(content, _Loader)
    except RecursionError as error:
        raise InputError(f"cannot read {file}: it is nested too deeply: correct it") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = printable(error.problem or error.context or "no YAML")
        raise InputError(f"cannot read {file}: {problem}{line}: correct it") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as a date that does not exist
        raise InputError(
            f"cannot read {file}: {printable(' '.join(str(error).split()))}: correct it"
        ) from error


def _wrong(error: ValidationError) -> str:
    """What a field of a `Description` holds and what is expected, or what does not agree."""
    # A union gives an error for each of its kinds: the one that got farthest is of the kind that was meant.
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    if not first["loc"]:
        return str(first["ctx"]["error"])
    field = str(first["loc"][0])
    quotes = " (a name needs quotes)" if first["type"] == "string_type" else ""
    expected = Description.model_fields[field].description
    return f"`{field}` holds {reprlib.repr(first['input'])}, expected {expected}{quotes}"


def _short(value: Any) -> str:
    """A value of the file for an error: on one line, of some 40 characters."""
    return printable(value) if isinstance(value, str) and len(value) < 40 else reprlib.repr(value)


def _parts(description: Description, root: Path) -> tuple[Part, ...]:
    subsets = description.subsets or [""]
    if isinstance(subsets, list):
        subsets = dict.fromkeys(subsets, Path(os.path.realpath(root)).name)

    def part(name: str, domain: str) -> Part:
        images = description.images.replace("{subset}", name)
        labels = description.labels and description.labels.replace("{subset}", name)
        return Part(name, domain, images, labels, join=True)

    return tuple(part(name, domain) for name, domain in subsets.items())


def _space(file: Path, description: Description) -> LabelSpace:
    """The label space of a dataset.yaml. Colours stand for the values 0, 1, 2, and void for 255."""
    meanings = description.meanings
    drawn = {name: _colour(value) for name, value in meanings.items() if isinstance(value, list)}
    void = [_colour(value) for value in description.ignore if isinstance(value, list)]
    numbers = tuple(value for value in meanings.values() if isinstance(value, int))
    values = tuple(range(len(drawn))) if drawn else numbers
    ignored = tuple(value for value in description.ignore if isinstance(value, int)) or (IGNORE,)
    colours = {name: _shade(i, len(meanings)) for i, name in enumerate(meanings)} | drawn
    colours |= {name: _colour(value) for name, value in description.colours.items()}
    file_colours = (*zip(drawn.values(), values, strict=False), *((colour, ignored[0]) for colour in void))
    own = LabelSpace(
        file.resolve().parent.name,
        tuple(meanings),
        tuple(colours[name] for name in meanings),
        values,
        ignored,
        file_colours=file_colours,
    )
    return _onto_cityscapes(own, description.map["cityscapes"]) if description.map else own


def _colour(value: Sequence[int]) -> Colour:
    red, green, blue = value
    return red, green, blue


def _shade(index: int, count: int) -> Colour:
    """A colour of its own for each class that the user gave none."""
    return _colour(
        [round(255 * v) for v in colorsys.hsv_to_rgb(index / count, 0.8, 0.9 if index % 2 else 0.6)]
    )


def _onto_cityscapes(own: LabelSpace, pairs: dict[str, str]) -> LabelSpace:
    """Label files of `own`, read as classes of Cityscapes. Classes that are not in `pairs` become void."""
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


LAYOUTS = {f.__name__: f for f in (cityscapes, acdc, gta5, synthia, coco, ultralytics, folder, tar)}

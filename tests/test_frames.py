"""Frames: reading pictures, the user's own folder, pairing by id, and wrong input."""

import os
import struct
import zlib
from dataclasses import replace
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import pytest
import trees
import yaml
from PIL import Image

from segshift.data import frames
from segshift.data.frames import load, pair, place, read_image, read_label
from segshift.data.labels import CITYSCAPES, SYNTHIA
from segshift.runs import InputError, write_lines
from segshift.scoring import predictions

# --- pictures


def png16(path: Path, pixels: np.ndarray) -> None:
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def test_every_kind_of_picture_becomes_rgb_of_8_bits(tmp_path: Path):
    colour = trees.picture("x", (8, 6))
    grey = colour[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    palette = Image.fromarray(colour).quantize(256)
    saved = {
        "grey": (Image.fromarray(grey), three),
        "palette": (palette, np.array(palette.convert("RGB"))),
        "rgba": (Image.fromarray(np.dstack([colour, grey])), colour),
        "grey and alpha": (Image.fromarray(np.dstack([grey, grey]), "LA"), three),
        "one bit": (Image.fromarray(grey > 99), np.where(three > 99, 255, 0)),
    }
    for name, (picture, expected) in saved.items():
        picture.save(tmp_path / f"{name}.png")
        got = read_image(tmp_path / f"{name}.png")
        assert got.dtype == np.uint8 and np.array_equal(got, expected), name
    png16(tmp_path / "16 bit grey.png", grey.astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "16 bit grey.png"), three)
    png16(tmp_path / "16 bit colour.png", colour.astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "16 bit colour.png"), colour)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_picture_is_named(suffix: str, tmp_path: Path):
    path = trees.save(tmp_path / f"image.{suffix}", trees.picture("x"))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"cannot read {path}"):
        read_image(path)


@pytest.mark.parametrize("layout", ["cityscapes", "gta5", "synthia"])
def test_a_truncated_label_is_named(layout: str, tmp_path: Path):
    frame = load(f"{layout}:{getattr(trees, layout)(tmp_path)}").frames[0]
    data = frame.label.read_bytes()
    frame.label.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"cannot read {frame.label}"):
        read_label(frame, SYNTHIA if layout == "synthia" else CITYSCAPES)


def test_the_size_is_read_from_the_header_alone(tmp_path: Path):
    path = trees.save(tmp_path / "image.png", trees.picture("x", (40, 60)))
    path.write_bytes(path.read_bytes()[:100])
    assert frames.image_size(path) == (40, 60)


def test_a_label_value_outside_the_space_is_named(tmp_path: Path):
    path = trees.save(tmp_path / "label.png", np.array([[7, 99, 120]], np.uint8))
    with pytest.raises(InputError, match=r"label .*label\.png holds the values 99, 120"):
        read_label(trees.label_frame(path), CITYSCAPES)


def test_a_label_of_16_bits_keeps_its_values(tmp_path: Path):
    space = replace(CITYSCAPES, ids=tuple(range(1000, 1019)))
    png16(tmp_path / "label.png", space.to_file(np.array([[0, 18, 255]], np.uint8)))
    assert read_label(trees.label_frame(tmp_path / "label.png"), space).tolist() == [[0, 18, 255]]


def test_a_label_colour_outside_the_space_is_named(tmp_path: Path):
    path = trees.save(tmp_path / "label.png", np.array([[(128, 64, 128), (1, 2, 3)]], np.uint8))
    with pytest.raises(InputError, match=r"label\.png holds the colours \(1, 2, 3\)"):
        read_label(trees.label_frame(path), CITYSCAPES)


def test_a_label_that_links_to_nothing_is_named(tmp_path: Path):
    os.symlink(tmp_path / "gone.png", tmp_path / "label.png")
    with pytest.raises(InputError, match=r"label\.png links to .*gone\.png, which is gone"):
        read_label(trees.label_frame(tmp_path / "label.png"), CITYSCAPES)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path):
    for mode, name in (("L", "grey"), ("RGB", "colour")):
        path = tmp_path / f"{name}.png"
        Image.new(mode, (8, 8)).save(path)
        header = b"IHDR" + struct.pack(">II", 60000, 60000) + path.read_bytes()[24:29]
        path.write_bytes(
            path.read_bytes()[:12] + header + struct.pack(">I", zlib.crc32(header)) + path.read_bytes()[33:]
        )
        read = [
            lambda path=path: read_image(path),
            lambda path=path: frames.image_size(path),
            lambda path=path: read_label(trees.label_frame(path), CITYSCAPES),
            lambda path=path: read_label(trees.label_frame(path), SYNTHIA),
            lambda path=path: predictions.read(path, CITYSCAPES),
        ]
        for one in read:
            with pytest.raises(
                InputError, match=rf"cannot read {path} \(it has more than 178956970 pixels\)"
            ):
                one()
        assert predictions.read_plain(path) is None


def test_a_very_wide_picture_is_read(tmp_path: Path):
    wide = trees.picture("x", (2, 20000))
    assert np.array_equal(read_image(trees.save(tmp_path / "image.png", wide)), wide)
    label = trees.label_frame(trees.save(tmp_path / "label.png", np.full((2, 20000), 7, np.uint8)))
    assert read_label(label, CITYSCAPES).shape == (2, 20000)


@pytest.mark.filterwarnings("error")  # nothing of Pillow's own reaches the user
def test_whatever_is_in_a_picture_is_read_or_refused(tmp_path: Path):
    picture, rng = Image.fromarray(trees.picture("x", (8, 12))), np.random.default_rng(0)
    colours = {"png": picture, "jpg": picture, "bmp": picture, "tif": picture, "webp": picture}
    others = {
        "grey.png": picture.convert("L"),
        "palette.png": picture.quantize(16),
        "one.png": picture.convert("1"),
    }
    for name, saved in (colours | others).items():
        path = tmp_path / f"x.{name}"
        saved.save(path)
        content, refused = np.frombuffer(path.read_bytes(), np.uint8), 0
        for _ in range(60):
            broken = content[: rng.integers(len(content) + 1)].copy()
            where = rng.integers(0, max(1, min(len(broken), 90)), 3)
            if len(broken):
                broken[where] = rng.integers(0, 256, 3)
            path.write_bytes(broken)
            for read in (
                lambda path=path: read_image(path),
                lambda path=path: read_image(path, upright=True),
                lambda path=path: read_label(trees.label_frame(path), CITYSCAPES),
                lambda path=path: read_label(trees.label_frame(path), SYNTHIA),
                lambda path=path: predictions.read(path, CITYSCAPES),
            ):
                try:
                    assert read().dtype == np.uint8
                except InputError:
                    refused += 1
            predictions.read_plain(path)
        assert refused


# --- the user's own folder


def test_classes_may_be_colours_and_several_may_become_one(tmp_path: Path):
    text = """\
images: "{subset}/images/*.jpg"
labels: "{subset}/labels/*.png"
subsets: [train]
classes: {lane: [9, 9, 9], kerb: [0, 0, 0], bush: [0, 200, 0], lamp: [200, 0, 0]}
ignore: [[255, 255, 255]]
"""
    trees.folder(tmp_path, ["a"], yaml=text)
    colours = [(9, 9, 9), (0, 0, 0), (0, 200, 0), (200, 0, 0), (255, 255, 255)]
    trees.save(tmp_path / "train/labels/a.png", np.array([colours], np.uint8))
    data = load(f"folder:{tmp_path}:train")
    assert data.space.names == ("lane", "kerb", "bush", "lamp")
    assert data.space.colours == tuple(colours[:4])
    assert read_label(data.frames[0], data.space).tolist() == [[0, 1, 2, 3, 255]]

    more = "map: {cityscapes: {lane: road, kerb: road, bush: vegetation}}\n"
    (tmp_path / "dataset.yaml").write_text(text + more)
    data = load(f"folder:{tmp_path}:train")
    assert data.space.names == CITYSCAPES.names
    assert read_label(data.frames[0], data.space).tolist() == [[0, 0, 8, 255, 255]]
    predicted = np.array([[*range(19), 255]], np.uint8)  # classes without a value of their own, too
    assert np.array_equal(data.space.to_train(data.space.to_file(predicted)), predicted)


def test_a_colour_label_needs_colours_in_the_yaml(tmp_path: Path):
    data = load(f"folder:{trees.folder(tmp_path, ['a'])}:train")
    trees.save(data.frames[0].label, trees.picture("a"))
    with pytest.raises(InputError, match=r"a\.png is a colour picture, expected one channel"):
        read_label(data.frames[0], data.space)


def test_several_stars_make_one_id(tmp_path: Path):
    text = 'images: "*/rgb/*.png"\nlabels: "*/ids/*.png"\nclasses: [a, b]\n'
    for sequence in ("s1", "s2"):
        trees.save(tmp_path / sequence / "rgb/0001.png", trees.picture(sequence))
        trees.save(tmp_path / sequence / "ids/0001.png", np.zeros((32, 64), np.uint8))
    (tmp_path / "dataset.yaml").write_text(text)
    data = load(f"folder:{tmp_path}")
    assert [frame.id for frame in data.frames] == ["s1_0001", "s2_0001"]
    assert [frame.label.parts[-3] for frame in data.frames] == ["s1", "s2"]
    assert {frame.domain for frame in data.frames} == {tmp_path.name}


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path):
    trees.folder(tmp_path, ["a"])
    trees.folder(tmp_path, ["a"], split="val")
    with pytest.raises(
        InputError, match=r"frame id 'a' belongs to .*train/images/a\.jpg and .*val/images/a\.jpg"
    ):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classes: [road, tree, car]", "classes: [[road", "cannot read"),
        (
            "classes: [road, tree, car]",
            "",
            "has images, labels, subsets, ignore: it must have images and classes",
        ),
        ("ignore", "ignored", "ignored"),
        ("ignore: [3]", "ignore: [2]", "two meanings"),
        ("[road, tree, car]", "{road: [1, 2, 3], tree: 4}", "some classes are colours and some are values"),
        ("[road, tree, car]", "{road: 0, tree: 70000}", "values (0 to 65535)"),
        ("[road, tree, car]", "{road: [1, 2]}", "`classes` holds [1, 2], expected"),
        ("{subset}/labels/*.png", "labels.png", "`labels` holds 'labels.png', expected a pattern"),
        ("{subset}/labels/*.png", "{subset}/labels/*.jpg", "expected a pattern of PNGs"),
        ("{subset}/images/*.jpg", "/data/{subset}/*.jpg", "expected a pattern below root"),
        ("subsets: {train: day, val: day, test: dusk}", "", "go together"),
        ("ignore: [3]", "map: {cityscapes: {road: street}}", "`map` names street, which is no class"),
        ("ignore: [3]", "colours: {street: [1, 2, 3]}", "street"),
        ("ignore: [3]", "map: {coco: {road: road}}", "`map` holds 'coco', expected {cityscapes"),
        (
            "[road, tree, car]",
            "{road: 7.5}",
            "`classes` holds 7.5, expected a list of names, or names with values",
        ),
        ("[road, tree, car]", "{road: .inf}", "`classes` holds inf"),
        ("[road, tree, car]", "{road: true}", "`classes` holds True"),
        ("[road, tree, car]", "{road: [0, 0, 256]}", "`classes` holds 256"),
        ("[road, tree, car]", "[{road: 7}]", "`classes` holds {'road': 7}"),
        ("[road, tree, car]", "[road, '']", "`classes` holds ''"),
        ("[road, tree, car]", "[road, null]", "`classes` holds None"),
        ("[road, tree, car]", "[road, off]", "`classes` holds False"),
        ("[road, tree, car]", "[road, off]", "(a name needs quotes)"),
        ("[road, tree, car]", "[road, tree, road]", "`classes` names road twice"),
        ("[road, tree, car]", '[road, "a\\e[31m"]', r"`classes` holds 'a\x1b[31m'"),
        ("[road, tree, car]", "{road: 1, tree: 2, road: 4}", "'road' is there twice in line 4"),
        ("[road, tree, car]", "[]", "`classes` holds 0 names, expected 1 to 255"),
        ("ignore: [3]", "ignore: [3]\nignore: [4]", "'ignore' is there twice"),
        ("ignore: [3]", "ignore: [.nan]", "`ignore` holds nan"),
        ("ignore: [3]", "ignore: 3", "`ignore` holds 3"),
        ("ignore: [3]", "ignore: [-1]", "`ignore` holds -1"),
        ("ignore: [3]", "ignore: [[1, 2, 3]]", "expected the same for all and `ignore`"),
        ("ignore: [3]", "colours: {road: [0, 0, .inf]}", "`colours` holds inf"),
        ("ignore: [3]", "map: {}", "`map` holds {}"),
        ("ignore: [3]", "map: {cityscapes: {road: [road]}}", "`map` holds ['road']"),
        ("ignore: [3]", "root: ~nosuch", "no home folder for ~nosuch: write the path in full"),
        ("ignore: [3]", "root: 7", "`root` holds 7, expected a path"),
        ("ignore: [3]", "ignore: [&a 3]", "a description has no anchor (&), alias (*) or tag (!)"),
        ("ignore: [3]", "ignore: !!set {3}", "a description has no anchor (&), alias (*) or tag (!)"),
        ("ignore: [3]", "root: 2001-99-99", "month must be in 1..12"),
        ("ignore: [3]", "ignore: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("ignore: [3]", "# " + "x" * 300_000, "expected at most 262144"),
        ("{train: day, val: day, test: dusk}", "train", "`subsets` holds 'train', expected a list"),
        ("{train: day, val: day, test: dusk}", "[]", "`subsets` holds []"),
        ("{train: day, val: day, test: dusk}", "[train, train]", "`subsets` names train twice"),
        ("{train: day, val: day, test: dusk}", "{train: 7}", "`subsets` holds 7"),
        ("images/*.jpg", "images/*.*", "`images` holds '{subset}/images/*.*'"),
        ("images/*.jpg", "**/*.jpg", "`images` holds '{subset}/**/*.jpg'"),
        ("images/*.jpg", "../*.jpg", "`images` holds '{subset}/../*.jpg'"),
    ],
    ids=lambda text: text[:30],
)
def test_a_wrong_yaml_says_what_is_wrong(old: str, new: str, message: str, tmp_path: Path):
    trees.folder(tmp_path, ["a"], yaml=trees.FOLDER_YAML.replace(old, new))
    with pytest.raises(InputError, match=r"dataset\.yaml") as error:
        load(f"folder:{tmp_path}:train")
    assert message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value).replace(str(tmp_path), "")) < 300


@pytest.mark.parametrize(
    "subset", ["../mine/val", "a/../../b", "/etc", "*", "a*", "", ".", "./a", "a//b", " a", "a\0"]
)
def test_a_subset_leads_nowhere_but_below_the_root(subset: str, tmp_path: Path):
    for subsets in ([subset], {subset: "day"}):
        text = yaml.safe_dump({"images": "{subset}/*.png", "subsets": subsets, "classes": ["road"]})
        (tmp_path / "dataset.yaml").write_text(text)
        with pytest.raises(
            InputError, match=r"dataset\.yaml describes no data set: `subsets` holds .*paths below root"
        ):
            load(f"folder:{tmp_path}")


def test_whatever_a_field_holds_is_read_or_refused(tmp_path: Path):
    odd = [
        None,
        True,
        -1,
        7.5,
        float("inf"),
        float("nan"),
        10**30,
        "",
        " ",
        "a\0b",
        "~nosuch",
        "*",
        "../*.png",
        [],
        [[]],
        [None],
        ["a", "a"],
        [1.5],
        [[1, 2]],
        [[1, 2, 999]],
        [{"a": 1}],
        {},
        {"": 1},
        {"a": None},
        {"a": {}},
        {None: 1},
        {1: [1]},
        {"cityscapes": None},
        {"cityscapes": {"road": 3}},
        date(2020, 1, 1),
        b"x",
    ]
    trees.folder(tmp_path, ["a"])
    right, read = yaml.safe_load(trees.FOLDER_YAML), []
    for field in (
        "root",
        "images",
        "labels",
        "subsets",
        "classes",
        "colours",
        "ignore",
        "map",
        "other",
        7,
        None,
    ):
        for value in odd:
            (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(right | {field: value}))
            try:
                load(f"folder:{tmp_path}:train")
                read.append((field, value))
            except InputError as error:
                assert str(error).isprintable()
    assert read == [("labels", None), ("colours", {}), ("ignore", [])]
    for value in (None, 7, "text", [], [1], {}):
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(value))
        with pytest.raises(InputError, match=r"dataset\.yaml has no fields: it must have images and classes"):
            load(f"folder:{tmp_path}")
    for text in (b"\xff\xfe\xff", b"a\x1bb: 1", b"%", b"a: b: c", b"\t- 1", b"a: =", b"? [a]\n: 1"):
        (tmp_path / "dataset.yaml").write_bytes(text)
        with pytest.raises(InputError, match=r"cannot read .*dataset\.yaml") as caught:
            load(f"folder:{tmp_path}")
        assert str(caught.value).isprintable()


def test_a_small_file_of_many_aliases_is_refused(tmp_path: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (tmp_path / "dataset.yaml").write_text("\n".join(lines))
    with pytest.raises(
        InputError,
        match=r"cannot read .*dataset\.yaml: .* no anchor .* stands in line 1: correct",
    ):
        load(f"folder:{tmp_path}")


def test_a_folder_may_mix_kinds_of_pictures(tmp_path: Path):
    text = "images: images/*\nlabels: labels/*.png\nclasses: [road]\n"
    names = ["a.png", "b.JPG", "c.jpeg", "d.BMP", "e.tif", "f.tiff", "g.webp", "h.x.png"]
    for name in names:
        trees.save(tmp_path / "a/images" / name, trees.picture(name))
        trees.save(tmp_path / "a/labels" / f"{Path(name).stem}.png", np.zeros((32, 64), np.uint8))
    for name in ("notes.txt", "README", ".hidden.png"):
        (tmp_path / "a/images" / name).write_text("no picture")
    (tmp_path / "a/dataset.yaml").write_text(text)
    source = load(f"folder:{tmp_path / 'a'}")
    assert [frame.image.name for frame in source.frames] == names
    assert [frame.id for frame in source.frames] == [frame.label.stem for frame in source.frames]
    assert [read_image(frame.image).shape for frame in source.frames] == [(32, 64, 3)] * len(names)

    transfer(source, tmp_path / "b")
    transferred = load(f"folder:{tmp_path / 'b'}")
    assert {frame.image.suffix for frame in transferred.frames} == {".png"}
    assert [a.id for a, b in pair(source, transferred)] == [frame.id for frame in source.frames]

    trees.save(tmp_path / "a/images/b.png", trees.picture("b"))
    with pytest.raises(InputError, match=r"b\.JPG and .*b\.png are two pictures of one name: remove one"):
        load(f"folder:{tmp_path / 'a'}")


def test_a_tree_in_which_images_would_replace_labels_is_not_written(tmp_path: Path):
    trees.save(tmp_path / "a/x.jpg", trees.picture("x"))
    trees.save(tmp_path / "a/x.png", np.zeros((32, 64), np.uint8))
    (tmp_path / "a/dataset.yaml").write_text('images: "*.jpg"\nlabels: "*.png"\nclasses: [road]\n')
    data = load(f"folder:{tmp_path / 'a'}")
    assert data.frames[0].label.name == "x.png"
    with pytest.raises(
        InputError, match=r"images and labels of folder:.* would both be \*\.png.*: move the labels"
    ):
        frames.describe(data, tmp_path / "b")


def test_a_description_whose_lists_repeat_is_written_without_aliases(tmp_path: Path):
    data = load(f"folder:{trees.folder(tmp_path / 'a')}:train")
    colour = [1, 2, 3]
    tree = replace(
        data.tree, description=data.tree.description | {"colours": {"road": colour, "tree": colour}}
    )
    transfer(replace(data, tree=tree), tmp_path / "b")
    assert load(f"folder:{tmp_path / 'b'}:train").space.colours[:2] == ((1, 2, 3), (1, 2, 3))


def test_camvid_is_read_in_its_own_classes_and_in_those_of_cityscapes(tmp_path: Path):
    own, mapped = (load(f"folder:{trees.camvid(tmp_path, onto)}:day/val") for onto in (False, True))
    assert len(own.frames) == len(mapped.frames) == 101
    assert own.space.classes == 11 and mapped.space.classes == 19
    frame = own.frames[7]
    label, onto = read_label(frame, own.space), read_label(mapped.frames[7], mapped.space)
    assert read_image(frame.image).shape == (*label.shape, 3) == (360, 480, 3)
    assert np.array_equal(
        label == own.space.names.index("tree"), onto == CITYSCAPES.names.index("vegetation")
    )
    assert np.array_equal(label == 255, onto == 255)
    dusk = load(f"folder:{tmp_path}/camvid.yaml:dusk/train")
    assert {(frame.domain, frame.label) for frame in dusk.frames} == {("dusk", None)}


# --- other trees of the same layout, and pairs


def transfer(source: frames.Dataset, root: Path) -> None:
    """Write what `segshift transfer` writes: PNGs at half the size, labels, manifest."""
    for frame in source.frames:
        image, label = place(source, frame, root), place(source, frame, root, "label")
        trees.save(image, read_image(frame.image)[::2, ::2])
        label.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(frame.label, label)
    frames.describe(source, root)
    trees.mark_transferred(root, [frame.id for frame in source.frames])


@pytest.mark.parametrize("layout", trees.LAYOUTS)
def test_a_transferred_tree_is_loaded_like_its_source_and_paired_by_id(layout: str, tmp_path: Path):
    make = getattr(trees, layout)
    root = (
        make(tmp_path / "a", splits={"train": [1, 2], "val": [3]})
        if layout == "gta5"
        else make(tmp_path / "a")
    )
    subset = {"acdc": ":night/val", "synthia": ""}.get(layout, ":train")
    source = load(f"{layout}:{root}{subset}")
    transfer(source, tmp_path / "b")
    transferred = load(f"{layout}:{tmp_path / 'b'}{subset}")
    assert transferred.transferred and not source.transferred
    pairs = pair(source, transferred)
    assert len(pairs) == len(source.frames)
    for ours, theirs in pairs:
        assert (ours.id, ours.domain) == (theirs.id, theirs.domain)
        assert np.array_equal(read_image(theirs.image), read_image(ours.image)[::2, ::2])
        assert np.array_equal(read_label(theirs, transferred.space), read_label(ours, source.space))
    frames.require_sizes(transferred)  # its images may be smaller than its labels


@pytest.mark.parametrize("layout", trees.LAYOUTS)
def test_no_frame_has_a_place_outside_the_root(layout: str, tmp_path: Path):
    data = load(f"{layout}:{getattr(trees, layout)(tmp_path / 'a')}")
    inside = data.frames[0]
    assert place(data, inside, tmp_path / "b").is_relative_to(tmp_path / "b")
    for image in (
        tmp_path / "x.png",
        data.root / "../x.png",
        data.root / "y/../../x.png",
        Path("/x.png"),
        data.root,
    ):
        with pytest.raises(
            InputError, match=f"the image of frame '{inside.id}' would lie at .*, outside of {tmp_path}/b"
        ):
            place(data, replace(inside, image=image), tmp_path / "b")
    parts = tuple(replace(part, labels=f"../{part.labels}") for part in data.tree.parts)
    outside = replace(data, tree=replace(data.tree, parts=parts))
    with pytest.raises(
        InputError, match=f"the label of frame '{inside.id}' would lie at .*, outside of {tmp_path}/b"
    ):
        place(outside, inside, tmp_path / "b", "label")


def test_torchvision_reads_a_transferred_cityscapes_tree(tmp_path: Path):
    from torchvision.datasets import Cityscapes

    source = load(f"cityscapes:{trees.cityscapes(tmp_path / 'a')}:train")
    transfer(source, tmp_path / "b")
    theirs = Cityscapes(str(tmp_path / "b"), split="train", mode="fine", target_type="semantic")
    got = {(np.asarray(image).tobytes(), np.asarray(label).tobytes()) for image, label in theirs}
    expected = {
        (trees.picture(id)[::2, ::2].tobytes(), CITYSCAPES.to_file(trees.train_ids(id)).tobytes())
        for id in trees.IDS
    }
    assert got == expected


def test_a_transferred_set_that_does_not_match_is_refused(tmp_path: Path):
    source = load(f"cityscapes:{trees.cityscapes(tmp_path / 'a')}:train")
    fewer = load(f"cityscapes:{trees.cityscapes(tmp_path / 'b', trees.IDS[:1])}:train")
    with pytest.raises(
        InputError, match=r"3 frames and .* 1, but 2 of them are not in .*b:train \(first 'aachen_000001"
    ):
        pair(source, fewer)
    with pytest.raises(InputError, match=r"1 frames and .* 3, but 2 of them are not in .*b:train"):
        pair(fewer, source)


def test_frames_whose_transfer_failed_are_left_out_of_the_pairs(tmp_path: Path, caplog):
    source = load(f"cityscapes:{trees.cityscapes(tmp_path / 'a')}:train")
    other = load(f"cityscapes:{trees.cityscapes(tmp_path / 'b', trees.IDS[1:])}:train")
    write_lines(tmp_path / "b/failures.jsonl", [{"id": trees.IDS[0], "error": "truncated"}])
    assert [(a.id, b.id) for a, b in pair(source, other)] == [(id, id) for id in trees.IDS[1:]]
    assert "1 frames left out" in caplog.text


# --- wrong input


@pytest.mark.parametrize("spec", ["kitti:/data", "cityscapes", "cityscapes:", "", None, 7, Path("data")])
def test_an_unknown_layout_is_refused(spec: object):
    with pytest.raises(
        InputError, match=f"'{spec}' names no data set: write layout:path.*cityscapes, acdc, gta5"
    ):
        load(spec)


def test_a_path_that_is_none_is_refused(tmp_path: Path):
    cases = {
        "~nosuch": "no home folder for ~nosuch",
        "a\0b": r"'a\\x00b' is no plain UTF-8 text",
        "\udcff": r"'\\udcff' is no",
    }
    cases |= {"x" * 300: "cannot list .*File name too long", "~nosuch:train": "no home folder for ~nosuch"}
    (tmp_path / "loop").symlink_to("loop")
    cases[str(tmp_path / "loop")] = "no folder|cannot list"
    for path, message in cases.items():
        with pytest.raises(InputError, match=message) as error:
            load(f"cityscapes:{path}")
        assert str(error.value).isprintable()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch):
    root = trees.cityscapes(tmp_path)
    closed, listed = str(root / "leftImg8bit/train/bochum"), os.listdir

    def listdir(path):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(InputError, match=rf"cannot list {closed} \(Permission denied\): name a folder"):
        load(f"cityscapes:{root}")


def test_frames_with_names_that_no_stage_can_write_are_left_out(tmp_path: Path, caplog):
    trees.folder(tmp_path, ["a", "é", "y" * 230])
    picture = (tmp_path / "train/images/a.jpg").read_bytes()
    for name in (b"\xff.jpg", b"b\x1b[31m.jpg", b"x" * 246 + b".jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/train/images/" + name)).write_bytes(picture)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/train/labels/\xfe.png")).write_bytes(b"")
    data = load(f"folder:{tmp_path}:train")
    assert [frame.id for frame in data.frames] == ["a", "y" * 230, "é"]
    assert dict(data.left_out) == {
        "\\udcff": "its name is no plain UTF-8 text: rename the file",
        "b\\x1b[31m": "its name is no plain UTF-8 text: rename the file",
        "x" * 246: "its name has 250 bytes, expected at most 240: rename the file",
        "\\udcfe": f"no image {tmp_path}/train/images/\\udcfe.jpg",
    }
    for image in (tmp_path / "train/images").glob("[aéy]*"):
        image.unlink()
    with pytest.raises(
        InputError, match=r"train has no frame that can be used, the first of 7 is .*: its name"
    ):
        load(f"folder:{tmp_path}:train")


def test_an_unknown_subset_is_refused_with_those_there_are(tmp_path: Path):
    for layout, there in {
        "cityscapes": "train, val, test",
        "acdc": "fog/train, ",
        "folder": "train, val, test",
    }.items():
        root = getattr(trees, layout)(tmp_path / layout)
        with pytest.raises(InputError, match=rf"no subset 'dawn' in {root}: name one of {there}"):
            load(f"{layout}:{root}:dawn")
    with pytest.raises(
        InputError, match=r"no subset 'train' in .* without the published split\.mat: it has none"
    ):
        load(f"gta5:{trees.gta5(tmp_path / 'gta5')}:train")


def test_a_broken_list_of_gta5_is_named(tmp_path: Path):
    trees.gta5(tmp_path, splits={})
    (tmp_path / "split.mat").write_bytes(b"no lists")
    with pytest.raises(InputError, match=r"cannot read trainIds, valIds and testIds in .*split\.mat"):
        load(f"gta5:{tmp_path}:train")


def test_a_missing_folder_and_an_empty_one_are_named(tmp_path: Path):
    with pytest.raises(InputError, match=f"no folder {tmp_path}/none"):
        load(f"cityscapes:{tmp_path}/none:train")
    (tmp_path / "gtFine").mkdir()
    with pytest.raises(
        InputError, match=rf"no image leftImg8bit/train/\*/\*.* in {tmp_path}, where there is gtFine"
    ):
        load(f"cityscapes:{tmp_path}:train")
    for path, file in ((tmp_path, tmp_path / "dataset.yaml"), (tmp_path / "my.yaml", tmp_path / "my.yaml")):
        with pytest.raises(InputError, match=f"no {file}: a data set of this layout needs one"):
            load(f"folder:{path}:train")


def test_a_frame_without_label_is_named_with_the_cure(tmp_path: Path):
    test = load(f"cityscapes:{trees.cityscapes(tmp_path, split='test', labelled=False)}:test")
    assert len(test.frames) == 3
    cure = r"unpack gtFine_trainvaltest\.zip in .*, or name a subset that has labels"
    with pytest.raises(InputError, match=rf"no frame of cityscapes:.*:test has a label, .*: {cure}"):
        frames.require_labels(test)
    trees.cityscapes(tmp_path, [f"ulm_{i:06d}_000019" for i in range(3)])
    frames.require_labels(load(f"cityscapes:{tmp_path}:train"))
    with pytest.raises(
        InputError, match=rf"no frame of subset test of cityscapes:.* has a label, .*: {cure}"
    ):
        frames.require_labels(load(f"cityscapes:{tmp_path}"))
    one = load(f"cityscapes:{tmp_path}:train").frames[0]
    one.label.unlink()
    with pytest.raises(InputError, match=rf"no label for frame '{one.id}' \(1 of 3 .*: unpack gtFine_trainv"):
        frames.require_labels(load(f"cityscapes:{tmp_path}:train"))
    bare = trees.folder(
        tmp_path / "bare", labelled=False, yaml=trees.FOLDER_YAML.replace("labels:", "# labels:")
    )
    with pytest.raises(
        InputError, match=r"does not say where labels lie: give `labels` in its dataset\.yaml"
    ):
        frames.require_labels(load(f"folder:{bare}:train"))


def test_a_label_of_another_size_is_named(tmp_path: Path):
    data = load(f"cityscapes:{trees.cityscapes(tmp_path)}:train")
    frames.require_sizes(data)
    trees.save(data.frames[1].label, np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match=f"'{trees.IDS[1]}' have not the same size .* 64x32, its label 8x8"):
        frames.require_sizes(data)


def test_a_picture_that_is_none_is_named(tmp_path: Path):
    (tmp_path / "image.png").write_text("no picture")
    with pytest.raises(InputError, match=r"cannot read .*image\.png"):
        read_image(tmp_path / "image.png")

"""The layouts as they are published."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from segshift.data import frames
from segshift.data.frames import load, read_image, read_label
from segshift.data.labels import CITYSCAPES
from segshift.runs import InputError


@pytest.mark.parametrize("layout", trees.LAYOUTS)
def test_a_published_tree_is_read_as_it_is_unpacked(layout: str, tmp_path: Path):
    domain, ids = trees.LAYOUTS[layout]
    data = load(f"{layout}:{getattr(trees, layout)(tmp_path)}")
    assert [frame.id for frame in data.frames] == list(ids)
    assert {frame.domain for frame in data.frames} == {domain}
    for frame in data.frames:
        label = trees.train_ids(frame.id)
        expected = np.where(label == 255, 255, label % 3) if layout == "folder" else label
        assert np.array_equal(read_label(frame, data.space), expected)
        if layout != "folder":  # JPEG there
            assert np.array_equal(read_image(frame.image), trees.picture(frame.id))


def test_acdc_subsets_are_conditions_splits_and_both_and_leave_out_reference_frames(tmp_path: Path):
    for condition, split in (("night", "train"), ("night", "val"), ("fog", "val"), ("rain", "test")):
        trees.acdc(
            tmp_path, [f"G{condition}{split}_1"], condition=condition, split=split, labelled=split != "test"
        )
    reference = tmp_path / "rgb_anon/night/val_ref/Gnightval/Gnightval_1_rgb_ref_anon.png"
    trees.save(reference, trees.picture("r"))

    def ids(subset: str) -> list[str]:
        return [frame.id for frame in load(f"acdc:{tmp_path}{subset}").frames]

    assert ids(":night/val") == ["Gnightval_1"]
    assert ids(":night") == ["Gnighttrain_1", "Gnightval_1"]
    assert ids(":val") == ["Gfogval_1", "Gnightval_1"]
    assert ids("") == ["Gfogval_1", "Gnighttrain_1", "Gnightval_1", "Graintest_1"]
    assert load(f"acdc:{tmp_path}:rain/test").frames[0].label is None


def test_gta5_subsets_come_from_the_published_lists(tmp_path: Path, caplog):
    root = trees.gta5(tmp_path, splits={"train": [1, 3], "val": [2, 40]})
    assert [frame.id for frame in load(f"gta5:{root}:train").frames] == ["00001", "00003"]
    assert len(load(f"gta5:{root}").frames) == 3
    assert not caplog.records
    val = load(f"gta5:{root}:val")
    assert [frame.id for frame in val.frames] == ["00002"]
    assert val.left_out == (("00040", f"no image {root}/images/00040.png"),)
    assert "1 frames left out, the first is '00040'" in caplog.text


def test_gta5_leaves_out_frames_whose_image_and_label_differ_in_size(tmp_path: Path, caplog):
    trees.save(trees.gta5(tmp_path) / "images/00002.png", trees.picture("00002", (30, 64)))
    (tmp_path / "labels/00003.png").write_text("no picture")
    data = load(f"gta5:{tmp_path}")
    assert [frame.id for frame in data.frames] == ["00001"]
    assert [id for id, _ in data.left_out] == ["00002", "00003"]
    assert "2 frames left out, the first is '00002'" in caplog.text
    assert "00002.png is 64x30, its label 64x32" in caplog.text


def test_gta5_indices_count_also_where_a_void_has_the_colour_of_a_class(tmp_path: Path):
    palette = np.zeros((256, 3), np.uint8)
    palette[[7, 26, 34]] = (128, 64, 128), (0, 0, 142), (0, 0, 142)  # road, car, licence plate
    label = Image.fromarray(np.array([[7, 26, 34]], np.uint8))
    label.putpalette(palette.tobytes())
    label.save(tmp_path / "label.png")
    assert read_label(trees.label_frame(tmp_path / "label.png"), CITYSCAPES).tolist() == [[0, 13, 255]]


def test_labels_saved_again_in_colours_or_with_another_palette_mean_the_same(tmp_path: Path):
    label = trees.train_ids("x")
    painted = Image.fromarray(CITYSCAPES.paint(label))
    painted.save(tmp_path / "colours.png")
    painted.quantize(64).save(tmp_path / "palette.png")
    for name in ("colours.png", "palette.png"):
        assert np.array_equal(read_label(trees.label_frame(tmp_path / name), CITYSCAPES), label)


def test_frames_are_matched_by_id_and_never_by_position(tmp_path: Path):
    ids = [f"ulm_{i:06d}_000019" for i in range(5)]
    trees.cityscapes(tmp_path, ids)
    (tmp_path / f"gtFine/train/ulm/{ids[1]}_gtFine_labelIds.png").unlink()
    (tmp_path / f"leftImg8bit/train/ulm/{ids[3]}_leftImg8bit.png").unlink()
    data = load(f"cityscapes:{tmp_path}:train")
    assert [(frame.id, frame.label is None) for frame in data.frames] == [
        (ids[0], False),
        (ids[1], True),
        (ids[2], False),
        (ids[4], False),
    ]
    assert [id for id, _ in data.left_out] == [ids[3]]
    for frame in data.frames:
        assert frame.label is None or frame.id in frame.label.name


def test_hidden_files_are_no_frames(tmp_path: Path):
    trees.save(trees.gta5(tmp_path) / "images/.tmp-0001.png", trees.picture("x"))
    assert len(load(f"gta5:{tmp_path}").frames) == 3


def test_a_path_may_hold_a_colon_and_brackets(tmp_path: Path):
    root = trees.cityscapes(tmp_path / "a:b[1]")
    assert len(load(f"cityscapes:{root}").frames) == len(load(f"cityscapes:{root}:train").frames) == 3


DATA_YAML = """\
path: .
train: {train}
val: {val}
masks_dir: masks
names:
  0: road
  1: tree
  2: car
"""


def ultralytics(root: Path, train: str = "images/train", val: str = "images/val") -> Path:
    for split, ids in ((train, "ab"), (val, "c")):
        for id in ids:
            label = trees.train_ids(id)
            trees.save(root / split / f"{id}.jpg", trees.picture(id))
            masks = root / split.replace("images", "masks")
            trees.save(masks / f"{id}.png", np.where(label == 255, 255, label % 3).astype(np.uint8))
    (root / "data.yaml").write_text(DATA_YAML.format(train=train, val=val))
    return root


@pytest.mark.parametrize(
    ("train", "val", "subset"),
    [
        ("images/train", "images/val", "val"),
        ("train/images", "valid/images", "valid"),
        ("x/images/a", "x/images/b", "b"),
    ],
)
def test_ultralytics_masks_are_read_from_a_data_yaml_or_its_folder(tmp_path: Path, train, val, subset):
    root = ultralytics(tmp_path / "own", train, val)
    for name in (root, root / "data.yaml"):
        data = load(f"ultralytics:{name}:{subset}")
        assert [frame.id for frame in data.frames] == ["c"] and data.frames[0].domain == "own"
        assert data.space.names == ("road", "tree", "car")
        label = trees.train_ids("c")
        assert np.array_equal(read_label(data.frames[0], data.space), np.where(label == 255, 255, label % 3))
    assert [frame.id for frame in load(f"ultralytics:{root}").frames] == ["a", "b", "c"]


def test_what_is_written_of_ultralytics_describes_itself(tmp_path: Path):
    source = load(f"ultralytics:{ultralytics(tmp_path / 'own')}:train")
    for frame in source.frames:
        trees.save(frames.place(source, frame, tmp_path / "new"), read_image(frame.image))
        trees.save(frames.place(source, frame, tmp_path / "new", "label"), read_label(frame, source.space))
    frames.describe(source, tmp_path / "new")
    written = load(f"ultralytics:{tmp_path}/new:train")
    assert [frame.id for frame, _ in frames.pair(source, written)] == ["a", "b"]
    assert written.space.names == source.space.names


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("masks_dir: masks", "", "no `names` or no `masks_dir`: .* convert polygons"),
        (
            "images/val",
            "val",
            r"names .* as train, val, test, expected a folder each that differs in one step",
        ),
        ("images/val", "[images/val, images/more]", "expected a folder each"),
        ("images/val", "images/train", "expected a folder each"),
        ("2: car", "70000: car", "describes no data set: `classes` holds"),
        ("path: .", "path: 3", "describes no data set: `root` holds 3, expected a path"),
        ("images/", "../images/", r"describes no data set: `images` holds '../images/{subset}/\*'"),
    ],
)
def test_a_data_yaml_that_is_no_such_one_is_one_sentence(tmp_path: Path, before, after, message):
    file = ultralytics(tmp_path) / "data.yaml"
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(InputError, match=message) as caught:
        load(f"ultralytics:{tmp_path}:train")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_coco_has_a_subset_for_each_list_and_takes_images_beside_or_below(tmp_path: Path):
    root = trees.coco(tmp_path)
    space = load(f"coco:{root}:train").space
    assert space.ids[:3] == (1, 11, 21) and len({*space.colours}) == 19
    (root / "images").mkdir()
    (root / "train").rename(root / "images" / "train")
    assert [frame.id for frame in load(f"coco:{root}").frames] == ["000001", "000002"]
    with pytest.raises(InputError, match=r"no subset 'val' in .*: name one of train"):
        load(f"coco:{root}:val")


def test_cocos_stuff_maps_are_a_folder_of_category_ids(tmp_path: Path):
    trees.save(tmp_path / "train2017/a.jpg", trees.picture("a"))
    drawn = Image.fromarray(np.array([[0, 92], [94, 183]], np.uint8).repeat(16, 0).repeat(32, 1))
    drawn.putpalette([i % 256 for i in range(768)])
    (tmp_path / "annotations/stuff_train2017_pixelmaps").mkdir(parents=True)
    drawn.save(tmp_path / "annotations/stuff_train2017_pixelmaps/a.png")
    page = (Path(__file__).parent.parent / "docs/your-data.md").read_text()
    [shown] = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "pixelmaps" in text]
    (tmp_path / "dataset.yaml").write_text(shown)
    data = load(f"folder:{tmp_path}:train2017")
    label = read_label(data.frames[0], data.space)
    assert data.space.names == ("banner", "blanket", "branch")
    assert np.unique(label).tolist() == [0, 2, 255] and (label == 255).mean() == 0.5


def test_a_copy_with_void_holds_values(tmp_path: Path):
    data = load(f"coco:{trees.coco(tmp_path)}")
    frame, void = data.frames[0], np.zeros((32, 64), bool)
    void[:8] = True
    frames.write_void(frame, data.space, void, tmp_path / "copy.png")
    copy = read_label(replace(frame, label=tmp_path / "copy.png"), data.space)
    assert np.array_equal(copy, np.where(void, 255, trees.train_ids(frame.id)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j.clear(), "is no panoptic list of COCO .KeyError: 'categories'.: restore it"),
        (lambda j: j["annotations"].pop(0), "has no annotation of 000001.png"),
        (lambda j: j["annotations"][0]["segments_info"].pop(0), "draws the segments 7.*does not name"),
        (lambda j: j["categories"].append(j["categories"][0]), "has 20 categories .* of their own"),
        (lambda j: j["categories"].pop(), "has a segment of category 1, which it does not name"),
    ],
)
def test_a_list_of_coco_that_is_broken_is_one_sentence(tmp_path: Path, change, message):
    file = trees.coco(tmp_path) / "annotations/panoptic_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        data = load(f"coco:{tmp_path}")
        read_label(data.frames[0], data.space)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_coco_without_lists_or_with_lists_that_differ_is_one_sentence(tmp_path: Path):
    with pytest.raises(InputError, match=r"no annotations/panoptic_\*.json in .*: unpack"):
        load(f"coco:{tmp_path}")
    file = trees.coco(tmp_path) / "annotations/panoptic_train.json"
    other = file.read_text().replace('"road"', '"street"')
    file.with_name("panoptic_val.json").write_text(other)
    with pytest.raises(
        InputError, match=r"panoptic_val.json has other categories than .*panoptic_train.json"
    ):
        load(f"coco:{tmp_path}")

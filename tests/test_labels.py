"""Label spaces against the official tables."""

from dataclasses import replace

import numpy as np
import pytest

from segshift.data.labels import ADE20K_COLOURS, CITYSCAPES, CLASS_SETS, SYNTHIA, LabelSpace

TRAIN_IDS = LabelSpace("train ids", CITYSCAPES.names, CITYSCAPES.colours, tuple(range(19)))
MERGED = replace(CITYSCAPES, merged_ids=((9, 0), (30, 14)), ignored_ids=(0, 1), absent=(16,))


@pytest.mark.parametrize("space", [CITYSCAPES, TRAIN_IDS, SYNTHIA, MERGED], ids=lambda space: space.name)
def test_every_train_id_comes_back_from_a_file(space):
    train_ids = np.array([[*range(19), 255]], np.uint8)
    in_file = space.to_file(train_ids)
    assert in_file.dtype == np.uint8
    assert space.unknown(in_file) == []
    assert np.array_equal(space.to_train(in_file), train_ids)


def test_values_over_255_are_written_in_16_bits():
    space = replace(TRAIN_IDS, ids=tuple(range(1000, 1019)))
    train_ids = np.array([[0, 18, 255]], np.uint8)
    assert space.to_file(train_ids).tolist() == [[1000, 1018, 255]]
    assert np.array_equal(space.to_train(space.to_file(train_ids)), train_ids)


def test_void_over_255_is_not_cut_to_8_bits():
    space = replace(TRAIN_IDS, ignored_ids=(300,))
    assert space.to_file(np.array([[0, 255]], np.uint8)).tolist() == [[0, 300]]


@pytest.mark.parametrize("space", [CITYSCAPES, SYNTHIA, MERGED], ids=lambda space: space.name)
def test_8_bit_pictures_give_what_wider_ones_give(space):
    ids = np.arange(256, dtype=np.uint8).repeat(6).reshape(32, 48)
    for picture in (ids, ids[:, ::2], ids.T, ids[0], ids[:0]):  # OpenCV reads some of these from a copy
        wide = picture.astype(np.int64)
        for found, expected in (
            (space.to_train(picture), space.to_train(wide)),
            (space.to_file(picture), space.to_file(wide)),
        ):
            assert found.dtype == expected.dtype == np.uint8 and found.shape == picture.shape
            assert np.array_equal(found, expected)
        for truth in (False, True):
            assert space.unknown(picture, truth=truth) == space.unknown(wide, truth=truth)


def test_cityscapes_is_that_of_cityscapesscripts():
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    classes = sorted(
        (label for label in official if 0 <= label.trainId < 255), key=lambda label: label.trainId
    )
    assert CITYSCAPES.names == tuple(label.name for label in classes)
    assert CITYSCAPES.ids == tuple(label.id for label in classes)
    assert CITYSCAPES.colours == tuple(label.color for label in classes)
    colour_of = {label.id: label.color for label in official} | {
        4: (20, 20, 20)
    }  # static of the first edition
    assert all(colour_of[id] == colour for colour, id in CITYSCAPES.file_colours)
    assert {label.color for label in official} <= {colour for colour, _ in CITYSCAPES.file_colours}


def test_synthia_is_that_of_its_readme():
    readme = (
        "void",
        "sky",
        "building",
        "road",
        "sidewalk",
        "fence",
        "vegetation",
        "pole",
        "car",
        "traffic sign",
        "pedestrian",
        "bicycle",
        "motorcycle",
        "parking-slot",
        "road-work",
        "traffic light",
        "terrain",
        "rider",
        "truck",
        "bus",
        "train",
        "wall",
        "lanemarking",
    )
    named = {id: readme[id].replace("pedestrian", "person") for id in SYNTHIA.ids}
    assert named == dict(zip(SYNTHIA.ids, SYNTHIA.names, strict=True))
    assert {readme[id] for id in SYNTHIA.ignored_ids} == {"void", "parking-slot", "road-work", "lanemarking"}


def test_class_sets_leave_out_what_synthia_lacks():
    def without(count):
        return {CITYSCAPES.names[i] for i in set(range(19)) - set(CLASS_SETS[count])}

    assert all(len(indices) == count for count, indices in CLASS_SETS.items())
    assert without(16) == {"terrain", "truck", "train"}
    assert without(13) == without(16) | {"wall", "fence", "pole"}


def test_unknown_values_are_named_once_in_order():
    assert CITYSCAPES.unknown(np.array([[7, 99, 34], [99, 40, 0]])) == [40, 99]
    assert CITYSCAPES.unknown(np.array([[65535]], np.uint16)) == [65535]


def test_a_class_that_is_labelled_nowhere_is_known_in_predictions_alone():
    train = np.array([[MERGED.ids[16], 9]])
    assert MERGED.unknown(train) == []
    assert MERGED.unknown(train, truth=True) == [MERGED.ids[16]]


def test_merged_values_become_one_class():
    assert MERGED.to_train(np.array([7, 9, 27, 30, 0])).tolist() == [0, 0, 14, 14, 255]


def test_painting_uses_the_colours_and_black_for_void():
    assert CITYSCAPES.paint(np.array([[0, 255]], np.uint8)).tolist() == [[[128, 64, 128], [0, 0, 0]]]


def test_every_class_has_a_colour_of_ade20k():
    assert set(CITYSCAPES.names) <= ADE20K_COLOURS.keys()

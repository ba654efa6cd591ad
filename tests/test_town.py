"""The embedded town: determinism, class balance, weather, and the four trees it is written in."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from segshift.data.labels import CITYSCAPES, SYNTHIA
from segshift.runs import InputError
from segshift.town import scenes, weather, writer

# Smallest mean share of the pixels, in percent, by train id: what keeps a class from being lost on a small
# network.
FLOORS = (20, 4, 8, 2, 2, 1, 0.8, 1, 4, 2, 4, 1.5, 1, 2, 2, 2, 2, 1.2, 1.2)
VISIBLE = 20  # pixels at 128x256
COUNTS = dict.fromkeys(writer.PARTS, 1)


def tree(root):
    """Digest of every file under `root`, by relative path."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One frame of every part at 64x128."""
    return writer.write(tmp_path_factory.mktemp("town"), height=64, width=128, counts=COUNTS, workers=1)


def test_same_seed_same_bytes_and_another_seed_another_scene():
    def image(seed, weather_seed=0):
        return weather.render(scenes.draw(scenes.BENCHMARK, seed), ("rain",), weather_seed)

    assert np.array_equal(image(3), image(3))
    assert not np.array_equal(image(3), image(4))
    assert not np.array_equal(image(3), image(3, 1))


@pytest.mark.parametrize("world", [scenes.BENCHMARK, scenes.PRIOR], ids=lambda w: w.name)
def test_every_class_is_frequent_and_large(world):
    labels = [scenes.draw(world, seed).label_at_size() for seed in range(60)]
    counts = np.array([np.bincount(label.ravel(), minlength=256)[:19] for label in labels])
    share = 100 * counts.mean(0) / labels[0].size
    low = {CITYSCAPES.names[i]: share[i] for i in range(19) if share[i] < FLOORS[i]}
    assert not low, f"classes below their floor: {low}"
    seen = (counts > VISIBLE).mean(0)
    assert seen.min() >= 0.35, f"{CITYSCAPES.names[seen.argmin()]} is in {seen.min():.0%} of the scenes"


def test_worlds_share_neither_stream_nor_camera_nor_palette():
    ours, prior = scenes.BENCHMARK, scenes.PRIOR
    assert len({w.namespace for w in (ours, prior, scenes.HIGH_VIEW)}) == 3
    assert scenes.generator(ours, 1).random() != scenes.generator(prior, 1).random()
    for name in ("camera_height", "horizon", "focal", "vanishing", "lateral", "amplitude", "grain"):
        assert getattr(ours, name) != getattr(prior, name), name
    for name in (
        "facades",
        "paints",
        "clothes",
        "skins",
        "greens",
        "grounds",
        "asphalts",
        "pavings",
        "walls",
        "fences",
    ):
        assert not set(getattr(ours, name)) & set(getattr(prior, name)), name


@pytest.mark.parametrize("size", [(128, 256), (96, 160)])
def test_every_weather_renders_over_the_same_labels(size):
    layers = scenes.draw(scenes.BENCHMARK, 5, *size)
    label = layers.label_at_size()
    clear = weather.render(layers, ("clear",), 0).astype(int)
    assert label.shape == size and clear.shape == (*size, 3)
    for conditions in (
        *((c,) for c in weather.CONDITIONS[1:]),
        ("night", "snow"),
        ("fog", "night"),
        ("night", "rain"),
        ("soft",),
    ):
        image = weather.render(layers, conditions, 0)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert np.abs(image - clear).mean() > 10, conditions  # a domain gap
        assert image.std() > 12, conditions  # and something to see
    assert np.array_equal(layers.label_at_size(), label)


def test_weather_looks_as_it_should():
    layers = scenes.draw(scenes.BENCHMARK, 8)
    label = layers.label_at_size()
    image = {c: weather.render(layers, (c,), 0).astype(float) for c in weather.CONDITIONS}
    assert image["night"].mean() < 0.6 * image["clear"].mean()
    assert image["fog"][label != 10].std() < image["clear"][label != 10].std()
    pavement = label == 1
    assert image["snow"][pavement].mean() > image["clear"][pavement].mean()
    assert image["rain"][label == 0].mean() < image["clear"][label == 0].mean()


def test_depth_is_exact_on_the_ground():
    layers = scenes.draw(scenes.BENCHMARK, 2)
    camera = layers.camera
    rows, columns = np.nonzero(layers.label == 0)
    expected = camera.f * camera.h / (rows - camera.horizon)
    assert np.allclose(layers.depth[rows, columns], expected, rtol=1e-3)


def test_unknown_weather_is_refused():
    with pytest.raises(ValueError, match="hail"):
        weather.render(scenes.draw(scenes.BENCHMARK, 0, 32, 64), ("hail",), 0)


def test_cityscapes_and_acdc_trees(small):
    images = sorted((small / "cityscapes/leftImg8bit").rglob("*.png"))
    assert len(images) == 2
    for image in images:
        split, city, name = image.parts[-3:]
        assert name.startswith(city + "_")
        label = small / "cityscapes/gtFine" / split / city / name.replace("leftImg8bit", "gtFine_labelIds")
        assert Image.open(image).mode == "RGB" and Image.open(label).mode == "L"
        assert Image.open(label).size == Image.open(image).size == (128, 64)
        assert set(np.unique(np.asarray(Image.open(label)))) <= set(CITYSCAPES.ids)
    for condition in writer.TARGETS:
        for split in ("train", "val", "test"):
            (image,) = (small / f"acdc/rgb_anon/{condition}/{split}").rglob("*_rgb_anon.png")
            drive = image.parent.name
            label = (
                small / f"acdc/gt/{condition}/{split}/{drive}" / image.name.replace("rgb_anon", "gt_labelIds")
            )
            assert image.name == f"{drive}_frame_000001_rgb_anon.png"
            assert label.exists() == (split != "test")


def test_gta5_tree(small):
    labels = sorted((small / "gta5/labels").iterdir())
    assert (
        [p.name for p in labels]
        == [p.name for p in sorted((small / "gta5/images").iterdir())]
        == ["00001.png", "00002.png"]
    )
    label = Image.open(labels[0])
    assert label.mode == "P"
    ids = np.asarray(label)
    colours = np.asarray(label.convert("RGB"))
    assert np.array_equal(colours, CITYSCAPES.paint(CITYSCAPES.to_train(ids)))
    split = loadmat(small / "gta5/split.mat")
    assert (
        split["trainIds"].tolist() == [[1]]
        and split["valIds"].tolist() == [[2]]
        and split["testIds"].size == 0
    )


def test_synthia_tree(small):
    import cv2  # Pillow reads 16-bit colour as 8-bit

    (image,), (label,) = (small / "synthia/RGB").iterdir(), (small / "synthia/GT/LABELS").iterdir()
    assert image.name == label.name == "0000000.png"
    pixels = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint16 and pixels.shape == (64, 128, 3)
    assert set(np.unique(pixels[..., 2])) <= set(SYNTHIA.ids)  # OpenCV's last channel is red
    assert not pixels[..., 1].any()


def test_no_two_parts_share_a_scene(small):
    labels = [p for p in small.rglob("*labelIds.png")]
    assert len({p.read_bytes() for p in labels}) == len(labels)


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    counts = {"acdc/night/train": 29, "cityscapes/val": 2, "gta5/train": 2}  # 33: two processes
    one = writer.write(tmp_path / "one", height=32, width=64, counts=counts, workers=1)
    two = writer.write(tmp_path / "two", height=32, width=64, counts=counts, workers=2)
    assert tree(one) == tree(two)


def test_resume_completes_with_the_same_bytes(small):
    before = tree(small)
    files = sorted(p for p in small.rglob("*.png"))
    kept = files[0].stat().st_mtime_ns
    for path in files[1::3]:
        path.unlink()
    writer.write(small, height=64, width=128, counts=COUNTS, workers=1)
    assert tree(small) == before
    assert files[0].stat().st_mtime_ns == kept


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(InputError, match="acdc/hail/train"):
        writer.write(tmp_path, counts={"acdc/hail/train": 1})
    with pytest.raises(InputError, match="32 or more"):
        writer.write(tmp_path, height=8, width=8, counts={"synthia": 1})

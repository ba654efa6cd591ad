"""The studio: what it makes of a photograph, what it says is lost, and what it refuses. Without a browser."""

import socket
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segshift import generators
from segshift.__main__ import main
from segshift.config import StudioConfig, TransferConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES, SYNTHIA
from segshift.runs import InputError
from segshift.stages import studio
from segshift.stages.studio import Asked, Studio
from segshift.stages.transfer import transfer_images
from segshift.town import scenes, weather


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> tuple[Path, Path]:
    """Photograph and label of a frame of the town."""
    [image, label, _], *_ = studio._examples(tmp_path_factory.mktemp("examples"), CITYSCAPES)
    return image, label


@pytest.fixture(scope="module")
def alone() -> Studio:
    """The embedded model without a network."""
    model = generators.load(TransferConfig(source="folder:studio"))
    return Studio(StudioConfig(), model, None)


def asked(photo: Path, label: Path | None, **changes) -> Asked:
    return replace(Asked(photo, label, "night", strength=0.2, guidance=3, seed=7), **changes)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_the_examples_are_frames_of_the_town_that_no_training_there_sees(example, tmp_path: Path):
    image, label = example
    layers = scenes.draw(scenes.BENCHMARK, 100_000)  # the first of cityscapes/val
    np.testing.assert_array_equal(frames.read_image(image), weather.render(layers, ("clear",), 0))
    assert studio.read(image, label, CITYSCAPES)[1].shape == (128, 256)
    assert {label for _, label, _ in studio._examples(tmp_path, SYNTHIA)} == {None}  # other ids in files


def test_it_makes_what_transfer_makes_and_tells_every_step(alone, example):
    image, label = example
    steps = []
    shown = alone.show(asked(image, label), lambda *told: steps.append(told))
    pictures, ids = studio.read(image, label, CITYSCAPES)
    config = TransferConfig(
        source="folder:x", to=("night",), strength=0.2, guidance=3, seed=7, output_size="source"
    )
    [made] = transfer_images(config, [pictures], [ids], model=alone.model)["night"]
    np.testing.assert_array_equal(shown.generated, made)
    np.testing.assert_array_equal(shown.layout, CITYSCAPES.paint(ids))
    assert shown.before is shown.after is None and not shown.classes
    assert steps == [(i, 3, "transfer") for i in range(4)]


def test_without_label_and_network_there_is_no_layout_and_markup_stays_text(alone, example):
    shown = alone.show(asked(example[0], None, domain="<b>fog</b>"), lambda *told: None)
    assert shown.layout is None and shown.generated.shape == shown.source.shape
    assert "Made without a layout" in shown.note and "&lt;b&gt;fog" in shown.note


def test_a_prompt_that_is_too_long_is_refused(alone, example):
    with pytest.raises(InputError, match="shorten it"):
        alone.show(asked(*example, domain="<script>" * 20), lambda *told: None)


# ------------------------------------------------------------------------------------------------ the table


def test_a_class_is_lost_when_it_keeps_less_than_half_of_its_iou():
    label = np.repeat(np.uint8([0, 13, 18, 255]), 25).reshape(10, 10)  # road, car, bicycle, void
    before = label.copy()
    before[label == 18] = 0  # never found
    after = np.where(label == 13, 0, before).astype(np.uint8)
    after[4, 0] = 13
    html = studio.table(CITYSCAPES, before, after, label)
    assert "<h2>Lost: car</h2>" in html and html.count("<b>lost</b>") == 1
    assert "25.0 → 1.0</td><td>100 → 4" in html  # the car's pixels and IoU
    assert "0.0 → 0.0</td><td>0 → 0" in html  # what was never found is not lost
    html = studio.table(CITYSCAPES, before, before, None)
    assert "No class is lost" in html and "between the two predictions" in html and "bicycle" not in html


def test_names_of_classes_are_text():
    space = replace(CITYSCAPES, names=("<img src=x>", *CITYSCAPES.names[1:]))
    ids = np.zeros((4, 4), np.uint8)
    assert "<img" not in studio.table(space, ids, ids + 1, None)


# ------------------------------------------------------------------------------------------------ bad input


def test_what_is_no_picture_or_no_label_of_it_is_refused(tmp_path: Path, example):
    image, _ = example
    text = tmp_path / "photo.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:2000])
    small = save(tmp_path / "small.png", np.zeros((64, 128), np.uint8))
    strange = save(tmp_path / "strange.png", np.full((128, 256), 200, np.uint8))
    for photo, given, message in (
        (text, None, "^cannot read photo.png .it is no picture.: upload a PNG or a JPEG"),
        (cut, None, "^cannot read cut.png"),
        (image, small, "the photograph is 256x128 and its label 128x64"),
        (image, strange, "label strange.png holds the values 200"),
        (image, text, "cannot read photo.png"),
    ):
        with pytest.raises(InputError, match=message):
            studio.read(photo, given, CITYSCAPES)


def test_a_photograph_of_100_megapixels_is_scaled_down(tmp_path: Path):
    photo = save(tmp_path / "photo.png", np.zeros((8000, 12_500), np.uint8), compress_level=1)
    with warnings.catch_warnings(action="error"):  # Pillow's would show in the terminal
        assert studio.read(photo, None, CITYSCAPES)[0].shape == (1311, 2048, 3)


def test_a_label_is_scaled_down_with_its_photograph(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(studio, "LARGEST", 50)
    pixels = np.zeros((60, 100), np.uint8)
    pixels[:, 50:] = 26  # a car
    photo = save(tmp_path / "photo.png", pixels)
    image, ids = studio.read(photo, photo, CITYSCAPES)
    assert image.shape == (30, 50, 3) and ids.shape == (30, 50)
    assert (ids[:, :25] == 255).all() and (ids[:, 25:] == 13).all()


def test_a_photograph_stands_upright(tmp_path: Path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # the top is on the right
    photo = save(tmp_path / "photo.png", pixels, exif=turned)
    image, _ = studio.read(photo, None, CITYSCAPES)
    assert image.shape == (40, 20, 3) and (image[:, 10:] == 255).all()


def test_ctrl_c_is_its_usual_end(monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(studio, "serving", lambda config: nullcontext("http://127.0.0.1:7860"))
    monkeypatch.setattr(studio.time, "sleep", interrupted)
    assert main(["studio"]) == 0
    told = capsys.readouterr()
    assert "Ctrl-C ends it" in told.out and not told.err


def test_a_port_in_use_and_a_missing_gradio_are_told_at_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot open port {port} of 127.0.0.1 .*--port"):
            studio.studio(StudioConfig(port=port))
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install 'segshift\[studio\]'"):
        studio.studio(StudioConfig(port=port))

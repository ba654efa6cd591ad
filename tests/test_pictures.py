"""Pictures and videos without labels: what a path names, what is written, resuming, and wrong input."""

import os
from pathlib import Path

import cv2
import networks
import numpy as np
import pytest
import torch
import trees
from PIL import Image

import segshift
from segshift import outputs, runs
from segshift.commands import run_command
from segshift.config import NetworkConfig, PredictConfig
from segshift.data import frames, pictures
from segshift.data.labels import CITYSCAPES
from segshift.runs import InputError
from segshift.scoring import predictions
from segshift.stages.predict import predict

BOX = "networks:seeing"


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        trees.save(folder / name, trees.picture(name, (16, 24)))
    return folder


def predicted(tmp_path: Path, images: str | Path, **more) -> Path:
    return predict(PredictConfig(BOX, images=str(images), device="cpu", **more), tmp_path / "out")


def files(out: Path) -> list[str]:
    names = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith((".json", ".jsonl", outputs.LOCK)))


def video(path: Path, count: int = 4, codec: str = "MJPG") -> Path:
    """Grey frames, one brighter than the one before."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (48, 32))
    for number in range(count):
        writer.write(np.full((32, 48, 3), (10 + 40 * number) % 256, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one.jpg", ["one"]),
        ("", ["one", "two"]),
        ("*.jpg", ["one"]),
        ("**/*.png", ["inside/three", "two"]),
        ("ins*/t*.png", ["inside/three"]),
    ],
)
def test_a_picture_a_folder_and_a_glob_are_predicted_with_overlays(tmp_path: Path, name, expected):
    photos(tmp_path / "photos", "one.jpg", "two.png", "inside/three.png")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    out = predicted(tmp_path, tmp_path / "photos" / name)
    assert files(out) == sorted(f"{where}{id}.png" for where in ("", "overlays/") for id in expected)
    for line in runs.read_lines(out / "predictions.jsonl"):
        [source] = (tmp_path / "photos").glob(f"{line['id']}.*")
        picture, label = frames.read_image(source), predictions.read(out / line["file"], CITYSCAPES)
        assert label[0, 0] == networks.seeing(19)(picture)[0, 0]
        drawn = frames.read_image(out / "overlays" / line["file"])
        expected_colours = (picture.astype(int) + CITYSCAPES.paint(label)) / 2
        assert abs(drawn - expected_colours).max() <= 1


def test_a_video_is_predicted_annotated_and_resumed_to_the_same_bytes(tmp_path: Path, capsys):
    source = video(tmp_path / "drive.avi")
    out = predicted(tmp_path, source)
    assert "4 frames in" in capsys.readouterr().out
    labels = [f"drive/{number:06d}.png" for number in range(4)]
    assert files(out) == ["drive.mp4", *labels]
    levels = [predictions.read(out / name, CITYSCAPES)[0, 0] for name in labels]
    assert levels == [19 * (10 + 40 * number) // 256 for number in range(4)]
    shown, annotated = cv2.VideoCapture(str(source)), cv2.VideoCapture(str(out / "drive.mp4"))
    assert annotated.get(cv2.CAP_PROP_FPS) == 10 and annotated.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    for level in levels:
        picture, drawn = shown.read()[1], annotated.read()[1]
        expected = (picture[0, 0].astype(int) + CITYSCAPES.colours[level][::-1]) / 2
        assert abs(drawn[16, 24] - expected).max() < 25  # it is compressed
    whole = {name: (out / name).read_bytes() for name in files(out)}
    (out / labels[1]).unlink()
    (out / "drive.mp4").unlink()  # killed before the second frame and the video were written
    before = (out / labels[0]).stat().st_mtime_ns
    predicted(tmp_path, source)
    assert {name: (out / name).read_bytes() for name in files(out)} == whole
    assert (out / labels[0]).stat().st_mtime_ns == before
    predicted(tmp_path, source)  # nothing is left to do
    assert "frames in" in capsys.readouterr().out and "frames in" not in capsys.readouterr().out


def test_pictures_are_predicted_in_the_classes_of_the_run(tmp_path: Path):
    from test_predict import trained

    mine = f"folder:{trees.folder(tmp_path / 'mine')}:train"
    run = trained(tmp_path / "run", mine)
    source = photos(tmp_path / "photos", "one.jpg")
    out = predict(PredictConfig(run, images=source, device="cpu"), tmp_path / "out")
    space = frames.load(mine).space
    loaded = segshift.load(run, device="cpu")
    assert loaded.space.names == space.names
    ids = loaded.predict(source / "one.jpg")
    np.testing.assert_array_equal(predictions.read(out / "one.png", space), ids)


def test_load_takes_files_pictures_and_arrays_and_says_how_sure_it_is(tmp_path: Path):
    file = photos(tmp_path, "one.png") / "one.png"
    torch.save(networks.two_convs(19).state_dict(), tmp_path / "mine.pth")
    network = NetworkConfig(name="networks:two_convs")
    loaded = segshift.load(tmp_path / "mine.pth", network=network, device="cpu")
    ids = loaded.predict(file)
    assert ids.shape == (16, 24) and ids.dtype == np.uint8
    picture = frames.read_image(file)
    for same in (picture, Image.fromarray(picture), str(file)):
        np.testing.assert_array_equal(loaded.predict(same), ids)
    found = loaded.predict_with_uncertainty(picture)
    np.testing.assert_array_equal(found.classes, ids)
    np.testing.assert_array_equal(found.probabilities.argmax(0), ids)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(found.uncertainty["confidence"], found.probabilities.max(0), atol=1e-5)
    assert set(found.uncertainty) == {"confidence", "entropy"}
    for wrong in (picture[..., 0], picture.astype(np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match=r"the picture is an array of .*: give RGB \[H, W, 3\] uint8"):
            loaded.predict(wrong)
    with pytest.raises(InputError, match="No such file"):
        loaded.predict(tmp_path / "nowhere.png")


def test_a_photograph_of_a_turned_camera_stands_upright(tmp_path: Path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # the top is on the right
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels).save(photo, exif=turned)
    expected = np.rot90(pixels[..., 0] // 14, 3)
    out = predicted(tmp_path, photo)
    np.testing.assert_array_equal(predictions.read(out / "photo.png", CITYSCAPES), expected)
    assert (frames.read_image(out / "overlays" / "photo.png")[:, 8:] > 100).all()
    np.testing.assert_array_equal(segshift.load(BOX, device="cpu").predict(photo), expected)


def broken(folder: Path) -> Path:
    """A folder of files that are no pictures and no videos."""
    (folder / "text.jpg").parent.mkdir(exist_ok=True)
    (folder / "text.jpg").write_text("no picture")
    (folder / "text.mp4").write_text("no video")
    video(folder / "empty.avi", 0)
    whole = video(folder / "whole.avi").read_bytes()
    (folder / "codec.avi").write_bytes(whole.replace(b"MJPG", b"ZZ9X"))
    (folder / "cut.avi").write_bytes(whole[:300])
    (folder / "nothing").mkdir()
    photos(folder / "twins", "one.jpg", "one.png")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.jpg", "cannot read .*text.jpg .it is no picture"),
        ("text.mp4", "text.mp4 is no picture, and no video whose format and codec OpenCV knows: convert it"),
        ("empty.avi", "the video .*empty.avi has no frame that can be decoded"),
        ("codec.avi", "codec.avi is no picture, and no video whose format and codec OpenCV knows: convert"),
        ("cut.avi", "cut.avi is no picture, and no video"),
        ("nothing", "no picture in .*nothing: name a picture, a folder that holds some .png, jpg"),
        ("nothing/*.png", r"no picture in .*nothing/\*.png"),
        ("nowhere.mp4", "no .*nowhere.mp4: name a picture, a folder, a glob in quotes, or a video"),
        ("twins", "one.jpg and .*one.png are two pictures of one name: rename one"),
    ],
)
def test_what_is_no_picture_and_no_video_is_one_sentence(tmp_path: Path, capfd, name, message):
    folder = broken(tmp_path / "broken")
    command = ["predict", str(tmp_path / "out"), "--run", BOX, "--images", str(folder / name)]
    assert run_command(command) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert said.lower().count("error") == 1 and said.startswith("error")
    with pytest.raises(InputError, match=message) as caught:
        predicted(tmp_path, folder / name)
    assert "\n" not in str(caught.value) and len(str(caught.value).replace(str(tmp_path), "")) < 250
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_among_others_is_listed_and_a_video_that_breaks_off_is_told(
    tmp_path: Path, caplog, monkeypatch
):
    folder = photos(tmp_path / "photos", "one.jpg", "two.jpg")
    (folder / "two.jpg").write_text("no picture")
    out = predicted(tmp_path, folder)
    assert [line["id"] for line in runs.failures(out)] == ["two"] and (out / "one.png").exists()
    source = video(tmp_path / "drive.avi", 200)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    found = pictures.find(str(source), CITYSCAPES)[1]
    assert 0 < found.count < 200
    assert "ends, or breaks off, after" in caplog.text


def test_pictures_whose_names_cannot_be_written_are_left_out(tmp_path: Path, caplog):
    place = photos(tmp_path / "photos", "good.png", "esc\x1b[31m.png", "x" * 238 + ".png")
    os.rename(photos(place, "b.png") / "b.png", os.fsencode(place / "b") + b"\xff.png")
    out = predicted(tmp_path, place)
    assert files(out) == ["good.png", "overlays/good.png"]
    assert "3 pictures left out, the first is 'b\\udcff': its name is no plain UTF-8 text" in caplog.text
    (place / "good.png").unlink()
    with pytest.raises(InputError, match=r"no picture in .* can be used, the first of 3 is"):
        pictures.find(str(place), CITYSCAPES)


def test_predict_takes_one_kind_of_input_and_writes_outside_of_it(tmp_path: Path):
    folder = photos(tmp_path / "photos", "one.jpg", "two.jpg")
    for images, data in ((None, None), (str(folder), "cityscapes:nowhere")):
        with pytest.raises(InputError, match="predict takes either --data or --images"):
            predict(PredictConfig(BOX, data, images, device="cpu"), tmp_path / "out")
    for images in (folder, folder / "*.jpg"):
        with pytest.raises(InputError, match=r"the output folder .* lies in"):
            predict(PredictConfig(BOX, images=images, device="cpu"), folder / "out")
    config = PredictConfig(BOX, images=folder / "one.jpg", device="cpu")
    assert (predict(config, folder / "out") / "one.png").exists()  # beside one picture is no danger


def test_a_report_says_that_it_needs_a_data_set(tmp_path: Path, capsys):
    out = predicted(tmp_path, photos(tmp_path / "photos", "one.jpg"))
    assert run_command(["report", str(tmp_path / "page"), "--runs", str(out)]) == 2
    assert "holds predictions of --images" in " ".join(capsys.readouterr().err.split())

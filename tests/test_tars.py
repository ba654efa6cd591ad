"""Tar files of frames: names, bytes, resumption, and what reads them."""

# ruff: noqa: F811 (fixtures are imported by name)

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from training import config as training
from training import trees_of
from transferring import IDS, SIZE, manifest, pictures, prior, source  # noqa: F401
from transferring import quick as config  # noqa: F401

from segshift import runs
from segshift.config import PredictConfig
from segshift.data import frames, tars
from segshift.runs import InputError
from segshift.stages import transfer as stage
from segshift.stages.predict import predict
from segshift.stages.train import train


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(tars, "BLOCK", 2)


def png(values: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(values).save(written, "PNG")
    return written.getvalue()


def tar_files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.tar"))}


def test_a_frame_is_image_train_ids_and_a_line(config, tmp_path):
    plain = stage.transfer(config, tmp_path / "plain")
    out = stage.transfer(replace(config, output="tar"), tmp_path / "out")
    assert sorted(path.name for path in (out / "night").iterdir()) == [
        "000000.tar",
        "000001.tar",
        "000002.tar",
        "dataset.yaml",
        "manifest.jsonl",
    ]
    assert not (out / "loose").exists() and manifest(out) == manifest(plain)
    with tarfile.open(out / "night" / "000001.tar") as file:
        inside = {member.name: file.extractfile(member).read() for member in file}
    assert list(inside) == [f"{id}.{what}" for id in IDS[2:4] for what in ("png", "label.png", "json")]
    picture = next(content for path, content in pictures(plain).items() if f"{IDS[2]}_leftImg8bit" in path)
    assert inside[f"{IDS[2]}.png"] == picture
    label = np.array(Image.open(io.BytesIO(inside[f"{IDS[2]}.label.png"])))
    assert np.array_equal(label, trees.train_ids(IDS[2], SIZE))
    [line] = inside[f"{IDS[2]}.json"].decode().splitlines()
    assert json.loads(line)["id"] == IDS[2] and "seconds" not in line


def test_the_layout_reads_them_like_the_tree(config, tmp_path):
    plain = frames.load(f"cityscapes:{stage.transfer(config, tmp_path / 'plain')}/night:train")
    packed = frames.load(f"tar:{stage.transfer(replace(config, output='tar'), tmp_path / 'out')}/night")
    assert packed.transferred and packed.space.names == plain.space.names
    assert [frame.domain for frame in packed.frames] == ["night"] * len(IDS)
    for ours, theirs in frames.pair(plain, packed):
        assert np.array_equal(frames.read_image(ours.image), frames.read_image(theirs.image))
        assert frames.image_size(theirs.image) == SIZE
        labels = [frames.read_label(ours, plain.space), frames.read_label(theirs, packed.space)]
        assert np.array_equal(*labels)


def test_they_are_transferred_like_the_tree(config, tmp_path):
    once = [stage.transfer(replace(config, output=kind), tmp_path / kind) for kind in ("files", "tar")]
    sources = (f"cityscapes:{once[0]}/night:train", f"tar:{once[1]}/night")
    again = [
        stage.transfer(replace(config, source=named, to=("fog",)), tmp_path / f"{i}")
        for i, named in enumerate(sources)
    ]
    names = [f"cityscapes:{again[0]}/fog:train", f"tar:{again[1]}/fog"]
    plain, packed = map(frames.load, names)
    for ours, theirs in frames.pair(plain, packed):
        assert ours.image.read_bytes() == theirs.image.read_bytes()
        labels = [frames.read_label(ours, plain.space), frames.read_label(theirs, packed.space)]
        assert np.array_equal(*labels)


def test_shares_interruptions_and_repaired_frames_give_the_same_files(config, tmp_path, source, monkeypatch):
    config = replace(config, output="tar", to=("night", "fog"))
    whole = stage.transfer(config, tmp_path / "whole")
    shares = tmp_path / "shares"
    for share in ("1/2", "0/2"):
        stage.transfer(replace(config, shard=share), shares)
    assert tar_files(shares) == tar_files(whole) and manifest(shares, "fog") == manifest(whole, "fog")

    image = next(source.rglob(f"{IDS[1]}_leftImg8bit.png"))
    content = image.read_bytes()
    image.write_bytes(content[:100])
    out, write, calls = tmp_path / "out", tars.write, []

    def killed(path, members):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, members)

    with monkeypatch.context() as patch:
        patch.setattr(tars, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.transfer(config, out)
    assert len(list((out / "loose").rglob("*.png")))
    stage.transfer(config, out)
    assert [line["id"] for line in runs.failures(out)] == [IDS[1]]
    assert tar_files(out).keys() == tar_files(whole).keys()
    image.write_bytes(content)
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(tars, "write", lambda path, members: (calls.append(path.name), write(path, members)))
        stage.transfer(config, out)
        stage.transfer(config, out)
    assert calls == ["000000.tar"] * 2  # a domain each, once
    assert tar_files(out) == tar_files(whole) and not runs.failures(out)
    (out / "night" / "000001.tar").unlink()
    stage.transfer(config, out)
    assert tar_files(out) == tar_files(whole)


def test_webdataset_reads_them(config, tmp_path):
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed")
    out = stage.transfer(replace(config, output="tar"), tmp_path / "out")
    files = [str(path) for path in sorted((out / "night").glob("*.tar"))]
    found = list(wds.WebDataset(files, shardshuffle=False).decode("rgb8"))
    assert [one["__key__"] for one in found] == list(IDS)
    assert all(one["png"].shape == (*SIZE, 3) and one["json"]["domain"] == "night" for one in found)


def test_a_network_trains_on_them_and_predicts_them(tmp_path: Path):
    data = trees_of(tmp_path)
    day = frames.load(f"cityscapes:{data}/day:train")
    packed = tmp_path / "packed"
    tars.write(
        packed / "000000.tar",
        [
            (f"{tars.key(frame.id)}.{what}", content)
            for frame in day.frames
            for what, content in (
                ("png", frame.image.read_bytes()),
                ("label.png", png(trees.train_ids(frame.id))),
            )
        ],
    )
    frames.describe_tar(day, packed)
    (packed / "manifest.jsonl").touch()
    settings = training(data, transferred=(f"tar:{packed}",), steps=1)
    run = train(settings, tmp_path / "run")
    out = predict(PredictConfig(str(run), f"tar:{packed}", device="cpu"), tmp_path / "predictions")
    assert len(list((out / "000000.tar").glob("*.png"))) == len(day.frames)


def test_a_key_ends_at_no_dot_of_its_id():
    for id in ("a.b%2E", "aachen_000000_000019", "100%"):
        assert "." not in tars.key(id) and tars.id_of(tars.key(id)) == id


def test_a_tar_file_that_is_cut_short_is_one_sentence(config, tmp_path):
    out = stage.transfer(replace(config, output="tar"), tmp_path / "out")
    path = out / "night" / "000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"cannot (list|read) .*000000\.tar"):
        data = frames.load(f"tar:{out}/night")
        for frame in data.frames:
            frames.read_image(frame.image)

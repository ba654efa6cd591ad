# ruff: noqa: F811 (fixtures are imported by name)
"""Image transfer that goes wrong: interruptions, failures, memory, and bad input."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_device
import tiny_diffusion
import trees
from PIL import Image
from transferring import (  # noqa: F401
    IDS,
    SIZE,
    grey_levels_apart,
    manifest,
    model,
    pictures,
    prior,
    source,
)
from transferring import quick as config  # noqa: F401

from segshift import runs
from segshift.data import frames
from segshift.data.labels import CITYSCAPES, LabelSpace
from segshift.engine import making
from segshift.engine.journal import Journal
from segshift.generators.stable_diffusion import StableDiffusion
from segshift.methods.zodi import transfer as zodi
from segshift.runs import InputError
from segshift.stages import transfer as stage

# ------------------------------------------------------------------------- interruptions, failures, memory


def test_a_killed_run_continues_to_the_same_bytes(config, tmp_path, monkeypatch):
    config = replace(config, to=("night", "fog"))
    whole = stage.transfer(config, tmp_path / "whole")
    write, written = making._write, []

    def killed(config, dataset, frame, root, picture):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(frame.id)
        return write(config, dataset, frame, root, picture)

    monkeypatch.setattr(making, "_write", killed)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        stage.transfer(config, out)
    journal = out / "journal" / "0-of-1.jsonl"
    lines = [line for line in journal.read_text().splitlines() if '"id"' in line]
    assert len(lines) == 3
    journal.write_text(
        "\n".join([*lines[:2], lines[2][:50]])
    )  # as a kill in the middle of the third line leaves it
    written.clear()
    monkeypatch.setattr(making, "_write", lambda *a: (written.append(a[2].id), write(*a))[1])
    stage.transfer(config, out)
    assert len(written) == 8  # 10 pictures, 2 of them finished
    assert pictures(out) == pictures(whole)
    assert [manifest(out, slug) == manifest(whole, slug) for slug in ("night", "fog")] == [True, True]
    written.clear()
    (out / "night" / "manifest.jsonl").unlink()  # as a kill after the last picture leaves it
    stage.transfer(config, out)
    assert written == [] and manifest(out) == manifest(whole)


def test_a_picture_that_is_gone_is_made_again(config, tmp_path):
    out = stage.transfer(config, tmp_path / "out")
    before = pictures(out)
    made = frames.load(f"cityscapes:{out}/night").frames
    made[2].image.unlink()
    made[1].image.write_bytes(b"")  # as after a power cut
    stage.transfer(config, out)
    assert pictures(out) == before


@pytest.mark.parametrize("labels", ["link", "copy"])
def test_labels_that_are_gone_are_placed_again_beside_finished_pictures(
    config, tmp_path, source, monkeypatch, labels
):
    out = stage.transfer(replace(config, labels=labels), tmp_path / "out")
    before = pictures(out)
    first, second, *_ = (frame.label for frame in frames.load(f"cityscapes:{out}/night").frames)
    first.unlink()
    second.unlink()
    second.symlink_to(tmp_path / "moved away")
    monkeypatch.setattr(making, "_write", None)  # nothing is drawn again
    stage.transfer(replace(config, labels=labels), out)
    assert pictures(out) == before and second.is_symlink() == (labels == "link")


def test_a_frame_that_failed_and_was_removed_is_no_failure_any_more(config, tmp_path, source):
    image = source / f"leftImg8bit/train/aachen/{IDS[0]}_leftImg8bit.png"
    image.write_bytes(b"")
    out = stage.transfer(config, tmp_path / "out")
    assert [line["id"] for line in runs.failures(out)] == [IDS[0]]
    image.unlink()
    (source / f"gtFine/train/aachen/{IDS[0]}_gtFine_labelIds.png").unlink()
    assert not runs.failures(stage.transfer(config, out)) and len(manifest(out)) == len(IDS) - 1


def test_frames_that_cannot_be_read_are_listed_and_the_others_finish(config, tmp_path, source):
    whole = pictures(stage.transfer(config, tmp_path / "whole"))
    image = source / "leftImg8bit/train"
    truncated, empty = image / f"aachen/{IDS[0]}_leftImg8bit.png", image / f"bochum/{IDS[2]}_leftImg8bit.png"
    label = source / f"gtFine/train/ulm/{IDS[3]}_gtFine_labelIds.png"
    good = {path: path.read_bytes() for path in (truncated, empty, label)}
    truncated.write_bytes(good[truncated][:3000])
    empty.write_bytes(b"")
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(label)
    config = replace(config, to=("night", "fog"))
    out = stage.transfer(config, tmp_path / "out")
    failed = {line["id"]: line["error"] for line in runs.failures(out)}
    assert (
        set(failed) == {IDS[0], IDS[2], IDS[3]}
        and str(truncated) in failed[IDS[0]]
        and "77" in failed[IDS[3]]
    )
    assert runs.failures(out / "night") == runs.failures(out)
    assert [line["id"] for line in manifest(out, "fog")] == [IDS[1], IDS[4]]
    data = frames.load(config.source)
    assert len(frames.pair(data, frames.load(f"cityscapes:{out}/night"))) == 2
    for path, content in good.items():
        path.write_bytes(content)
    stage.transfer(config, out)
    assert not runs.failures(out) and not runs.failures(out / "fog")
    assert whole.items() <= pictures(out).items() and len(manifest(out, "fog")) == len(IDS)


def test_a_label_of_another_size_fails_that_frame(config, tmp_path, source):
    trees.save(
        source / f"gtFine/train/ulm/{IDS[3]}_gtFine_labelIds.png",
        CITYSCAPES.to_file(trees.train_ids("a", (32, 64))),
    )
    (failed,) = runs.failures(stage.transfer(config, tmp_path / "out"))
    assert failed["id"] == IDS[3] and "64x64" in failed["error"] and "64x32" in failed["error"]


def test_out_of_memory_halves_the_batch_and_goes_on(config, tmp_path, monkeypatch):
    whole = stage.transfer(config, tmp_path / "whole")
    rows: list[int] = []
    monkeypatch.setattr(zodi, "transfer", small_device.for_one_image(zodi.transfer, rows))
    out = stage.transfer(replace(config, batch_size=4), tmp_path / "out")
    assert rows == [4, 2, 1, 1, 1, 1, 1]
    assert [line["id"] for line in manifest(out)] == sorted(IDS)
    for path in pictures(out):
        if "leftImg8bit" in path:
            a, b = (np.asarray(Image.open(root / path)) for root in (out, whole))
            assert grey_levels_apart(a, b) <= 1
    monkeypatch.setattr(zodi, "transfer", small_device.for_none)
    with pytest.raises(InputError, match=r"too little memory for one image .* smaller --short-side"):
        stage.transfer(config, tmp_path / "none")


def test_one_frame_without_memory_is_listed_and_the_others_are_made(config, tmp_path, monkeypatch, model):
    monkeypatch.setattr(making.generators, "load", lambda *a, **k: model)
    config = replace(config, batch_size=1)
    limited, calls = small_device.for_all_but_one(zodi.transfer, 3)
    monkeypatch.setattr(zodi, "transfer", limited)
    out = stage.transfer(config, tmp_path / "out")
    [failed] = runs.failures(out)
    assert failed["id"] == IDS[2] and "too little memory for one image" in failed["error"]
    assert "give a smaller --short-side" in failed["error"] and len(failed["error"]) <= 300
    assert [line["id"] for line in manifest(out)] == [id for id in IDS if id != IDS[2]]
    stage.transfer(config, out)
    assert len(calls) == len(IDS) + 1 and len(manifest(out)) == len(IDS) and not runs.failures(out)


def test_a_full_disk_leaves_nothing_half_written_and_the_run_continues(config, tmp_path, monkeypatch):
    whole = stage.transfer(config, tmp_path / "whole")
    replaced, made = os.replace, []

    def full(source, target):
        if str(target).endswith("leftImg8bit.png"):
            made.append(target)
            if len(made) > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full)
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match=r"disk full while writing .*: free some space and run the same command again"
    ):
        stage.transfer(config, out)
    assert len(manifest(out)) == 3 and not list(out.rglob(".tmp-*"))
    monkeypatch.setattr(os, "replace", replaced)
    stage.transfer(config, out)
    assert pictures(out) == pictures(whole) and manifest(out) == manifest(whole)


def test_a_process_that_merges_late_loses_no_line_of_another(tmp_path, monkeypatch):
    slow, quick = (Journal(tmp_path, name, ("night",)) for name in ("0-of-2", "1-of-2"))
    slow.add({"id": "a", **trees.transferred_line("night")})
    write, first = runs.write_lines, []

    def interrupted(path, lines):
        if not first:  # between the slow one's reading and writing, the quick one finishes
            first.append(path)
            quick.add({"id": "b", **trees.transferred_line("night")})
            quick.add({"finished": True})
            quick.merge({"a", "b"})
        write(path, lines)

    monkeypatch.setattr(runs, "write_lines", interrupted)
    slow.merge({"a", "b"})
    assert [line["id"] for line in runs.read_lines(tmp_path / "night" / "manifest.jsonl")] == ["a", "b"]


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 0.2, "steps": 4}, "strength 0.2 of 4 steps walks none.*0.25 or more"),
        ({"to": ()}, "no target domain"),
        ({"to": ("night", "Night ")}, "'Night ' is empty or given twice"),
        ({"to": ("...",)}, "'...' is empty"),
        (
            {"to": ("a sentence far longer than this encoder reads",)},
            "tokens, and the text encoder .* reads 32",
        ),
        ({"shard": "2/2"}, "--shard is '2/2': expected i/n"),
        ({"shard": "half"}, "--shard is 'half': expected i/n"),
        ({"steps": 1000}, "--steps is 1000: expected 1 to 999"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(change, message, config, tmp_path):
    with pytest.raises(InputError, match=message):
        stage.transfer(replace(config, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()  # free to be used with better ones


def test_without_labels_the_layout_must_be_switched_off(config, tmp_path, model):
    root = trees.cityscapes(tmp_path / "bare", IDS[:2], SIZE, split="test", labelled=False)
    bare = replace(config, source=f"cityscapes:{root}:test")
    with pytest.raises(InputError, match=r"no frame of .* has a label"):
        stage.transfer(bare, tmp_path / "out")
    out = stage.transfer(replace(bare, control=False), tmp_path / "out")
    assert len(manifest(out)) == 2 and "controlnet" not in manifest(out)[0]["weights"]
    with pytest.raises(InputError, match="no labels, and the layout is drawn from them"):
        stage.transfer_images(config, [trees.picture("a", SIZE)], None, model=model)


def test_classes_without_a_colour_are_drawn_black_and_a_black_layout_is_refused(config, model, caplog):
    image, label = trees.picture("a", SIZE), np.zeros(SIZE, np.uint8)
    strange = LabelSpace("farm", ("cow", "pig"), ((1, 1, 1), (2, 2, 2)), (0, 1))
    with pytest.raises(
        InputError, match=r"no class of 'farm' .*has a colour .* map the classes onto cityscapes"
    ):
        stage.transfer_images(config, [image], [label], space=strange, model=model)
    mixed = LabelSpace("farm", ("cow", "road"), ((1, 1, 1), (2, 2, 2)), (0, 1))
    stage.transfer_images(config, [image], [label], space=mixed, model=model)
    assert "drawn black: cow" in caplog.text
    assert not zodi.layout(label, mixed, SIZE, "cityscapes").any()


def test_an_output_that_belongs_to_another_configuration_or_weights_is_left_alone(config, tmp_path, prior):
    out = stage.transfer(config, tmp_path / "out")
    with pytest.raises(InputError, match=r"other options .*--seed 42 there, 1 asked for"):
        stage.transfer(replace(config, seed=1), out)
    frames.load(f"cityscapes:{out}/night").frames[0].image.unlink()
    before = pictures(out)
    own = Path(shutil.copytree(prior, tmp_path / "own"))
    told = json.loads((out / "config.json").read_text())
    told["config"]["diffusion"]["model"] = str(own)
    (out / "config.json").write_text(json.dumps(told))
    changed = tiny_diffusion.unet(8, addition_embed_type="text", addition_embed_type_num_heads=4)
    changed.half().save_pretrained(own / "unet")
    with pytest.raises(InputError, match="begun with other weights"):
        stage.transfer(replace(config, diffusion=replace(config.diffusion, model=str(own))), out)
    assert pictures(out) == before


def test_device_shard_and_batch_size_may_change_when_a_run_goes_on(config, tmp_path):
    out = stage.transfer(replace(config, shard="0/2"), tmp_path / "out")
    assert len(manifest(out)) == 3
    stage.transfer(replace(config, batch_size=3, diffusion=replace(config.diffusion, device="auto")), out)
    assert len(manifest(out)) == 5


def test_an_output_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out is a file: name a new folder|cannot use .*file"):
        stage.transfer(config, tmp_path / "file" / "out")


def test_an_overflow_is_an_error_and_no_black_picture(config, tmp_path, monkeypatch):
    output = StableDiffusion.output
    monkeypatch.setattr(StableDiffusion, "output", lambda *a, **k: output(*a, **k) * float("inf"))
    with pytest.raises(
        InputError, match=r"not finite in torch\.float32: take --diffusion\.dtype bfloat16 or float32"
    ):
        stage.transfer(config, tmp_path / "out")
    assert not pictures(tmp_path / "out")


def test_the_embedded_prior_warns_of_photographs(config, tmp_path, monkeypatch, caplog, model):
    monkeypatch.setattr(making.generators, "load", lambda *a, **k: model)
    stage.transfer(config, tmp_path / "small")
    assert "knows no photographs" not in caplog.text
    town = replace(config, diffusion=replace(config.diffusion, model="town"), short_side=16)
    stage.transfer(town, tmp_path / "photographs")
    assert "knows no photographs, these have 64: name a real model" in caplog.text


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8), "image 0 is float32"),
        (np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8), "expected uint8 .H, W, 3."),
        (
            np.zeros((64, 64, 3), np.uint8),
            np.zeros((32, 64), np.uint8),
            r"label 0 is uint8 of shape \(32, 64\)",
        ),
        (
            np.zeros((64, 64, 3), np.uint8),
            np.full((64, 64), 77, np.uint8),
            r"label 0 holds \[77\]: expected train ids 0 to 18",
        ),
        (
            Image.new("RGB", (64, 64)),
            np.zeros((64, 64), np.uint8),
            r"images\[0\] is a Image: expected a NumPy",
        ),
        (np.zeros((64, 64, 3), np.uint8), [[0]], r"labels\[0\] is a list: expected a NumPy array of uint8"),
    ],
)
def test_arrays_that_are_no_pictures_or_labels_are_refused(image, label, message, config, model):
    with pytest.raises(InputError, match=message):
        stage.transfer_images(config, [image], [label], model=model)


def test_ids_and_labels_are_one_for_each_image(config, model):
    image, label = trees.picture("a", SIZE), np.zeros(SIZE, np.uint8)
    with pytest.raises(InputError, match="2 images and 1 labels"):
        stage.transfer_images(config, [image, image], [label], model=model)
    with pytest.raises(InputError, match="the same id"):
        stage.transfer_images(config, [image, image], [label, label], ids=["a", "a"], model=model)


def test_one_picture_that_is_too_narrow_does_not_end_the_rest(config, source, tmp_path):
    name = IDS[0]
    trees.save(
        source / f"leftImg8bit/train/aachen/{name}_leftImg8bit.png", np.zeros((2, 20_000, 3), np.uint8)
    )
    trees.save(source / f"gtFine/train/aachen/{name}_gtFine_labelIds.png", np.full((2, 20_000), 7, np.uint8))
    out = stage.transfer(config, tmp_path / "out")
    [failed] = runs.failures(out)
    assert failed["id"] == name and "crop it first" in failed["error"] and len(manifest(out)) == len(IDS) - 1

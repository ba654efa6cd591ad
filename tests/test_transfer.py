# ruff: noqa: F811 (fixtures are imported by name)
"""Image transfer: the tree that is written, what a frame depends on, modes and ablations."""

import hashlib
import shutil
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import trees
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

from segshift import execution, outputs, runs
from segshift.data import frames
from segshift.data.labels import ADE20K_COLOURS, CITYSCAPES
from segshift.generators import schedule
from segshift.generators.stable_diffusion import StableDiffusion
from segshift.methods.zodi import transfer as zodi
from segshift.runs import InputError
from segshift.stages import transfer as stage

# ------------------------------------------------------------------------------- the tree that is written


@pytest.mark.parametrize("layout", ["cityscapes", "acdc", "gta5", "synthia", "folder"])
def test_the_result_is_a_tree_of_the_sources_layout(layout, tmp_path, config):
    root = getattr(trees, layout)(tmp_path / "source", size=SIZE)
    source = frames.load(f"{layout}:{root}")
    control = layout != "folder" or "tree" in source.space.names
    out = stage.transfer(replace(config, source=source.name, control=control), tmp_path / "out")
    made = frames.load(f"{layout}:{out}/night")
    assert made.transferred and [f.id for f in made.frames] == [f.id for f in source.frames]
    assert frames.pair(source, made)
    for ours, theirs in zip(made.frames, source.frames, strict=True):
        assert np.array_equal(frames.read_label(ours, made.space), frames.read_label(theirs, source.space))
        assert frames.read_image(ours.image).shape == (64, 64, 3)


def test_torchvision_reads_a_transferred_cityscapes(config, tmp_path):
    out = stage.transfer(config, tmp_path / "out")
    read = torchvision.datasets.Cityscapes(str(out / "night"), split="train", target_type="semantic")
    image, label = read[0]
    assert len(read) == len(IDS) and image.size == label.size == SIZE


def test_the_manifest_tells_how_each_frame_was_made(config, tmp_path, prior):
    out = stage.transfer(
        replace(config, to=("night", "driving in mud"), seed=7, steps=None), tmp_path / "out"
    )
    lines = runs.read_lines(out / "driving-in-mud" / "manifest.jsonl")
    assert [line["id"] for line in lines] == sorted(IDS)
    data = frames.load(f"cityscapes:{out}/driving-in-mud:train")
    for line, frame in zip(lines, data.frames, strict=True):
        assert line["sha256"] == hashlib.sha256(frame.image.read_bytes()).hexdigest()
        assert line["prompt"] == "driving in mud, best quality" and line["domain"] == "driving-in-mud"
        assert (
            line["strength"] == 0.75
            and line["seed"] == 7
            and line["mode"] == "default"
            and line["seconds"] > 0
        )
        assert (
            line["settings"]["steps"] == 4 and line["settings"]["guidance"] == 2.0
        )  # the model's own defaults
        weights = prior / "unet" / "diffusion_pytorch_model.safetensors"
        assert line["weights"]["unet"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert runs.read_lines(out / "night" / "manifest.jsonl")[0]["strength"] == 0.9
    assert not runs.failures(out)


def test_labels_are_linked_so_that_the_tree_can_move_or_copied(config, tmp_path):
    stage.transfer(config, tmp_path / "out")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    moved = Path(shutil.move(tmp_path / "out" / "night", tmp_path / "elsewhere" / "deep" / "night"))
    frame = frames.load(f"cityscapes:{moved}:train").frames[0]
    assert frame.label.is_symlink() and frames.read_label(frame, CITYSCAPES).shape == SIZE
    copied = stage.transfer(replace(config, labels="copy"), tmp_path / "copied")
    label = frames.load(f"cityscapes:{copied}/night:train").frames[0].label
    assert not label.is_symlink() and label.read_bytes() == frame.label.read_bytes()


def test_images_can_be_saved_at_the_sources_size(config, tmp_path):
    root = trees.cityscapes(tmp_path / "odd", IDS[:1], (50, 70))
    odd = replace(config, source=f"cityscapes:{root}:train")
    shapes = []
    for size in ("working", "source"):
        out = stage.transfer(replace(odd, output_size=size), tmp_path / size)
        shapes.append(frames.read_image(frames.load(f"cityscapes:{out}/night").frames[0].image).shape)
    assert shapes == [(64, 64, 3), (50, 70, 3)]


# --------------------------------------------------------------------------- what a frame's result depends on


def test_noise_is_a_function_of_seed_frame_domain_and_step():
    first = zodi.noise(42, "aachen_000000", "night", 0, (4,))
    assert torch.equal(first, zodi.noise(42, "aachen_000000", "night", 0, (4,)))
    others = [
        (43, "aachen_000000", "night", 0),
        (42, "b", "night", 0),
        (42, "aachen_000000", "fog", 0),
        (42, "aachen_000000", "night", 1),
    ]
    assert all(not torch.allclose(first, zodi.noise(*other, (4,))) for other in others)
    # on every machine: recorded
    assert torch.allclose(first, torch.tensor([-0.93533, -0.19677, -1.58470, -0.54678]), atol=1e-4)


def test_a_frame_does_not_depend_on_its_neighbours_and_hardly_on_the_batch_size(config, tmp_path, source):
    whole = stage.transfer(config, tmp_path / "whole")
    (source / "leftImg8bit/train/aachen" / f"{IDS[0]}_leftImg8bit.png").unlink()
    fewer = stage.transfer(config, tmp_path / "fewer")  # every frame in another row, with another neighbour
    assert len(pictures(fewer)) == len(pictures(whole)) - 2
    assert pictures(fewer).items() <= pictures(whole).items()
    single = stage.transfer(replace(config, batch_size=1), tmp_path / "single")
    for frame in frames.load(f"cityscapes:{single}/night").frames:
        other = whole / frame.image.relative_to(single)
        assert grey_levels_apart(frames.read_image(frame.image), frames.read_image(other)) <= 1


def test_two_processes_at_once_write_what_one_writes(config, tmp_path):
    config = replace(config, to=("night", "fog"))
    whole = stage.transfer(config, tmp_path / "whole")
    second = replace(config, shard="1/2")
    other = get_context("fork").Process(target=stage.transfer, args=(second, tmp_path / "parts"))
    other.start()
    stage.transfer(replace(config, shard="0/2"), tmp_path / "parts")
    other.join(timeout=240)
    assert other.exitcode == 0
    assert pictures(tmp_path / "parts") == pictures(whole)
    for slug in ("night", "fog"):
        assert manifest(tmp_path / "parts", slug) == manifest(whole, slug)
    journals = [runs.read_lines(path) for path in sorted((tmp_path / "parts" / "journal").iterdir())]
    ids = [{line["id"] for line in lines if "id" in line} for lines in journals]
    assert not ids[0] & ids[1] and [len(i) for i in ids] == [3, 2]


def test_the_next_start_says_what_a_lost_share_left_and_makes_it(config, tmp_path, capsys, caplog):
    whole = stage.transfer(config, tmp_path / "whole")
    out = tmp_path / "parts"
    stage.transfer(replace(config, shard="0/3"), out)
    assert "share 1/3 lacks 2 frames (the first 'aachen_000001_000019') and no process" in caplog.text
    stage.transfer(replace(config, shard="2/3"), out)
    capsys.readouterr()
    stage.transfer(config, out)
    told = " ".join(capsys.readouterr().out.split())
    assert "2 of 5 frames are not made yet (the first 'aachen_000001_000019'; share 1/3 never began)" in told
    assert pictures(out) == pictures(whole) and manifest(out) == manifest(whole)
    caplog.clear()
    stage.transfer(replace(config, shard="0/3"), out)
    assert not caplog.text


def test_two_processes_that_would_make_the_same_frames_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PATIENCE", 0.0)
    out = tmp_path / "out"
    out.mkdir()
    for theirs, ours, refused in (
        ((0, 1), "0/1", True),
        ((0, 1), "1/2", True),
        ((1, 2), "0/1", True),
        ((1, 2), "1/2", True),
        ((1, 2), "0/2", False),
    ):
        (tmp_path / "held").unlink(missing_ok=True)
        other = get_context("fork").Process(target=_hold, args=(out, theirs, tmp_path / "held"))
        other.start()
        try:
            while not (tmp_path / "held").exists():
                time.sleep(0.01)
            if refused:
                with pytest.raises(InputError, match="another process works in"):
                    stage.transfer(replace(config, shard=ours), out)
                assert not (out / "config.json").exists()
            else:
                stage.transfer(replace(config, shard=ours), out)
        finally:
            other.kill()
            other.join()
    stage.transfer(config, out)


def _hold(out, share, told):
    with outputs.alone(out, *share):
        told.touch()
        time.sleep(600)


def test_torchruns_ranks_divide_a_shard_further(monkeypatch):
    assert execution.shard("1/3") == (1, 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert execution.shard("1/3") == (3, 6)


def test_each_source_image_is_encoded_once_and_each_prompt_embedded_once(config, tmp_path, monkeypatch):
    calls = {"encode": 0, "embed": 0}
    encode, embed = StableDiffusion.encode, StableDiffusion.embed
    monkeypatch.setattr(
        StableDiffusion,
        "encode",
        lambda *a: (calls.__setitem__("encode", calls["encode"] + 1), encode(*a))[1],
    )
    monkeypatch.setattr(
        StableDiffusion, "embed", lambda *a: (calls.__setitem__("embed", calls["embed"] + 1), embed(*a))[1]
    )
    out = stage.transfer(replace(config, to=("night", "fog", "snow")), tmp_path / "out")
    assert calls == {"encode": 2, "embed": 4}  # 5 frames in batches of 3; 3 domains and the negative prompt
    assert len({picture for path, picture in pictures(out).items() if "leftImg8bit" in path}) == 15


def test_in_memory_gives_what_the_stage_writes(config, tmp_path, model):
    out = stage.transfer(replace(config, to=("night", "snow")), tmp_path / "out")
    data = frames.load(config.source)
    images = [frames.read_image(frame.image) for frame in data.frames]
    labels = [frames.read_label(frame, data.space) for frame in data.frames]
    made = stage.transfer_images(replace(config, to=("night", "snow")), images, labels, ids=IDS, model=model)
    for slug in ("night", "snow"):
        written = [frames.read_image(frame.image) for frame in frames.load(f"cityscapes:{out}/{slug}").frames]
        assert all(np.array_equal(a, b) for a, b in zip(made[slug], written, strict=True))


# ------------------------------------------------------------------------------------ modes and ablations


def test_reference_mode_draws_the_same_noise_for_every_image(config, model):
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    for mode, same in (("reference", True), ("default", False)):
        made = stage.transfer_images(replace(config, mode=mode), [image, image], [label, label], model=model)[
            "night"
        ]
        assert np.array_equal(*made) == same
    draws = zodi.published_noise(42, (1, 4))
    stream = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(42))
    assert torch.equal(draws(0), stream[0]) and torch.equal(draws(1), stream[1])


def test_the_layout_is_drawn_in_the_palette_of_the_mode():
    label = np.array([[0, 13], [10, 255]], np.uint8).repeat(32, 0).repeat(32, 1)
    default = zodi.layout(label, CITYSCAPES, (128, 128), "ade20k")
    assert {tuple(c) for c in default.reshape(-1, 3).tolist()} == {
        *(ADE20K_COLOURS[name] for name in ("road", "car", "sky")),
        (0, 0, 0),
    }
    reference = zodi.layout(label, CITYSCAPES, (128, 128), "cityscapes", reference=True)
    assert tuple(reference[0, 0]) == (128, 64, 128)
    assert (
        len({tuple(c) for c in reference.reshape(-1, 3).tolist()}) > 4
    )  # mixed along the edges, as published


def test_reference_mode_draws_void_in_the_colours_of_cityscapes_own_ids(
    config, source, tmp_path, monkeypatch
):
    published = {
        label.id: label.color for label in pytest.importorskip("cityscapesscripts.helpers.labels").labels
    }
    ids = np.arange(34, dtype=np.uint8)[:, None].repeat(2, 1)
    drawn = zodi.layout(
        CITYSCAPES.to_train(ids), CITYSCAPES, (34, 2), "cityscapes", reference=True, label_ids=ids
    )
    assert [tuple(colour) for colour in drawn[:, 0].tolist()] == [published[i] for i in range(34)]
    for path in (source / "gtFine").rglob("*.png"):
        trees.save(path, np.full(SIZE, 16, np.uint8))  # tunnel: void
    layouts, embed = [], StableDiffusion.hint
    monkeypatch.setattr(
        StableDiffusion, "hint", lambda model, control: (layouts.append(control), embed(model, control))[1]
    )
    for mode in ("reference", "default"):
        stage.transfer(replace(config, mode=mode), tmp_path / mode)
    colours = [(255 * control[0, :, 0, 0]).round().tolist() for control in layouts]
    assert colours == [[150, 120, 90]] * 2 + [[0, 0, 0]] * 2


def test_the_ade20k_palette_is_the_published_one():
    # a few of the 150 colours as the ControlNet's authors publish them, by ADE20K's own class names
    ade = {
        "wall": (120, 120, 120),
        "building": (180, 120, 120),
        "sky": (6, 230, 230),
        "tree": (4, 200, 3),
        "road": (140, 140, 140),
    }
    ours = {name: zodi.colour(name, "ade20k") for name in ade}
    assert ours == ade
    assert zodi.colour("Traffic_Light", "ade20k") == (41, 0, 255) and zodi.colour("unicorn", "ade20k") is None


@pytest.mark.parametrize(
    "switch",
    [
        {"control": False},
        {"inversion": "none"},
        {"inversion": "ddim"},
        {"control": False, "inversion": "none"},
        {"guidance": 1.0},
        {"eta": 0.0},
        {"steps": 6},
        {"control_strength": 0.5},
        {"strength": 0.6},
        {"seed": 43},
    ],
    ids=str,
)
def test_every_switch_acts(switch, config, model):
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    (plain,), (switched,) = (
        stage.transfer_images(c, [image], [label], model=model)["night"]
        for c in (config, replace(config, **switch))
    )
    assert grey_levels_apart(plain, switched) > 3


def test_guidance_of_one_runs_one_pass_and_others_two_in_one_batch(model, config, monkeypatch):
    rows = []
    forward = model.unet.forward
    monkeypatch.setattr(
        model.unet, "forward", lambda sample, **k: (rows.append(len(sample)), forward(sample, **k))[1]
    )
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    for guidance, expected in ((1.0, [1, 1, 1]), (3.0, [1, 2, 2])):  # the inversion, then k = 2 steps
        rows.clear()
        stage.transfer_images(replace(config, guidance=guidance), [image], [label], model=model)
        assert rows == expected


@torch.inference_mode()
def test_ddim_inversion_is_walked_back_to_the_image(model):
    z0 = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    text = model.embed(["fog"])
    back = {}
    for steps in (5, 50):
        sampling = zodi.Sampling(0.6, steps=steps, guidance=1, eta=0, inversion="ddim")
        z = zodi.invert(model, z0, text, None, sampling, noises=None)
        back[steps] = float(
            (zodi.denoise(model, z, text, text, None, sampling, None) - z0).norm() / z0.norm()
        )
    assert back[50] < 0.02 and back[50] < back[5] / 4


@torch.inference_mode()
def test_a_v_prediction_becomes_the_noise_and_image_it_stands_for(model):
    z = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    text = model.embed(["fog"])
    point = model.point(0.5, (8, 16))
    eps, x0 = model.denoise(z, point, text, None)
    assert point.t == 500 and torch.allclose(schedule.noised(x0, eps, point), z, atol=1e-5)
    v = model.unet(z, 500, text["text"]).sample
    abar = model.scheduler.alphas_cumprod[500]
    assert torch.allclose(abar.sqrt() * eps - (1 - abar).sqrt() * x0, v, atol=1e-5)


def test_the_working_size_follows_the_short_side_in_multiples_of_64():
    assert zodi.working_size(1024, 2048, 512) == (512, 1024)
    assert zodi.working_size(1080, 1920, 512) == (512, 896)
    assert zodi.working_size(20, 30, 8) == (64, 64)


def test_full_strength_starts_at_the_last_time_step(config, model):
    assert model.point(1.0, (8, 8)).t == 999
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    assert (
        stage.transfer_images(replace(config, strength=1.0), [image], [label], model=model)["night"][0].std()
        > 1
    )

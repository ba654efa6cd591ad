"""Image transfer: what a frame depends on, the tree that is written, interruptions, and bad input."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion
import torch
import torchvision
import trees
from PIL import Image

from segshift import diffusion, frames, runs
from segshift.config import DiffusionConfig, TransferConfig
from segshift.journal import Journal
from segshift.labels import ADE20K_COLOURS, CITYSCAPES, LabelSpace
from segshift.methods import zodi
from segshift.runs import InputError
from segshift.stages import transfer as stage

torch.set_num_threads(1)  # these networks are too small to share
SIZE = (64, 64)
IDS = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313", "ulm_000000_000019", "ulm_000001_000019")


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> Path:
    return tiny_diffusion.prior(tmp_path_factory.mktemp("models") / "prior")


@pytest.fixture(scope="session")
def model(prior) -> diffusion.Diffusion:
    return diffusion.load(DiffusionConfig(model=str(prior), device="cpu"))


@pytest.fixture
def source(tmp_path) -> Path:
    return trees.cityscapes(tmp_path / "cityscapes", IDS, SIZE)


@pytest.fixture
def config(source, prior) -> TransferConfig:
    where = DiffusionConfig(model=str(prior), device="cpu")
    return TransferConfig(source=f"cityscapes:{source}:train", batch_size=2, diffusion=where)


def pictures(out: Path) -> dict[str, bytes]:
    """Every picture under OUT, by its path there."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def manifest(out: Path, slug: str = "night") -> list[dict]:
    """Its lines but for the time they took."""
    return [line | {"seconds": None} for line in runs.read_lines(out / slug / "manifest.jsonl")]


def grey_levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


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
    out = stage.transfer(replace(config, to=("night", "driving in mud"), seed=7), tmp_path / "out")
    lines = runs.read_lines(out / "driving-in-mud" / "manifest.jsonl")
    assert [line["id"] for line in lines] == sorted(IDS)
    data = frames.load(f"cityscapes:{out}/driving-in-mud:train")
    for line, frame in zip(lines, data.frames, strict=True):
        assert line["sha256"] == hashlib.sha256(frame.image.read_bytes()).hexdigest()
        assert line["prompt"] == "driving in mud, best quality" and line["domain"] == "driving-in-mud"
        assert line["strength"] == 0.75 and line["seed"] == 7 and line["mode"] == "default" and line["seconds"] > 0
        assert line["settings"]["steps"] == 4 and line["settings"]["guidance"] == 2.0  # the model's own defaults
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
    others = [(43, "aachen_000000", "night", 0), (42, "b", "night", 0), (42, "aachen_000000", "fog", 0), (42, "aachen_000000", "night", 1)]
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
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom segshift import runs\nfrom segshift.config import TransferConfig\n"
        "from segshift.stages.transfer import transfer\nfrom dataclasses import replace\n"
        "transfer(replace(runs.read_config(Path(sys.argv[1]), TransferConfig), shard=sys.argv[2]), Path(sys.argv[3]))"
    )
    other = subprocess.Popen([sys.executable, "-c", code, whole / "config.json", "1/2", tmp_path / "parts"])
    stage.transfer(replace(config, shard="0/2"), tmp_path / "parts")
    assert other.wait() == 0
    assert pictures(tmp_path / "parts") == pictures(whole)
    for slug in ("night", "fog"):
        assert manifest(tmp_path / "parts", slug) == manifest(whole, slug)
    journals = [runs.read_lines(path) for path in sorted((tmp_path / "parts" / "journal").iterdir())]
    ids = [{line["id"] for line in lines if "id" in line} for lines in journals]
    assert not ids[0] & ids[1] and [len(i) for i in ids] == [3, 2]


def test_torchruns_ranks_divide_a_shard_further(monkeypatch):
    assert stage.shard("1/3") == (1, 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert stage.shard("1/3") == (3, 6)


def test_each_source_image_is_encoded_once_and_each_prompt_embedded_once(config, tmp_path, monkeypatch):
    calls = {"encode": 0, "embed": 0}
    encode, embed = zodi.encode, diffusion.embed
    monkeypatch.setattr(zodi, "encode", lambda *a: (calls.__setitem__("encode", calls["encode"] + 1), encode(*a))[1])
    monkeypatch.setattr(diffusion, "embed", lambda *a: (calls.__setitem__("embed", calls["embed"] + 1), embed(*a))[1])
    out = stage.transfer(replace(config, to=("night", "fog", "snow")), tmp_path / "out")
    assert calls == {"encode": 3, "embed": 4}  # 5 frames in batches of 2; 3 domains and the negative prompt
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
        made = stage.transfer_images(replace(config, mode=mode), [image, image], [label, label], model=model)["night"]
        assert np.array_equal(*made) == same
    draws = zodi.published_noise(42, (1, 4))
    stream = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(42))
    assert torch.equal(draws(0), stream[0]) and torch.equal(draws(1), stream[1])


def test_the_layout_is_drawn_in_the_palette_of_the_mode():
    label = np.array([[0, 13], [10, 255]], np.uint8).repeat(32, 0).repeat(32, 1)
    default = zodi.layout(label, CITYSCAPES, (128, 128), "ade20k")
    assert {tuple(c) for c in default.reshape(-1, 3).tolist()} == {
        *(ADE20K_COLOURS[name] for name in ("road", "car", "sky")), (0, 0, 0)
    }  # fmt: skip
    reference = zodi.layout(label, CITYSCAPES, (128, 128), "cityscapes", reference=True)
    assert tuple(reference[0, 0]) == (128, 64, 128)
    assert len({tuple(c) for c in reference.reshape(-1, 3).tolist()}) > 4  # mixed along the edges, as published


def test_the_ade20k_palette_is_the_published_one():
    # a few of the 150 colours as the ControlNet's authors publish them, by ADE20K's own class names
    ade = {"wall": (120, 120, 120), "building": (180, 120, 120), "sky": (6, 230, 230), "tree": (4, 200, 3), "road": (140, 140, 140)}
    ours = {name: zodi.colour(name, "ade20k") for name in ade}
    assert ours == ade
    assert zodi.colour("Traffic_Light", "ade20k") == (41, 0, 255) and zodi.colour("unicorn", "ade20k") is None


@pytest.mark.parametrize(
    "switch",
    [{"control": False}, {"inversion": "none"}, {"inversion": "ddim"}, {"control": False, "inversion": "none"},
     {"guidance": 1.0}, {"eta": 0.0}, {"steps": 6}, {"control_strength": 0.5}, {"strength": 0.6}, {"seed": 43}],
    ids=str,
)  # fmt: skip
def test_every_switch_acts(switch, config, model):
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    (plain,), (switched,) = (
        stage.transfer_images(c, [image], [label], model=model)["night"] for c in (config, replace(config, **switch))
    )
    assert grey_levels_apart(plain, switched) > 3


def test_guidance_of_one_runs_one_pass_and_others_two_in_one_batch(model, config, monkeypatch):
    rows = []
    forward = model.unet.forward
    monkeypatch.setattr(model.unet, "forward", lambda z, *a, **k: (rows.append(len(z)), forward(z, *a, **k))[1])
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    for guidance, expected in ((1.0, [1, 1, 1, 1]), (3.0, [1, 2, 2, 2])):  # the inversion, then k = 3 steps
        rows.clear()
        stage.transfer_images(replace(config, guidance=guidance), [image], [label], model=model)
        assert rows == expected


@torch.inference_mode()
def test_ddim_inversion_is_walked_back_to_the_image(model):
    z0 = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    text = diffusion.embed(model, "fog")
    back = {}
    for steps in (5, 50):
        sampling = zodi.Sampling(0.6, steps=steps, guidance=1, eta=0, inversion="ddim")
        z = zodi.invert(model, z0, text, None, sampling, noises=None)
        back[steps] = float((zodi.denoise(model, z, text, text, None, sampling, None) - z0).norm() / z0.norm())
    assert back[50] < 0.02 and back[50] < back[5] / 4


@torch.inference_mode()
def test_a_v_prediction_becomes_the_noise_and_image_it_stands_for(model):
    z = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    text = diffusion.embed(model, "fog")
    eps, x0 = zodi.predict(model, z, 500, text, None)
    assert torch.allclose(zodi.diffuse(model, x0, eps, 500), z, atol=1e-5)
    v = model.unet(z, 500, text).sample
    abar = model.scheduler.alphas_cumprod[500]
    assert torch.allclose(abar.sqrt() * eps - (1 - abar).sqrt() * x0, v, atol=1e-5)


def test_the_working_size_follows_the_short_side_in_multiples_of_64():
    assert zodi.working_size(1024, 2048, 512) == (512, 1024)
    assert zodi.working_size(1080, 1920, 512) == (512, 896)
    assert zodi.working_size(20, 30, 8) == (64, 64)


def test_full_strength_starts_at_the_last_time_step(config, model):
    assert zodi.start_timestep(model, 1.0) == 999
    image, label = trees.picture("a", SIZE), trees.train_ids("a", SIZE)
    assert stage.transfer_images(replace(config, strength=1.0), [image], [label], model=model)["night"][0].std() > 1


# ------------------------------------------------------------------------- interruptions, failures, memory


def test_a_killed_run_continues_to_the_same_bytes(config, tmp_path, monkeypatch):
    config = replace(config, to=("night", "fog"))
    whole = stage.transfer(config, tmp_path / "whole")
    write, written = stage._write, []

    def killed(config, dataset, frame, root, picture):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(frame.id)
        return write(config, dataset, frame, root, picture)

    monkeypatch.setattr(stage, "_write", killed)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        stage.transfer(config, out)
    journal = out / "journal" / "0-of-1.jsonl"
    lines = [line for line in journal.read_text().splitlines() if '"id"' in line]
    assert len(lines) == 3
    journal.write_text("\n".join([*lines[:2], lines[2][:50]]))  # as a kill in the middle of the third line leaves it
    written.clear()
    monkeypatch.setattr(stage, "_write", lambda *a: (written.append(a[2].id), write(*a))[1])
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
    frames.load(f"cityscapes:{out}/night").frames[2].image.unlink()
    stage.transfer(config, out)
    assert pictures(out) == before


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
    assert set(failed) == {IDS[0], IDS[2], IDS[3]} and str(truncated) in failed[IDS[0]] and "77" in failed[IDS[3]]
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
    trees.save(source / f"gtFine/train/ulm/{IDS[3]}_gtFine_labelIds.png", CITYSCAPES.to_file(trees.train_ids("a", (32, 64))))
    (failed,) = runs.failures(stage.transfer(config, tmp_path / "out"))
    assert failed["id"] == IDS[3] and "64x64" in failed["error"] and "64x32" in failed["error"]


def test_out_of_memory_halves_the_batch_and_goes_on(config, tmp_path, monkeypatch):
    whole = stage.transfer(config, tmp_path / "whole")
    transfer, rows = zodi.transfer, []

    def small_device(model, z0, *args):
        rows.append(len(z0))
        if len(z0) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return transfer(model, z0, *args)

    monkeypatch.setattr(zodi, "transfer", small_device)
    out = stage.transfer(replace(config, batch_size=4), tmp_path / "out")
    assert rows == [4, 2, 1, 1, 1, 1, 1]
    assert [line["id"] for line in manifest(out)] == sorted(IDS)
    for path in pictures(out):
        if "leftImg8bit" in path:
            a, b = (np.asarray(Image.open(root / path)) for root in (out, whole))
            assert grey_levels_apart(a, b) <= 1
    monkeypatch.setattr(zodi, "transfer", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(InputError, match=r"too little memory for one image .* smaller --short-side"):
        stage.transfer(config, tmp_path / "none")


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
    with pytest.raises(InputError, match=r"disk full while writing .*: free some space and run the same command again"):
        stage.transfer(config, out)
    assert len(manifest(out)) == 3 and not list(out.rglob(".tmp-*"))
    monkeypatch.setattr(os, "replace", replaced)
    stage.transfer(config, out)
    assert pictures(out) == pictures(whole) and manifest(out) == manifest(whole)


def test_a_process_that_merges_late_loses_no_line_of_another(tmp_path, monkeypatch):
    slow, quick = (Journal(tmp_path, name, ("night",)) for name in ("0-of-2", "1-of-2"))
    slow.add({"id": "a", "domain": "night"})
    write, first = runs.write_lines, []

    def interrupted(path, lines):
        if not first:  # between the slow one's reading and writing, the quick one finishes
            first.append(path)
            quick.add({"id": "b", "domain": "night"})
            quick.add({"finished": True})
            quick.merge()
        write(path, lines)

    monkeypatch.setattr(runs, "write_lines", interrupted)
    slow.merge()
    assert [line["id"] for line in runs.read_lines(tmp_path / "night" / "manifest.jsonl")] == ["a", "b"]


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 0.0}, "strength 0.0: expected more than 0 and at most 1"),
        ({"strength": 1.5}, "strength 1.5: expected more than 0 and at most 1"),
        ({"strength": float("nan")}, "strength nan"),
        ({"strength": 0.2}, "strength 0.2 of 4 steps walks none.*0.25 or more"),
        ({"to": ()}, "no target domain"),
        ({"to": ("night", "Night ")}, "'Night ' is empty or given twice"),
        ({"to": ("...",)}, "'...' is empty"),
        ({"to": ("a sentence far longer than this encoder reads",)}, "tokens, and the text encoder .* reads 32"),
        ({"shard": "2/2"}, "shard '2/2': expected i/n"),
        ({"shard": "half"}, "shard 'half': expected i/n"),
        ({"steps": 0}, "0 steps: expected 1 to 999"),
        ({"steps": 1000}, "1000 steps: expected 1 to 999"),
        ({"eta": 1.5}, "eta 1.5: expected 0"),
        ({"batch_size": 0}, "batch size 0: expected 1 or more"),
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
    with pytest.raises(InputError, match="no label for frame 'aachen_000000_000019'"):
        stage.transfer(bare, tmp_path / "out")
    out = stage.transfer(replace(bare, control=False), tmp_path / "out")
    assert len(manifest(out)) == 2 and "controlnet" not in manifest(out)[0]["weights"]
    with pytest.raises(InputError, match="no labels, and the layout is drawn from them"):
        stage.transfer_images(config, [trees.picture("a", SIZE)], None, model=model)


def test_classes_without_a_colour_are_drawn_black_and_a_black_layout_is_refused(config, model, caplog):
    image, label = trees.picture("a", SIZE), np.zeros(SIZE, np.uint8)
    strange = LabelSpace("farm", ("cow", "pig"), ((1, 1, 1), (2, 2, 2)), (0, 1))
    with pytest.raises(InputError, match=r"no class of 'farm' .*has a colour .* map the classes onto cityscapes"):
        stage.transfer_images(config, [image], [label], space=strange, model=model)
    mixed = LabelSpace("farm", ("cow", "road"), ((1, 1, 1), (2, 2, 2)), (0, 1))
    stage.transfer_images(config, [image], [label], space=mixed, model=model)
    assert "drawn black: cow" in caplog.text
    assert not zodi.layout(label, mixed, SIZE, "cityscapes").any()


def test_an_output_that_belongs_to_another_configuration_or_weights_is_left_alone(config, tmp_path, prior):
    out = stage.transfer(config, tmp_path / "out")
    with pytest.raises(InputError, match=r"another configuration .*seed 42 there, 1 asked for"):
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
    with pytest.raises(InputError, match=r"cannot write .*file.*: choose a writable output folder"):
        stage.transfer(config, tmp_path / "file" / "out")

"""ControlNets trained on the user's own frames: what is learnt, resumed, drawn and written."""

import json
import os
import shutil
import socket
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion
import torch
import trees
from accelerate.state import AcceleratorState
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file
from training import last, logged, same
from transferring import IDS, SIZE, manifest

from segshift import generators, runs
from segshift.__main__ import main
from segshift.config import ControlConfig, DiffusionConfig, TransferConfig
from segshift.data.labels import CITYSCAPES, LabelSpace
from segshift.generators import schedule
from segshift.methods.zodi import transfer as zodi
from segshift.runs import InputError
from segshift.stages import control as stage
from segshift.stages import transfer as transferring
from segshift.training import checkpoints, control

MODELS = {
    "Stable Diffusion": tiny_diffusion.stable_diffusion,
    "prior": tiny_diffusion.prior,
    "Stable Diffusion XL": tiny_diffusion.stable_diffusion_xl,
}


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> dict[str, Path]:
    made = {name: make(tmp_path_factory.mktemp("models") / "m") for name, make in MODELS.items()}
    for home in made.values():
        told = json.loads((home / "segshift.json").read_text()) if (home / "segshift.json").exists() else {}
        (home / "segshift.json").write_text(json.dumps(told | {"steps": 2, "short_side": 64}))
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return trees.cityscapes(tmp_path_factory.mktemp("data") / "day", IDS, SIZE)


@pytest.fixture(autouse=True)
def _few_drawings(monkeypatch):
    monkeypatch.setattr(stage, "DRAWN", 1)


@pytest.fixture
def config(data, homes) -> ControlConfig:
    return ControlConfig(
        source=f"cityscapes:{data}:train",
        diffusion=DiffusionConfig(model=str(homes["prior"]), device="cpu"),
        batch_size=2,
        steps=3,
        lr=1e-2,
        warmup=0,
        workers=0,
        checkpoint_every=2,
        draw_every=100,
    )


@pytest.fixture
def run(config, tmp_path) -> Path:
    return stage.train(config, tmp_path / "run")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "controlnet" / "diffusion_pytorch_model.safetensors")


def stop_after_step(monkeypatch, step: int) -> None:
    """As Ctrl-C there."""

    def after_step(self, done):
        if done == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(control.ControlNetTraining, "after_step", after_step)


# ------------------------------------------------------------------------------------------- what is learnt


@pytest.mark.parametrize("name", MODELS)
def test_a_ControlNet_is_trained_and_transfers_load_it_as_any_other(name, homes, config, tmp_path):
    config = replace(config, diffusion=DiffusionConfig(model=str(homes[name]), device="cpu"))
    out = stage.train(config, tmp_path / "run")
    made = ControlNetModel.from_pretrained(out / "controlnet")
    assert all(layer.weight.abs().max() > 0 for layer in made.controlnet_down_blocks)  # they began at zero
    told = json.loads((out / "controlnet" / "segshift.json").read_text())
    assert told == {"layout": "colours", "palette": "cityscapes", "short_side": 64}
    diffusion = DiffusionConfig(
        model=str(homes[name]), controlnet=str(out / "controlnet"), device="cpu", dtype="float32"
    )
    tree = transferring.transfer(TransferConfig(source=config.source, diffusion=diffusion), tmp_path / "tree")
    assert len(manifest(tree)) == len(IDS) and not runs.failures(tree)
    assert manifest(tree)[0]["settings"]["palette"] == "cityscapes"


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_error_of_the_predicted_noise(name, homes, config, tmp_path):
    config = replace(config, diffusion=DiffusionConfig(model=str(homes[name]), device="cpu"), steps=1)
    out = stage.train(replace(config, batch_size=1, crop=(64, 64)), tmp_path / "run")
    model = generators.family(config.diffusion).load_model(config.diffusion)
    frames = stage.frames.load(config.source)
    pairs = [(frame, ()) for frame in frames.frames]
    pictures = stage._pictures(frames, SIZE, 0)
    drawn = control.Samples(pairs, pictures, crop=SIZE, jitter=(0.0,) * 4, seed=0)[0]
    z0 = model.encode(drawn["source"][None])
    rng = torch.Generator().manual_seed(int(drawn["seed"]))
    t = int(torch.randint(1000, (), generator=rng))
    n = torch.randn(z0.shape[1:], generator=rng)[None]
    text = model.embed(["driving by day, best quality" if torch.rand((), generator=rng) >= 0.1 else ""])
    point = model.point((t + 0.5) / 1000, SIZE)
    assert point.t == t
    o = model.output(schedule.noised(z0, n, point), point, text, None, 1.0)  # the new ControlNet adds zeros
    expected = (o - schedule.target(model.prediction, z0, n, point)).square().mean()
    assert logged(out)[0]["noise"] == pytest.approx(float(expected), rel=1e-4)


def test_the_layout_is_learnt_and_nothing_else_changes(config, data, tmp_path, homes):
    """Images that are their layouts: a ControlNet lowers the error, and the model's files stay."""
    before = {path: path.read_bytes() for path in homes["prior"].rglob("*.safetensors")}
    for id in IDS:
        drawn = CITYSCAPES.paint(trees.train_ids(id, SIZE))
        trees.save(tmp_path / f"day/leftImg8bit/train/{id.split('_')[0]}/{id}_leftImg8bit.png", drawn)
    shutil.copytree(data / "gtFine", tmp_path / "day" / "gtFine")
    config = replace(
        config, source=f"cityscapes:{tmp_path}/day:train", steps=12, batch_size=4, checkpoint_every=12
    )
    learnt, still = (  # the draws of a step are the same in both
        [line["noise"] for line in logged(stage.train(replace(config, lr=lr), tmp_path / str(lr)))][-4:]
        for lr in (1e-2, 1e-9)
    )
    assert np.mean(learnt) < 0.9 * np.mean(still)
    assert before == {path: path.read_bytes() for path in homes["prior"].rglob("*.safetensors")}


def test_training_goes_on_from_a_ControlNet_that_is_named(config, homes, tmp_path):
    start = homes["prior"] / "controlnet"
    named = replace(config, diffusion=replace(config.diffusion, controlnet=str(start)), lr=1e-9, steps=1)
    ours = weights(stage.train(named, tmp_path / "run"))
    theirs = load_file(start / "diffusion_pytorch_model.safetensors")
    assert all(torch.allclose(ours[key], theirs[key].float(), atol=1e-6) for key in theirs)


def test_adapters_learn_what_is_new_and_little_else_and_are_merged(config, homes, tmp_path):
    named = replace(config.diffusion, controlnet=str(homes["prior"] / "controlnet"))
    out = stage.train(replace(config, diffusion=named, lora=2), tmp_path / "run")
    ours = weights(out)
    theirs = load_file(homes["prior"] / "controlnet" / "diffusion_pytorch_model.safetensors")
    assert ours.keys() == theirs.keys()
    moved = {key for key in ours if not torch.equal(ours[key], theirs[key].float())}
    assert any(".to_q." in key for key in moved)
    ends = tuple(f".{layer}.weight" for layer in control.ATTENTION)
    assert all(key.endswith(ends) or key.startswith(control.NEW) for key in moved)
    assert {key.split(".")[0] for key in moved} > set(control.NEW[:2])
    kept = last(out)
    assert any("lora_A" in key for key in kept) and all(key.startswith("controlnet.") for key in kept)


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, {"dtype": "bfloat16", "gradient_checkpointing": True}],
)
def test_mixed_precision_keeps_the_weights_in_float32(config, tmp_path, changes):
    dtype = changes.pop("dtype", "float32")
    config = replace(config, diffusion=replace(config.diffusion, dtype=dtype), **changes)
    out = stage.train(config, tmp_path / "run")
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
    assert all(np.isfinite(line["noise"]) for line in logged(out))


def test_recomputed_activations_change_nothing(config, run, tmp_path):
    again = stage.train(replace(config, gradient_checkpointing=True), tmp_path / "again")
    assert same(run, again)


# -------------------------------------------------------------------------------------- palettes and layouts


def test_classes_of_ones_own_are_drawn_in_their_own_colours(config, homes, tmp_path, caplog):
    yaml = trees.FOLDER_YAML.replace(
        "classes: [road, tree, car]", "classes: [Leaf_Spot, soil, weed]\ncolours: {soil: [90, 60, 30]}"
    )
    trees.folder(tmp_path / "field", size=SIZE, yaml=yaml)
    source = f"folder:{tmp_path}/field:train"
    out = stage.train(replace(config, source=source, prompt="a field"), tmp_path / "run")
    palette = json.loads((out / "controlnet" / "segshift.json").read_text())["palette"]
    assert palette.keys() == {"leaf spot", "soil", "weed"} and palette["soil"] == [90, 60, 30]
    diffusion = replace(config.diffusion, controlnet=str(out / "controlnet"))
    told = TransferConfig(source=source, diffusion=diffusion, to=("a dry field",))
    drawn, seen = zodi.layout, []

    def noted(*args, **more):
        seen.append(drawn(*args, **more))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(zodi, "layout", noted)
        tree = transferring.transfer(told, tmp_path / "tree")
    assert len(manifest(tree, "a-dry-field")) == 3 and "drawn black" not in caplog.text
    colours = {tuple(colour) for picture in seen for colour in picture.reshape(-1, 3)}
    assert colours == {(0, 0, 0), *(tuple(colour) for colour in palette.values())}
    others = TransferConfig(source=config.source, diffusion=diffusion)
    with pytest.raises(InputError, match="has a colour in the ControlNet's palette of its own"):
        transferring.transfer(others, tmp_path / "others")
    assert main(["models", str(homes["prior"])]) == 0


@pytest.mark.parametrize(
    ("names", "colours", "message"),
    [
        (("a", "b"), ((1, 2, 3), (1, 2, 3)), r"classes 'a' and 'b' of 'x' have one colour \(\(1, 2, 3\)\)"),
        (("a", "b"), ((1, 2, 3), (0, 0, 0)), "classes 'b' and 'void' of 'x' have one colour"),
        (("a_b", "A b"), ((1, 2, 3), (3, 2, 1)), "classes 'a_b' and 'A b' of 'x' have one name"),
    ],
)
def test_a_palette_that_tells_no_classes_apart_is_refused(names, colours, message):
    with pytest.raises(InputError, match=message):
        control.palette_of(LabelSpace("x", names, colours, (0, 1)))


@pytest.mark.parametrize("palette", ['{"a": [0, 0, 256]}', '{"a": [0, 0]}', '{"a": "red"}', '"citiscapes"'])
def test_a_palette_that_is_none_is_refused(config, run, palette):
    (run / "controlnet" / "segshift.json").write_text(f'{{"palette": {palette}}}')
    diffusion = replace(config.diffusion, controlnet=str(run / "controlnet"))
    with pytest.raises(InputError, match=r"segshift\.json is not as segshift wrote it \(palette"):
        generators.family(diffusion).load_model(diffusion)


# --------------------------------------------------------------------------------------- pictures, resuming


def test_fixed_frames_are_drawn_as_it_learns(config, data, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "DRAWN", 2)
    ids = ("ulm_000000_000019", "ulm_000002_000019", "ulm_000003_000019")
    trees.cityscapes(data, ids, SIZE, split="val")
    config = replace(config, validation=f"cityscapes:{data}:val", draw_every=2)
    out = stage.train(config, tmp_path / "run")
    first, then = (np.asarray(Image.open(out / "pictures" / f"{step:08d}.png")) for step in (2, 3))
    assert first.shape == (2 * 64, 3 * 64, 3)
    assert np.array_equal(first[:, :128], then[:, :128]) and not np.array_equal(first[:, 128:], then[:, 128:])
    assert np.array_equal(first[64:, :64], trees.picture("ulm_000002_000019", SIZE))
    assert np.array_equal(first[64:, 64:128], CITYSCAPES.paint(trees.train_ids("ulm_000002_000019", SIZE)))


@pytest.mark.parametrize("lora", [None, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(config, tmp_path, monkeypatch, lora):
    config = replace(config, lora=lora)
    whole = stage.train(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after_step(patched, 2)
        stage.train(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "controlnet").exists()
    out = stage.train(config, tmp_path / "killed")
    assert same(whole, out) and logged(whole) == logged(out)
    for file in ("controlnet/diffusion_pytorch_model.safetensors", "pictures/00000003.png"):
        assert (whole / file).read_bytes() == (out / file).read_bytes()


def test_a_finished_run_is_left_alone_and_more_steps_extend_it(config, run, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(stage.loop, "fit", None)
        assert stage.train(config, run) == run
    before = weights(run)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after_step(patched, 4)
        stage.train(replace(config, steps=6), run)
    assert checkpoints.last_step(run) == 4 and not (run / "controlnet").exists()
    stage.train(replace(config, steps=4), run)  # what is there, as a ControlNet
    kept = last(run)
    assert all(torch.equal(weights(run)[key], kept[f"controlnet.{key}"]) for key in before)
    with pytest.raises(InputError, match="is at step 4: give --steps of 4 or more"):
        stage.train(config, run)


def _train(config: ControlConfig, out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)
    stage.train(config, out)


def test_two_processes_take_the_steps_of_one(config, tmp_path):
    config = replace(config, steps=2, lr=1e-4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        get_context("fork").Process(
            target=_train, args=(config, tmp_path / "two", told | {"RANK": rank, "LOCAL_RANK": rank})
        )
        for rank in "01"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0, 0]
    for more in ({}, {"accumulate": 2}):
        one = stage.train(replace(config, **more), tmp_path / f"one{len(more)}")
        for a, b in zip(logged(one), logged(tmp_path / "two"), strict=True):
            assert a["noise"] == pytest.approx(b["noise"], rel=1e-4)


def test_the_step_of_a_batch_is_drawn_by_sample_and_not_by_process(config, tmp_path):
    """Losses of the same samples are the same at every batch size: the sum over four is that over 2 + 2."""
    config = replace(config, lr=1e-12, steps=2)
    two = [line["noise"] for line in logged(stage.train(config, tmp_path / "two"))]
    [four] = [
        line["noise"] for line in logged(stage.train(replace(config, batch_size=4, steps=1), tmp_path / "4"))
    ]
    assert np.mean(two) == pytest.approx(four, rel=1e-4)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (48, 64)}, r"--crop \(48, 64\) of images of \(64, 64\): expected multiples of 64"),
        ({"crop": (128, 64)}, "expected multiples of 64 of at most that size"),
        ({"accumulate": 3}, "--batch-size 2 cannot be divided into 3 micro-batches"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
        ({"prompt": "x" * 100}, "the prompt 'x+, best quality' has .* tokens"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        stage.train(replace(config, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "config.json").exists()


def test_models_that_nothing_is_trained_for_are_refused(config, tmp_path, homes):
    flux = tiny_diffusion.flux(tmp_path / "flux")
    with pytest.raises(InputError, match=r"flux is a FLUX\.1, and ControlNets are trained for Stable Diff"):
        stage.train(replace(config, diffusion=DiffusionConfig(model=str(flux))), tmp_path / "run")
    waiting = replace(config.diffusion, offload="parts")
    with pytest.raises(InputError, match=r"--diffusion\.offload is for transfers"):
        stage.train(replace(config, diffusion=waiting), tmp_path / "run")
    union = tiny_diffusion.stable_diffusion_xl(tmp_path / "union", tiny_diffusion.union)
    named = DiffusionConfig(model=str(union), controlnet=str(union / "controlnet"), device="cpu")
    with pytest.raises(InputError, match="a ControlNet-Union takes several kinds of pictures"):
        stage.train(replace(config, diffusion=named), tmp_path / "run")
    other = replace(config.diffusion, controlnet=str(homes["Stable Diffusion XL"] / "controlnet"))
    with pytest.raises(InputError, match="the ControlNet reads text of width 128 and the UNet"):
        stage.train(replace(config, diffusion=other), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_data_that_does_not_do_is_refused(config, data, tmp_path):
    trees.folder(tmp_path / "field", size=SIZE)
    own = f"folder:{tmp_path}/field:train"
    with pytest.raises(InputError, match="has classes of its own: say what its images show with --prompt"):
        stage.train(replace(config, source=own), tmp_path / "run")
    with pytest.raises(InputError, match=r"has the classes of 'field' and .* those of 'cityscapes'"):
        stage.train(replace(config, validation=own), tmp_path / "run")
    trees.cityscapes(tmp_path / "bare", IDS, SIZE, labelled=False)
    with pytest.raises(InputError, match="label"):
        stage.train(replace(config, source=f"cityscapes:{tmp_path}/bare:train"), tmp_path / "run")
    with pytest.raises(InputError, match="lies in the input"):
        stage.train(config, data / "run")


def test_a_run_does_not_go_on_with_other_frames_or_weights(config, data, homes, tmp_path):
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    home = Path(shutil.copytree(homes["prior"], tmp_path / "model"))
    config = replace(
        config,
        source=f"cityscapes:{copy}:train",
        diffusion=DiffusionConfig(model=str(home), device="cpu"),
        steps=2,
    )
    out = stage.train(config, tmp_path / "run")
    told = json.loads((home / "unet" / "config.json").read_text())
    other = tiny_diffusion.unet(8, addition_embed_type="text", addition_embed_type_num_heads=4)
    other.half().save_pretrained(home / "unet")
    assert json.loads((home / "unet" / "config.json").read_text()).keys() == told.keys()
    with pytest.raises(InputError, match="was begun with other weights of"):
        stage.train(replace(config, steps=3), out)
    shutil.copytree(homes["prior"] / "unet", home / "unet", dirs_exist_ok=True)
    next((copy / "leftImg8bit").rglob("*.png")).unlink()
    with pytest.raises(InputError, match="began with other frames than are there now"):
        stage.train(replace(config, steps=3), out)
    with pytest.raises(InputError, match="holds a run of other options"):
        stage.train(replace(config, lr=1e-3), out)


def test_adapters_need_peft_and_attention(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(control, "ATTENTION", ["no_such_layer"])
        with pytest.raises(InputError, match="--lora adapts attention layers, and the ControlNet has none"):
            stage.train(replace(config, lora=2), tmp_path / "run")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"--lora needs peft: pip install 'segshift\[adapters\]'"):
        stage.train(replace(config, lora=2), tmp_path / "run")


def test_out_of_memory_and_loss_that_is_not_finite_get_one_sentence(config, tmp_path, monkeypatch):
    def full(self, player, prepared, step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(control.ControlNetTraining, "losses", full)
        with pytest.raises(InputError, match=r"out of GPU memory in .*smaller --crop"):
            stage.train(config, tmp_path / "run")
    with pytest.raises(InputError, match=r"loss 'noise' is (nan|inf) in step|not finite after step"):
        stage.train(replace(config, lr=1000.0, steps=8, precision="bf16"), tmp_path / "run")


def test_the_command_says_where_the_ControlNet_is(config, homes, data, tmp_path, capsys):
    told = ["control", "train", str(tmp_path / "run"), "--source", f"cityscapes:{data}:train"]
    told += ["--model", str(homes["prior"]), "--diffusion.device", "cpu", "--workers", "0"]
    assert main([*told, "--steps", "1", "--batch-size", "1", "--lora", "2"]) == 0
    assert f"{tmp_path}/run/controlnet" in capsys.readouterr().out.replace("\n", "")
    assert main([*told, "--steps", "1", "--lr", "0"]) == 2
    assert "--lr is 0.0: expected more than 0" in capsys.readouterr().err

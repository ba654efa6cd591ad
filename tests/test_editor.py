# ruff: noqa: F811 (fixtures are imported by name)
"""Editing models as generators: pipelines of diffusers that take an image and an instruction."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_diffusion
import torch
import trees
from diffusers import (
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from transferring import IDS, SIZE, manifest, pictures, source  # noqa: F401
from transformers import AutoTokenizer, CLIPTextModel

from segshift import generators, runs
from segshift.config import DiffusionConfig, EstimateConfig, GateConfig, TransferConfig
from segshift.generators import editor
from segshift.runs import InputError
from segshift.stages import estimate
from segshift.stages import transfer as stage


def saved(folder: Path, kind, channels: int = 4) -> Path:
    torch.manual_seed(3)
    folder.mkdir(parents=True)
    tiny_diffusion.text(folder)
    net = tiny_diffusion.unet()
    if channels != 4:  # the image stands beside the noise
        net = type(net).from_config({**net.config, "in_channels": channels})
    pipeline = kind(
        vae=tiny_diffusion.vae(),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        unet=net,
        scheduler=PNDMScheduler(**tiny_diffusion.SCHEDULE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """An InstructPix2Pix of random weights."""
    return saved(tmp_path_factory.mktemp("models") / "m", StableDiffusionInstructPix2PixPipeline, 8)


@pytest.fixture
def config(source, home) -> TransferConfig:
    return TransferConfig(
        source=f"cityscapes:{source}:train",
        generator="editor",
        ungated=True,
        steps=2,
        short_side=64,
        batch_size=2,
        diffusion=DiffusionConfig(model=str(home), device="cpu"),
    )


def test_an_editor_writes_a_tree_and_resumes(config, tmp_path, monkeypatch):
    whole = stage.transfer(config, tmp_path / "whole")
    [first, *_] = manifest(whole)
    assert first["prompt"] == "make it night, keep every object where it is"
    assert first["weights"].keys() == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert first["settings"]["num_inference_steps"] == 2
    one, calls = editor.Editor._one, []

    def killed(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return one(*given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(editor.Editor, "_one", killed)
        stage.transfer(replace(config, batch_size=1), tmp_path / "out")
    assert 0 < len(pictures(tmp_path / "out")) < len(pictures(whole))
    out = stage.transfer(config, tmp_path / "out")  # of another batch size
    assert pictures(out) == pictures(whole)


def test_instructions_seeds_and_images_act(config):
    images = [trees.picture(id, SIZE) for id in IDS[:2]]

    def drawn(**more):
        [made] = stage.transfer_images(replace(config, **more), images, None).values()
        return made

    plain = drawn()
    assert not np.array_equal(*plain)
    for more in ({"to": ("make it autumn",)}, {"seed": 1}, {"steps": 3}):
        assert not np.array_equal(plain[0], drawn(**more)[0])


def test_a_text_to_image_model_edits_by_its_image_to_image_pipeline(config, tmp_path):
    folder = saved(tmp_path / "sd", StableDiffusionPipeline)
    told = replace(config, diffusion=replace(config.diffusion, model=str(folder)))
    made = generators.load(told)
    assert isinstance(made.pipeline, StableDiffusionImg2ImgPipeline)
    image = trees.picture("a", SIZE)
    weak, strong = (
        stage.transfer_images(replace(told, steps=4, strength=s), [image], None, model=made)["night"][0]
        for s in (0.5, 1.0)
    )
    assert not np.array_equal(weak, strong)


class Pipeline:
    """Returns what a test wants."""

    device = torch.device("cpu")

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, image, prompt, num_inference_steps=20):
        return self.answer(image)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda image: SimpleNamespace(images=[image.resize((32, 32))]),
            "returned 32x32 of .*: expected 64x64",
        ),
        (lambda image: SimpleNamespace(images=[]), "returned no picture of"),
        (lambda image: SimpleNamespace(images=None), "returned no picture of"),
        (lambda image: None, "returned no picture of"),
        (
            lambda image: SimpleNamespace(images=[image], nsfw_content_detected=[True]),
            "returned no picture of",
        ),
        (lambda image: [][0], None),  # a defect keeps its traceback
        (lambda image: torch.zeros(2) @ torch.zeros(3), r"fails on .* \(inconsistent tensor size"),
    ],
)
def test_what_an_editor_fails_to_return_fails_that_frame(config, tmp_path, monkeypatch, answer, message):
    data = stage.frames.load(config.source)
    bad = stage.frames.read_image(data.frames[2].image)

    def sometimes(image):
        return answer(image) if np.array_equal(image, bad) else SimpleNamespace(images=[image])

    monkeypatch.setattr(editor, "load", lambda told: editor.Editor("e", Pipeline(sometimes), {}, told))
    if message is None:
        with pytest.raises(IndexError):
            stage.transfer(config, tmp_path / "out")
        return
    out = stage.transfer(config, tmp_path / "out")
    [failed] = runs.failures(out)
    assert failed["id"] == data.frames[2].id and len(manifest(out)) == len(IDS) - 1
    with pytest.raises(InputError, match=message):
        raise InputError(failed["error"])


def test_an_editor_is_judged_unless_told_otherwise(config, tmp_path):
    with pytest.raises(InputError, match=r"a gate judges its pictures: add --gate\.reference .* --ungated"):
        replace(config, ungated=False)
    replace(config, ungated=False, gate=GateConfig(reference=str(tmp_path)))
    with pytest.raises(InputError, match=r"--control is for a diffusion model, and --generator editor is"):
        replace(config, control=False)
    judged = EstimateConfig(run=str(tmp_path), source=config.source, generator="editor")
    assert estimate._transfer_config(judged).ungated


def test_what_is_no_editor_is_refused(config, home, tmp_path):
    def refused(message, folder):
        with pytest.raises(InputError, match=message):
            generators.load(replace(config, diffusion=DiffusionConfig(model=str(folder), device="cpu")))

    refused("--generator editor without a model: name one with --generator.model", "town")
    refused(r"no file .*model_index\.json", tmp_path)
    folder = Path(shutil.copytree(home, tmp_path / "m"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    (folder / "unet" / "unet.py").write_text("raise SystemExit")
    refused(r"unet/unet\.py is code that comes with a model", folder)
    (folder / "unet" / "unet.py").unlink()
    weights.rename(weights.with_suffix(".bin"))
    refused(r"cannot load .* as an editor .*weights in safetensors", folder)
    weights.with_suffix(".bin").rename(weights)
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "mine.Mine"}}))
    refused(r"asks for code of its own", folder)
    pipeline = Pipeline(None)
    with pytest.raises(InputError, match="e knows no guidance_scale: leave the option out"):
        editor.Editor("e", pipeline, {}, replace(config, guidance=3.0))
    pipeline.__class__ = type("Audio", (Pipeline,), {"__call__": lambda self, prompt: None})
    with pytest.raises(InputError, match="e is a Audio, which is not called with an image and a prompt"):
        editor.Editor("e", pipeline, {}, config)


def test_pictures_of_one_channel_become_rgb(config, monkeypatch):
    grey = Pipeline(lambda image: SimpleNamespace(images=[Image.new("L", image.size, 7)]))
    monkeypatch.setattr(editor, "load", lambda told: editor.Editor("e", grey, {}, told))
    [made] = stage.transfer_images(config, [trees.picture("a", SIZE)], None)["night"]
    assert made.shape == (64, 64, 3) and (made == 7).all()

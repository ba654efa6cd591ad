"""Loading a diffusion model: local folders in the hub's layout, downloads, and what may be wrong with
them."""

import hashlib
import json
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny_diffusion
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from segshift.config import DiffusionConfig
from segshift.generators import base, loading, stable_diffusion
from segshift.runs import InputError

torch.set_num_threads(1)  # these networks are too small to share
HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return tiny_diffusion.stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Path:
    return tiny_diffusion.prior(tmp_path_factory.mktemp("models") / "prior")


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "sd"))


def test_a_folder_in_the_hubs_layout_is_loaded_without_the_network(made, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a local folder asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = stable_diffusion.load_model(DiffusionConfig(model=str(made), device="cpu"))
    assert model.defaults == base.Defaults(guidance=9, steps=20, eta=1, short_side=512, palette="ade20k")
    assert model.scheduler.config.steps_offset == 1 and model.device.type == "cpu"
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = made / part / f"{stem}.safetensors"
        assert model.hashes[part] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert set(model.hashes) == {"vae", "unet", "controlnet", "text_encoder"}
    assert not any(weight.requires_grad for weight in model.unet.parameters()) and not model.unet.training


def test_the_text_encoder_gets_the_hubs_weights_under_their_older_names(made):
    model = stable_diffusion.load_model(DiffusionConfig(model=str(made), device="cpu"))
    plain = CLIPTextModel(CLIPTextConfig.from_pretrained(made / "text_encoder")).eval()
    weights = load_file(made / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in weights)
    plain.load_state_dict({key.removeprefix("text_model."): value for key, value in weights.items()})
    tokens = model.tokenizer(
        "fog", padding="max_length", max_length=tiny_diffusion.TOKENS, return_tensors="pt"
    )
    text = model.embed(["fog"])["text"]
    assert text.shape == (1, tiny_diffusion.TOKENS, tiny_diffusion.WIDTH)
    assert torch.allclose(text, plain(tokens.input_ids).last_hidden_state, atol=1e-6)
    assert not torch.allclose(text, model.embed(["night"])["text"])


def test_half_precision_takes_the_fp16_files_where_there_are_some(made, folder):
    half = stable_diffusion.load_model(DiffusionConfig(model=str(made), dtype="float16", device="cpu"))
    assert half.dtype == torch.float16 == half.text_encoder.dtype
    file = made / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    assert half.hashes["unet"] == hashlib.sha256(file.read_bytes()).hexdigest()
    for part in ("unet", "vae", "controlnet"):
        (folder / part / "diffusion_pytorch_model.safetensors").unlink()
    assert (
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu")).dtype == torch.float32
    )


def test_a_prior_of_another_build_brings_its_own_defaults(prior):
    model = stable_diffusion.load_model(DiffusionConfig(model=str(prior), dtype="bfloat16", device="cpu"))
    assert model.defaults == base.Defaults(2.0, 4, 1.0, 64, "cityscapes")
    assert (model.unet.config.in_channels, model.scheduler.config.prediction_type) == (8, "v_prediction")
    assert model.unet.config.addition_embed_type == "text" == model.controlnet.config.addition_embed_type


def test_town_is_the_folder_inside_the_package(prior, tmp_path, monkeypatch):
    monkeypatch.setattr(loading.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(InputError, match=r"no embedded prior at .*prior"):
        stable_diffusion.load_model(DiffusionConfig())
    shutil.copytree(prior, tmp_path / "segshift" / "town" / "prior")
    assert stable_diffusion.load_model(DiffusionConfig(device="cpu")).name == "town"


def test_pickled_weights_are_refused(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(InputError, match=r"unet holds .*model\.bin.*safetensors only"):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))


def test_weights_that_lack_some_are_refused_rather_than_filled_with_random_ones(folder):
    file = folder / "controlnet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights .*conv_in\.weight"):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_broken_weight_file_is_named(folder, part):
    file = next((folder / part).glob("*model.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"cannot read .*{file.name}"):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))


def test_a_folder_without_tokenizer_is_named(folder):
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(InputError, match=r"cannot read .*tokenizer"):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))


def test_a_controlnet_is_taken_from_elsewhere_or_left_out(folder, made):
    shutil.rmtree(folder / "controlnet")
    assert (
        stable_diffusion.load_model(
            DiffusionConfig(model=str(folder), device="cpu"), control=False
        ).controlnet
        is None
    )
    with pytest.raises(
        InputError, match=r"no folder .*controlnet: name a ControlNet with --diffusion\.controlnet"
    ):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    named = DiffusionConfig(model=str(folder), controlnet=str(made / "controlnet"), device="cpu")
    assert (
        stable_diffusion.load_model(named).hashes
        == stable_diffusion.load_model(DiffusionConfig(model=str(made), device="cpu")).hashes
    )


def set_config(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_parts_of_different_models_are_refused(made, prior, folder, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"UNet of .* takes 4 channels and its VAE makes 8"):
        shutil.rmtree(folder / "vae")
        shutil.copytree(prior / "vae", folder / "vae")
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    monkeypatch.setattr(tiny_diffusion, "WIDTH", 32)
    tiny_diffusion.controlnet(tiny_diffusion.unet()).save_pretrained(tmp_path / "narrow")
    with pytest.raises(InputError, match=r"ControlNet reads text of width 32 and the UNet of .* 64"):
        stable_diffusion.load_model(
            DiffusionConfig(model=str(made), controlnet=str(tmp_path / "narrow"), device="cpu")
        )


def test_settings_that_cannot_be_followed_are_refused(folder):
    set_config(folder / "controlnet" / "config.json", controlnet_conditioning_channel_order="bgr")
    with pytest.raises(InputError, match="BGR"):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"))
    set_config(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(InputError, match="predicts 'sample': expected epsilon or v_prediction"):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"), control=False)
    (folder / "segshift.json").write_text('{"guidence": 3}')
    set_config(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(InputError, match=r"segshift\.json holds .*guidence.*: expected some of .*guidance"):
        stable_diffusion.load_model(DiffusionConfig(model=str(folder), device="cpu"), control=False)


def test_a_hub_name_is_fetched_at_its_pinned_revision_without_the_safety_checker(made, folder, monkeypatch):
    asked = []
    shutil.rmtree(folder / "controlnet")

    def fetch(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(made / "controlnet" if name == stable_diffusion.CARD.controlnets[0] else folder)

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    monkeypatch.setattr(loading.hub, "access", nullcontext)
    model = stable_diffusion.load_model(DiffusionConfig(model=HUB, dtype="float16", device="cpu"))
    assert model.dtype == torch.float16 and model.controlnet is not None
    names = [name for name, _, _ in asked]
    assert names == [
        HUB,
        HUB,
        stable_diffusion.CARD.controlnets[0],
    ]  # a text encoder without fp16 file: the others are asked for
    assert asked[0][1] == loading.REVISIONS[HUB] == asked[1][1]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked[0][2]
    assert "text_encoder/model.safetensors" in asked[1][2]
    assert asked[2][2] == [
        "config.json",
        "segshift.json",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16-*-of-*.safetensors",
    ]
    assert not any(
        "safety" in pattern or "bin" in pattern for _, _, patterns in asked for pattern in patterns
    )
    stable_diffusion.load_model(DiffusionConfig(model=HUB, revision="other", device="cpu"), control=False)
    assert asked[-1][1] == "other"


class ProxyError(HTTPError):
    """As a wrong proxy ends a download: what the hub's client raises is no OSError."""


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(unreachable):
    with pytest.raises(InputError, match=r"http://127.0.0.1:9 does not answer: .*--diffusion.model /path"):
        stable_diffusion.load_model(DiffusionConfig(model=HUB, device="cpu"))


def test_a_hub_that_does_not_answer_leaves_the_cache(unreachable, folder, tmp_path):
    home = tmp_path / "cache" / f"models--{HUB.replace('/', '--')}" / "snapshots" / loading.REVISIONS[HUB]
    shutil.copytree(folder, home)
    assert stable_diffusion.load_model(DiffusionConfig(model=HUB, device="cpu")).name == HUB
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("error", [LocalEntryNotFoundError, ProxyError])
def test_a_download_that_fails_says_which_files_where_from_and_the_cure(monkeypatch, error):
    def offline(*args, **kwargs):
        raise error("no connection")

    monkeypatch.setattr(loading, "snapshot_download", offline)
    monkeypatch.setattr(loading.hub, "access", nullcontext)
    with pytest.raises(InputError) as caught:
        stable_diffusion.load_model(DiffusionConfig(model=HUB))
    for told in (
        "unet/diffusion_pytorch_model.safetensors",
        HUB,
        "Hugging Face hub",
        "--diffusion.model /path",
        "451f4fe",
    ):
        assert told in str(caught.value)


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "model", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_hub_name(name):
    with pytest.raises(InputError, match=r"no folder .*--diffusion\.model"):
        stable_diffusion.load_model(DiffusionConfig(model=name))


def test_a_prompt_longer_than_the_text_encoder_reads_is_refused(made, caplog):
    model = stable_diffusion.load_model(DiffusionConfig(model=str(made), device="cpu"))
    with pytest.raises(InputError, match=r"has 38 tokens, and the text encoder of .* reads 32: shorten it"):
        model.embed(["abcdef" * 6])["text"]
    assert not caplog.records  # of transformers, about the same


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(made):
    with pytest.raises(InputError, match=r"torch finds no device 'cuda' here: give --device auto or"):
        stable_diffusion.load_model(DiffusionConfig(model=str(made), device="cuda"))

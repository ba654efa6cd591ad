"""The embedded prior: captions, tokenizer, latents, training that resumes, and the folder it ships in."""

import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from segshift import execution, outputs
from segshift.config import DiffusionConfig, PriorConfig
from segshift.generators import stable_diffusion
from segshift.runs import InputError
from segshift.town import prior, prior_data

TINY = PriorConfig(
    scenes=4, height=64, width=96, vae_steps=2, vae_batch=1, steps=3, batch=2, checkpoint_every=1, workers=1
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a finished training."""
    out = tmp_path_factory.mktemp("prior") / "whole"
    prior.train(TINY, out)
    return out


def test_words_of_the_captions_are_single_tokens_and_others_are_spelled():
    tokenizer = prior.build_tokenizer()
    assert [w for w in prior_data.WORDS if len(tokenizer(w).input_ids) != 3] == []
    spelled = tokenizer.convert_ids_to_tokens(tokenizer("driving through a Xylophone").input_ids)
    assert "".join(spelled[4:-1]) == "xylophone</w>"


def test_captions_name_their_conditions():
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = prior_data.caption(("night", "snow"), False, rng)
        assert any(p in text for p in prior_data.PHRASES["night"]) and any(
            p in text for p in prior_data.PHRASES["snow"]
        )
    assert all(prior_data.BAD in prior_data.caption(("fog",), True, rng) for _ in range(20))


def test_folding_statistics_whitens_latents_and_changes_no_picture():
    torch.manual_seed(0)
    vae = prior.build_vae().eval()
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        picture = vae.decode(before.mode()).sample
        prior.fold_statistics(vae, before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3)))
        after = vae.encode(x).latent_dist
        torch.testing.assert_close(vae.decode(after.mode()).sample, picture, atol=1e-4, rtol=1e-4)
        # the posterior's spread is measured in the new units too
        torch.testing.assert_close(
            after.std / after.mean.std((0, 2, 3), keepdim=True),
            before.std / before.mean.std((0, 2, 3), keepdim=True),
            atol=1e-4,
            rtol=1e-3,
        )
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(8), atol=1e-3, rtol=0)


def test_interrupted_training_ends_with_the_same_weights(whole: Path, tmp_path: Path, monkeypatch):
    calls, noise = [], prior.offset_noise

    def killed(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return noise(*args)

    monkeypatch.setattr(prior, "offset_noise", killed)
    with pytest.raises(KeyboardInterrupt):
        prior.train(TINY, tmp_path / "killed")
    assert not (tmp_path / "killed" / "model").exists()
    prior.train(TINY, tmp_path / "killed")
    for part in ("vae", "unet", "controlnet"):
        files = [
            run / "model" / part / "diffusion_pytorch_model.safetensors"
            for run in (whole, tmp_path / "killed")
        ]
        assert files[0].read_bytes() == files[1].read_bytes(), part
    loaded = stable_diffusion.load_model(DiffusionConfig(model=str(whole / "model"), device="cpu"))
    assert loaded.defaults.guidance == prior.DEFAULTS["guidance"]
    assert loaded.embed(["driving at night, best quality"])["text"].shape == (1, prior.MAX_TOKENS, 64)


def test_attention_and_group_norm_are_computed_in_float32_under_autocast():
    """And the network's other parts are not told apart: they get what autocast gives them."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 4, generator=rng).bfloat16() for _ in range(3))
    norm, layer = torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    with torch.autocast("cpu", torch.bfloat16), prior.Float32():
        told = attention(q, k, v), norm(q[0].transpose(1, 2)[..., :2, :2].reshape(1, 4, -1)), layer(q)
    wide = attention(q.float(), k.float(), v.float()).bfloat16()
    assert torch.equal(told[0], wide) and not torch.equal(told[0], attention(q, k, v))
    assert [t.dtype for t in told] == [torch.bfloat16] * 3


def test_the_loss_counts_rare_classes_more_and_keeps_its_size():
    labels = np.zeros((1, 8, 8), np.uint8)
    labels[0, 0, 0] = 17
    weights = prior.class_weights(labels)
    assert weights[17] > 4 * weights[0]
    assert float(weights[labels.astype(int)].mean()) == pytest.approx(1)


def test_asked_to_end_it_saves_the_step_in_hand(tmp_path: Path, monkeypatch):
    """And goes on from it, which the test before shows."""
    loss, calls = prior.vae_loss, []

    def asked(*arguments):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(*arguments)

    monkeypatch.setattr(prior, "vae_loss", asked)
    with pytest.raises(SystemExit) as told:
        prior.train(replace(TINY, scenes=1, checkpoint_every=100), tmp_path / "out")
    state = torch.load(tmp_path / "out" / "vae.state.pt", weights_only=True)
    assert told.value.code == execution.STOPPED and state["step"] == len(calls) == 1


def test_a_training_that_another_process_does_is_left_to_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(outputs, "_hold", lambda *a: False)
    monkeypatch.setattr(outputs, "PATIENCE", 0.0)
    with pytest.raises(InputError, match="another process works in"):
        prior.train(TINY, tmp_path / "out")


@pytest.mark.parametrize("name", ["vae.state.pt", "prior.state.pt", "latents.pt"])
def test_a_broken_file_of_a_training_gets_one_sentence(name: str, whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"text")
    with pytest.raises(InputError, match=rf"{tmp_path}/out/{name} .*delete it"):
        prior.train(TINY, tmp_path / "out")


def test_every_broken_state_is_refused_and_a_whole_one_is_taken(tmp_path: Path):
    def parts():
        module = torch.nn.Linear(2, 2)
        return module, AveragedModel(module), torch.optim.AdamW(module.parameters())

    state = dict(zip(("module", "average", "optimizer"), (p.state_dict() for p in parts()), strict=True))
    state["step"] = 3
    file = tmp_path / "vae.state.pt"
    others = [
        7,
        [state],
        {},
        {"step": 3},
        *({**state, key: value} for key in state for value in (None, {}, -1)),
    ]
    torch.save(state, file)
    content = file.read_bytes()
    assert prior._resume(file, *parts()) == 3
    for part in (b"", b"text", content[: len(content) // 2], content[:-1], *others):
        torch.save(part, file)
        if isinstance(part, bytes):
            file.write_bytes(part)
        with pytest.raises(InputError, match=f"{file} holds no state of this training"):
            prior._resume(file, *parts())


def test_a_size_that_the_networks_cannot_halve_is_refused(tmp_path: Path):
    for change in ({"height": 70}, {"height": 48}, {"width": 64}):
        with pytest.raises(InputError, match="a multiple of 16, 64 or more, and one of 32, 96 or more"):
            prior.train(replace(TINY, **change), tmp_path)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path):
    network = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="the loss of vae is nan in step 1: take a lower --lr"):
        prior._steps("vae", network, 1.0, 2, TINY, tmp_path, lambda step, _: network.weight.sum() * math.nan)


def test_training_goes_on_from_a_model_folder(whole: Path, tmp_path: Path):
    first = whole / "model"
    still = replace(TINY, start=str(first), vae_steps=0, steps=0)
    second = prior.train(still, tmp_path / "second")
    for part in ("unet", "controlnet", "text_encoder"):
        name = next((first / part).glob("*.safetensors")).name
        assert (first / part / name).read_bytes() == (second / part / name).read_bytes(), part
    with pytest.raises(InputError, match="no weights at"):
        prior.train(replace(TINY, start=str(tmp_path / "nowhere")), tmp_path / "third")
    assert not (tmp_path / "third").exists()  # found before the scenes were drawn


def test_arrays_of_the_prior_that_are_broken_get_one_sentence(tmp_path):
    config = PriorConfig(scenes=2, height=32, width=64, workers=1)
    drawn = prior_data.draw_data(config, tmp_path)
    assert [array.shape for array in drawn] == [(2, 32, 64, 3), (2, 32, 64), (2,)]
    file = tmp_path / "labels.npy"
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"no array"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read {file} .*: delete it and start again"):
            prior_data.draw_data(config, tmp_path)
    np.save(file, np.zeros((2, 32, 32), np.uint8))
    with pytest.raises(
        InputError, match=r"labels.npy holds uint8 of shape \(2, 32, 32\), expected uint8 of sh"
    ):
        prior_data.draw_data(config, tmp_path)

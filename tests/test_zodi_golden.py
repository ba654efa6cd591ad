"""The recorded runs of the published code (shared/golden/zodi), number by number."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from segshift.generators import schedule
from segshift.generators.base import resize
from segshift.generators.stable_diffusion import StableDiffusion
from segshift.methods.zodi import transfer as zodi

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "zodi"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="no golden vectors beside the checkout (shared/golden/zodi)"
)
torch.set_num_threads(1)  # these networks are too small to share
CASES = json.loads((GOLDEN / "cases.json").read_text()) if GOLDEN.is_dir() else {"night": {}, "fog": {}}


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return StableDiffusion(
        "golden",
        vae=AutoencoderKL.from_pretrained(GOLDEN / "vae").eval(),
        unet=UNet2DConditionModel.from_pretrained(GOLDEN / "unet").eval(),
        controlnet=ControlNetModel.from_pretrained(GOLDEN / "controlnet").eval(),
        scheduler=DDIMScheduler.from_pretrained(GOLDEN / "scheduler"),
    )


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request) -> tuple[dict, dict[str, torch.Tensor], zodi.Sampling]:
    told = CASES[request.param]
    sampling = zodi.Sampling(
        told["noise_strength"], told["steps"], told["guidance_scale"], told["eta"], told["control_strength"]
    )
    return told, load_file(GOLDEN / f"{request.param}.safetensors"), sampling


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def noises(golden: dict[str, torch.Tensor]) -> zodi.Noise:
    return lambda step: golden["inversion_noise"] if step == 0 else golden["step_noises"][step - 1]


def test_image_and_layout_take_the_recorded_working_size(case):
    told, golden, _ = case
    size = zodi.working_size(*golden["image"].shape[:2], told["short_side"])
    assert np.array_equal(resize(golden["image"].numpy(), size), golden["image_resized"].numpy())
    layout = torch.from_numpy(resize(golden["layout"].numpy(), size)).permute(2, 0, 1)[None] / 255
    assert torch.equal(layout, golden["control"])


def test_the_walk_visits_the_recorded_time_steps(model, case):
    told, golden, sampling = case
    walk = zodi.walk(model, golden["z0"], sampling)
    assert [point.t for point in reversed(walk[:-1])] == golden["ddim_timesteps"].tolist()
    assert model.point(sampling.strength, (8, 8)).t == told["t_enc"]
    assert sampling.walked == told["decode_steps"]


@torch.inference_mode()
def test_every_latent_is_the_recorded_one(model, case):
    _, golden, sampling = case
    text, negative = {"text": golden["prompt_embeds"]}, {"text": golden["negative_prompt_embeds"]}
    hint = model.hint(golden["control"])
    z0 = model.encode(golden["image_resized"].permute(2, 0, 1)[None] / 255)
    assert relative(z0, golden["z0"]) < 1e-5
    start = model.point(sampling.strength, (8, 8))
    z_noisy = schedule.noised(z0, golden["inversion_noise"], start)
    assert relative(z_noisy, golden["z_noisy"]) < 1e-5
    eps, _ = model.denoise(z_noisy, start, text, hint, sampling.control_strength)
    assert relative(eps, golden["eps"]) < 1e-5
    z_t = zodi.invert(model, z0, text, hint, sampling, noises(golden))
    assert relative(z_t, golden["z_t"]) < 1e-5
    latents = zodi.denoise(model, z_t, text, negative, hint, sampling, noises(golden))
    assert relative(latents, golden["latents"]) < 1e-5
    decoded = model.decode(latents)[0].permute(1, 2, 0)
    assert (decoded.int() - golden["decoded"].int()).abs().max() <= 1

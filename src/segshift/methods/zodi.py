"""ZoDi: zero-shot domain adaptation with diffusion-based image transfer.

Azuma, Matsui, Maki, "ZoDi: Zero-Shot Domain Adaptation with Diffusion-Based Image Transfer", arXiv 2403.13652
(ECCV 2024 workshops). Published code: azuma164/ZoDi (MIT). The order below is the paper's.

| symbol | meaning |
|---|---|
| x, y | source image and its label map, drawn in colours: the layout |
| x' | transferred image: the look of the target domain, the layout of x |
| E, D | VAE encoder and decoder; z0 = scale E(x), scale = 0.18215 in Stable Diffusion |
| abar_t | cumulative alpha of the noise schedule at time step t in 0 .. T-1, T = 1000 |
| eps(z, t, c, y) | noise predicted by the UNet under the prompt c, with the ControlNet on y |
| n | Gaussian noise |
| s, t, k | noise strength in (0, 1], t = int(s T), k = int(s N) |
| N, eta, w | DDIM steps over the whole schedule, DDIM's eta in [0, 1], guidance scale |

Shapes: B images, H x W pixels at the working size, C latent channels at h x w (Stable Diffusion: 4, H/8 x W/8),
L tokens of width M, hint: the ControlNet's embedding of the layout [B,C0,h,w]. Latents are float32 whatever the
networks compute in.

Where this differs from the paper's text or the published code:
- s = 1 asks for t = T, which does not exist (the published code stops there): t = T - 1 is taken.
- z0 is the mode of E's posterior, as in the recorded runs; the code as published draws a sample of it.
- The two passes of classifier-free guidance run as one batch of 2B, and only the conditional one when w = 1.
- The ControlNet's embedding of the layout is computed once per image, not at every step.
- A v-prediction is turned into eps and x0 without dividing by sqrt(abar_t), so any Stable Diffusion 2 works.
- Void pixels are black in the layout. Only the reference mode paints those of Cityscapes' label files in the colours of
  their own ids (a tunnel, a trailer), which is what the published layouts show.
- The published code asks for a bilinear resize of the layout, but only after the image's rule (area, Lanczos) has made
  it that size already; so area and Lanczos is what happens, and what the reference mode does.
- The walk starts at the grid point of step k (851 for s = 0.9, N = 20) although z_t holds the noise of t = 900. This is
  kept, in both modes: it is how the published results were made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from segshift.diffusion import Diffusion
from segshift.labels import ADE20K_COLOURS, CITYSCAPES, CITYSCAPES_VOID_COLOURS, IGNORE, Colour, LabelSpace
from segshift.runs import InputError

# ----------------------------------------------------------------------- 3.1 zero-shot image transfer

DOMAINS: dict[str, tuple[str, float]] = {
    "night": ("driving at night", 0.90),
    "snow": ("driving in snow", 0.65),
    "rain": ("driving under rain", 0.65),
    "fog": ("driving in fog", 0.60),
    "game": ("driving in a game", 0.60),
}
"""Prompt and noise strength of the published target domains."""

SENTENCE_STRENGTH = 0.75
"""Noise strength of a target domain that the user describes in a sentence (ours: between night and weather)."""

QUALITY = ", best quality"
"""Follows every prompt."""

NEGATIVE_PROMPT = "lower quality, worst quality"

PALETTES: dict[str, dict[str, Colour]] = {
    "cityscapes": dict(zip(CITYSCAPES.names, CITYSCAPES.colours, strict=True)),
    "ade20k": ADE20K_COLOURS,
}
"""Colours of the layout by class name, for ControlNets trained on one or the other."""

_VOID = np.array([CITYSCAPES_VOID_COLOURS[i] for i in range(len(CITYSCAPES_VOID_COLOURS))], np.uint8)

Noise = Callable[[int], Tensor]
"""Noise [B,C,h,w]: 0 is the inversion's, i = 1 .. k that of the walk's i-th step; asked for in this order."""


@dataclass(frozen=True)
class Sampling:
    """How latents are noised and denoised."""

    strength: float
    """s in (0, 1], with int(s N) >= 1."""
    steps: int = 20
    """N, 1 to T - 1."""
    guidance: float = 9.0
    """w; 1 switches guidance off."""
    eta: float = 1.0
    """0 is DDIM, 1 adds as much noise as DDPM."""
    control_strength: float = 1.0
    """Factor on the ControlNet's residuals."""
    inversion: Literal["stochastic", "none", "ddim"] = "stochastic"
    """Start of the walk; `none` and `ddim` are the paper's ablations."""

    @property
    def walked(self) -> int:
        """k, the number of grid points that are walked."""
        return int(self.strength * self.steps)


def working_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with the short side at `short_side` pixels, both rounded to multiples of 64."""
    scale = short_side / min(height, width)
    return max(64, round(height * scale / 64) * 64), max(64, round(width * scale / 64) * 64)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 to `size`: Lanczos where the short side grows, area where it shrinks."""
    grows = min(size) > min(image.shape[:2])
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA)


def colour(name: str, palette: str) -> Colour | None:
    """The palette's colour of a class; None where it has none."""
    return PALETTES[palette].get(name.lower().replace("_", " "))


def layout(
    label: np.ndarray,
    space: LabelSpace,
    size: tuple[int, int],
    palette: str,
    *,
    reference: bool = False,
    label_ids: np.ndarray | None = None,
) -> np.ndarray:
    """Train ids [H, W] uint8 as the picture [h, w, 3] uint8 that the ControlNet sees.

    Nearest neighbour by default, so no colour appears that stands for no class; `reference` resizes as published.
    A class that the palette does not know is black, like void. label_ids: Cityscapes' `labelIds` [H, W], 0 to 34, that
    the train ids were made from; with them void pixels have Cityscapes' colours.
    """
    table = np.zeros((256, 3), np.uint8)
    for train_id, name in enumerate(space.names):
        table[train_id] = colour(name, palette) or (0, 0, 0)
    if reference:
        picture = table[label]
        if label_ids is not None:
            void = label == IGNORE
            picture[void] = _VOID[label_ids[void]]
        return resize(picture, size)
    return table[cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)]


def noise(seed: int, frame_id: str, domain: str, step: int, shape: tuple[int, ...]) -> Tensor:
    """Gaussian noise of one frame and step: a function of these arguments alone, on every machine and device."""
    key = hashlib.sha256(repr((seed, frame_id, domain, step)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big"))
    return torch.randn(shape, generator=generator)


def published_noise(seed: int, shape: tuple[int, ...]) -> Noise:
    """Noise as published: every image starts at the same seed and draws its noises one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(shape, generator=generator)


@torch.inference_mode()
def embed_layout(model: Diffusion, control: Tensor) -> Tensor:
    """The layout as the ControlNet takes it in: [B,3,H,W] in [0, 1] to the hint [B,C0,h,w]."""
    return model.controlnet.controlnet_cond_embedding(control.to(model.dtype))


@torch.inference_mode()
def encode(model: Diffusion, images: Tensor) -> Tensor:
    """z0 = scale E(x): [B,3,H,W] in [0, 1] to [B,C,h,w]."""
    posterior = model.vae.encode((2 * images - 1).to(model.dtype)).latent_dist
    return model.vae.config.scaling_factor * posterior.mode().float()


def decode(model: Diffusion, z: Tensor) -> Tensor:
    """x' = D(z / scale): [B,C,h,w] to [B,3,H,W] uint8, cut off (not rounded) to grey levels as published.

    Raises: InputError when the arithmetic overflowed, of which a black picture would tell nobody.
    """
    images = model.vae.decode((z / model.vae.config.scaling_factor).to(model.dtype)).sample.float()
    if not images.isfinite().all():
        raise InputError(
            f"{model.name} made a picture that is not finite in {model.dtype}: take --diffusion.dtype bfloat16 or float32, "
            "in a new folder"
        )
    return (images * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)


def alpha(model: Diffusion, t: int) -> float:
    """abar_t; before the first time step it is abar_0, or 1 where the model's schedule says so."""
    return float(model.scheduler.alphas_cumprod[t] if t >= 0 else model.scheduler.final_alpha_cumprod)


def timesteps(model: Diffusion, steps: int) -> list[int]:
    """The leading DDIM grid, ascending: 1, 51, ..., 951 for N = 20."""
    config = model.scheduler.config
    return [i * (config.num_train_timesteps // steps) + config.steps_offset for i in range(steps)]


def start_timestep(model: Diffusion, strength: float) -> int:
    """t = int(s T), the time step that inversion noises to."""
    total = model.scheduler.config.num_train_timesteps
    return min(int(strength * total), total - 1)


def diffuse(model: Diffusion, z0: Tensor, n: Tensor, t: int) -> Tensor:
    """z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) n."""
    abar = alpha(model, t)
    return abar**0.5 * z0 + (1 - abar) ** 0.5 * n


def predict(
    model: Diffusion,
    z: Tensor,
    t: int,
    text: Tensor,
    hint: Tensor | None,
    *,
    negative: Tensor | None = None,
    guidance: float = 1.0,
    control_strength: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """eps(z, t, c, y) and the image latent x0 that it implies, both [B,C,h,w].

    text, negative: [1,L,M]. hint: [B,C0,h,w], or None to go without the ControlNet. With a `negative` and guidance
    w != 1: eps = eps(negative) + w (eps(text) - eps(negative)), the layout acting in both.
    """
    guided = negative is not None and guidance != 1
    words = torch.cat([c.expand(len(z), -1, -1) for c in ((negative, text) if guided else (text,))])
    inputs = (torch.cat((z, z)) if guided else z).to(model.dtype), t, words.to(model.dtype)
    residuals = {}
    if hint is not None:
        hints = torch.cat((hint, hint)) if guided else hint
        down, middle = _controlnet(model, *inputs, hints, control_strength)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    output = model.unet(*inputs, **residuals, return_dict=False)[0].float()
    if guided:
        unconditional, conditional = output.chunk(2)
        output = unconditional + guidance * (conditional - unconditional)
    a, b = alpha(model, t) ** 0.5, (1 - alpha(model, t)) ** 0.5
    if model.scheduler.config.prediction_type == "v_prediction":  # v = a eps - b x0
        return a * output + b * z, a * z - b * output
    return output, (z - b * output) / a


def _controlnet(model: Diffusion, z: Tensor, t: int, text: Tensor, hint: Tensor, strength: float):
    """The ControlNet's residuals for a layout that is embedded already; diffusers would embed it at every step."""
    embedding, model.controlnet.controlnet_cond_embedding = model.controlnet.controlnet_cond_embedding, _AS_IT_IS
    try:
        return model.controlnet(z, t, text, controlnet_cond=hint, conditioning_scale=strength, return_dict=False)
    finally:
        model.controlnet.controlnet_cond_embedding = embedding


_AS_IT_IS = nn.Identity()


def invert(
    model: Diffusion, z0: Tensor, text: Tensor, hint: Tensor | None, sampling: Sampling, noises: Noise
) -> Tensor:
    """z_t, the start of the walk [B,C,h,w].

    Stochastic inversion noises z0 with n, predicts the noise once without guidance, and noises z0 with that
    prediction: it carries the structure of the image, which n does not. Ablations: plain noise n (SDEdit), and DDIM
    inversion, which goes up the grid that the walk comes down.
    """
    if sampling.inversion == "ddim":
        z, before = z0, alpha(model, -1)
        for t in timesteps(model, sampling.steps)[: sampling.walked]:
            eps, _ = predict(model, z, t, text, hint, control_strength=sampling.control_strength)
            x0 = (z - (1 - before) ** 0.5 * eps) / before**0.5
            z, before = diffuse(model, x0, eps, t), alpha(model, t)
        return z
    t = start_timestep(model, sampling.strength)
    n = noises(0).to(z0)
    z_noisy = diffuse(model, z0, n, t)
    if sampling.inversion == "none":
        return z_noisy
    eps, _ = predict(model, z_noisy, t, text, hint, control_strength=sampling.control_strength)
    return diffuse(model, z0, eps, t)


def denoise(
    model: Diffusion,
    z: Tensor,
    text: Tensor,
    negative: Tensor,
    hint: Tensor | None,
    sampling: Sampling,
    noises: Noise,
) -> Tensor:
    """Walk the last k points of the DDIM grid down from z [B,C,h,w] (DDIM, eq. 12 and 16)."""
    stride = model.scheduler.config.num_train_timesteps // sampling.steps
    for i, t in enumerate(reversed(timesteps(model, sampling.steps)[: sampling.walked]), start=1):
        eps, x0 = predict(
            model, z, t, text, hint,
            negative=negative, guidance=sampling.guidance, control_strength=sampling.control_strength,
        )  # fmt: skip
        now, then = alpha(model, t), alpha(model, t - stride)
        sigma = sampling.eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        z = then**0.5 * x0 + (1 - then - sigma**2) ** 0.5 * eps
        if sigma > 0:
            z = z + sigma * noises(i).to(z)
    return z


@torch.inference_mode()
def transfer(
    model: Diffusion,
    z0: Tensor,
    text: Tensor,
    negative: Tensor,
    hint: Tensor | None,
    sampling: Sampling,
    noises: Noise,
) -> Tensor:
    """x' [B,3,H,W] uint8 from z0 [B,C,h,w] of one target domain: inversion, walk, decoding."""
    z = invert(model, z0, text, hint, sampling, noises)
    return decode(model, denoise(model, z, text, negative, hint, sampling, noises))

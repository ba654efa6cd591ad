"""The embedded diffusion prior: the part Stable Diffusion plays, in a small world (ours).

Stable Diffusion has seen photographs of streets at night, in fog, in snow; this prior has seen renderings of
another town (`scenes.PRIOR`: other seeds, camera, palettes, textures than the benchmark's) under captions
that name the weather. It is saved as an ordinary diffusers folder and loaded by the code that loads Stable
Diffusion.

| symbol | meaning | shape |
|---|---|---|
| x | image | [B,3,H,W] in [-1, 1] |
| y | layout in Cityscapes colours | [B,3,H,W] in [0, 1] |
| z | latent, unit variance per channel | [B,8,H/4,W/4] |
| c | text encoder's last hidden state | [B,L,64] |
| n | noise, white plus a low-frequency offset | like z |
| v | sqrt(abar_t) n - sqrt(1 - abar_t) z (Salimans & Ho 2022) | like z |

Three things make a network this small follow the prompt: offset noise at several scales (otherwise it trusts
the low frequencies of z_t, which stochastic inversion fills with the source's, more than the prompt), the
pooled text added to the time embedding beside the cross-attention, and latents whitened by folding their
statistics into the VAE's 1x1 convolutions.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from segshift.config import PriorConfig
from segshift.data.labels import CITYSCAPES
from segshift.execution import draining
from segshift.execution.device import pick
from segshift.generators import schedule
from segshift.generators.schedule import Points
from segshift.networks.weights import load_tensors, read_pickled, read_tensors
from segshift.outputs import alone, begin
from segshift.runs import InputError, atomic, progress, write_json
from segshift.town.prior_data import MIXES, WORDS, caption, degrade, draw_data

DEFAULTS = {"guidance": 2.5, "steps": 10, "eta": 1.0, "short_side": 128, "palette": "cityscapes"}
"""Settings of this prior, beside its weights in segshift.json: Stable Diffusion's guidance of 9 burns it out.
"""

MAX_TOKENS = 48
CROP = (64, 96)
"""Height and width of what the VAE is trained on."""
TEXT_PARTS = ("text_encoder", "unet", "controlnet")
"""What is trained after the VAE, by folder of a model."""

# ------------------------------------------------------------------------------------------------ networks


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer over a small vocabulary: known words whole, any other word letter by
    letter.
    """
    letters = sorted({chr(c) for c in range(33, 127) if not chr(c).isupper()})
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        # Earlier merges come first, so a word is complete once what they leave of it is joined, left to
        # right.
        parts = [*word[:-1], word[-1] + "</w>"]
        for merge in merges:
            parts = _merge(parts, merge)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            vocab.append(parts[0] + parts[1])
            parts = _merge(parts, merges[-1])
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=merges, model_max_length=MAX_TOKENS
    )


def _merge(parts: list[str], merge: tuple[str, str]) -> list[str]:
    """One byte-pair merge, at every place where it applies."""
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == merge:
            out[-1] += part
        else:
            out.append(part)
    return out


class Prior(nn.Module):
    """The trained parts but for the VAE, in one module so that one average follows them all."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                projection_dim=64,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=32,
            in_channels=8,
            out_channels=8,
            layers_per_block=1,
            block_out_channels=(32, 64, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=16,
            attention_head_dim=4,
            cross_attention_dim=64,
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
        )
        self.controlnet = ControlNetModel.from_unet(
            self.unet, conditioning_embedding_out_channels=(16, 32, 48)
        )

    def forward(self, z_t: Tensor, t: Tensor, tokens: Tensor, layout: Tensor, keep_layout: Tensor) -> Tensor:
        """v-prediction [B,8,h,w]. `keep_layout` [B,1,1,1] of 0 or 1 drops the ControlNet's residuals."""
        c = self.text_encoder(tokens).last_hidden_state
        down, middle = self.controlnet(z_t, t, c, layout, return_dict=False)
        return self.unet(
            z_t,
            t,
            c,
            down_block_additional_residuals=[keep_layout * r for r in down],
            mid_block_additional_residual=keep_layout * middle,
        ).sample


def build_vae() -> AutoencoderKL:
    """The VAE, untrained: 8 latent channels at a quarter of the picture's size."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


# ---------------------------------------------------------------------------------------------- objectives


def class_weights(labels: np.ndarray) -> Tensor:
    """Weight per train id, [256]: 1 / sqrt(pixel share), mean 1 over pixels, so that thin and rare things are
    learnt as well as roads and walls.
    """
    share = np.bincount(labels.reshape(-1), minlength=256) / labels.size
    weight = 1 / np.sqrt(np.maximum(share, 1e-3))
    return torch.tensor(weight / (weight * share).sum(), dtype=torch.float32)


def vae_loss(vae: AutoencoderKL, x: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Class-weighted L1 at three scales, of image gradients and of colour differences, plus a light KL
    term."""
    posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)  # the same on every device
    out = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    loss = 0.0
    a, b, w = out, x, weight[:, None]
    for scale in range(3):
        chroma_a, chroma_b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        loss = loss + (w * (a - b).abs()).mean() + 1.5 * (w * (chroma_a - chroma_b).abs()).mean()
        if scale == 0:
            loss = loss + ((a - b).diff(dim=-1).abs() * w[..., 1:]).mean()
            loss = loss + ((a - b).diff(dim=-2).abs() * w[..., 1:, :]).mean()
        a, b, w = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2), F.avg_pool2d(w, 2)
    return loss + 2e-5 * posterior.kl().mean() / x[0, 0].numel() * 16


@torch.no_grad()
def fold_statistics(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Make latents zero-mean and unit-variance per channel by rewriting the 1x1 convolutions on both sides of
    z.
    """
    channels = len(mean)
    q, p = vae.quant_conv, vae.post_quant_conv
    q.weight[:channels] /= deviation[:, None, None, None]
    q.bias[:channels] = (q.bias[:channels] - mean) / deviation
    q.bias[channels:] -= 2 * deviation.log()  # log variance of the posterior
    p.bias += p.weight[:, :, 0, 0] @ mean
    p.weight *= deviation[None, :, None, None]


def offset_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """White noise plus, per image, up to as much noise that is constant over coarse cells."""
    n = torch.randn(shape, generator=generator)
    amplitude = torch.rand((shape[0], 1, 1, 1), generator=generator)
    for cells in ((1, 1), (2, 4), (4, 8)):
        coarse = torch.randn((*shape[:2], *cells), generator=generator)
        n = n + 0.58 * amplitude * F.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False)
    return n


# ------------------------------------------------------------------------------------------------- training


class Float32(TorchFunctionMode):
    """Attention and group norm compute in float32 under autocast.

    On a CPU their bfloat16 versions take about three times as long, and with them in float32 a step of the
    prior takes two thirds of its time.
    """

    SLOW = (F.scaled_dot_product_attention, F.group_norm)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in self.SLOW:
            return func(*args, **(kwargs or {}))
        kind = args[0].dtype
        wide = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*wide, **(kwargs or {})).to(kind)


def _weights(start: str, part: str) -> Path:
    return next(Path(start, part).glob("*.safetensors"), Path(start, part, "*.safetensors"))


def _start_from(config: PriorConfig, module: nn.Module, part: str) -> None:
    """Load one part of the model folder `config.start`, if there is one. Raises: InputError."""
    if config.start is not None:
        path = _weights(config.start, part)
        load_tensors(module, read_tensors(path), path)


def _steps(
    name: str, module: nn.Module, lr: float, steps: int, config: PriorConfig, out: Path, loss_of
) -> nn.Module:
    """Optimise `module` for `steps`, with a cosine schedule, a moving average and a resumable state. Returns
    the average.

    `loss_of(step, generator)` draws its own batch from the generator, which depends on (seed, step) alone.
    """
    device = pick(config.device)
    module.to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=1e-3, betas=(0.9, 0.99))
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=True)
    state_path, start, total = out / f"{name}.state.pt", 0, 0.0
    if state_path.exists():
        start = _resume(state_path, module, average, optimizer)
    log = out / f"{name}.log"
    with draining() as asked, progress(name, steps, done=start) as bar:
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (step + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
            generator = torch.Generator().manual_seed(hash((config.seed, step)) % 2**62)
            with Float32(), torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                loss = loss_of(step, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not loss.isfinite():
                raise InputError(
                    f"the loss of {name} is {loss.item()} in step {step + 1}: take a lower --lr or "
                    "--vae-lr in a new folder"
                )
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(module)
            total += loss.item()
            bar.advance()
            if (step + 1) % 100 == 0:
                with log.open("a") as file:
                    file.write(json.dumps({"step": step + 1, "loss": total / 100}) + "\n")
                total = 0.0
            leaving = asked()
            if leaving or (step + 1) % config.checkpoint_every == 0 or step + 1 == steps:
                state = {
                    "step": step + 1,
                    "module": module.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                with atomic(state_path) as temporary:
                    torch.save(state, temporary)
            if leaving:
                break
    return average.module


def _resume(path: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of `_steps`; returns the steps done. Raises: InputError for another file."""
    try:
        state = read_pickled(path)
        for name, part in (("module", module), ("average", average), ("optimizer", optimizer)):
            part.load_state_dict(state[name])
        step = state["step"]
        whole = isinstance(step, int) and step > 0
    except (InputError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        whole = False
    if not whole:
        raise InputError(
            f"{path} holds no state of this training: restore the file, or delete it to train this part from "
            "the start"
        )
    return step


def _to_image(batch: np.ndarray, device: torch.device) -> Tensor:
    x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def _train_vae(config: PriorConfig, out: Path, images: np.ndarray, labels: np.ndarray) -> AutoencoderKL:
    torch.manual_seed(config.seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    _start_from(config, vae, "vae")
    device = pick(config.device)
    weights = class_weights(labels[:500])
    crop_h, crop_w = CROP

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng([config.seed, 1, step])
        xs, ws = [], []
        for i in rng.integers(len(images), size=config.vae_batch):
            top, left = rng.integers(config.height - crop_h + 1), rng.integers(config.width - crop_w + 1)
            window = np.s_[i, top : top + crop_h, left : left + crop_w]
            image = degrade(images[window], rng) if rng.random() < 0.05 else images[window]
            flip = slice(None, None, -1) if rng.random() < 0.5 else slice(None)
            xs.append(image[:, flip])
            ws.append(labels[window][:, flip])
        weight = weights[torch.from_numpy(np.stack(ws)).long()].to(device)
        return vae_loss(vae, _to_image(np.stack(xs), device), weight, generator)

    return _steps("vae", vae, config.vae_lr, config.vae_steps, config, out, loss_of)


@torch.inference_mode()
def _encode(vae: AutoencoderKL, images: np.ndarray, what: str) -> Tensor:
    latents = []
    with progress(what, len(images)) as bar:
        for start in range(0, len(images), 16):
            x = _to_image(np.ascontiguousarray(images[start : start + 16]), vae.device)
            mean = vae.encode(x).latent_dist.mode()
            latents.append(mean.half().cpu())
            bar.advance(len(mean))
    return torch.cat(latents)


def _read_latents(path: Path, count: int) -> Tensor:
    """The encoded scenes, [count, 8, H/4, W/4]. Raises: InputError for another file."""
    try:
        latents = read_pickled(path)
    except InputError:
        latents = None
    if not isinstance(latents, Tensor) or latents.dim() != 4 or latents.shape[:2] != (count, 8):
        raise InputError(f"{path} does not hold the latents of {count} scenes: delete it and start again")
    return latents


def _train_prior(config: PriorConfig, out: Path, vae, images, labels, mixes, tokenizer) -> Prior:
    torch.manual_seed(config.seed + 1)
    prior = Prior(tokenizer).to(memory_format=torch.channels_last)
    for part in TEXT_PARTS:
        _start_from(config, getattr(prior, part), part)
    device = pick(config.device)
    low = np.random.default_rng([config.seed, 2]).random(len(images)) < 0.05
    cache = out / "latents.pt"
    if not cache.exists():
        shown = np.array(images)
        for i in np.flatnonzero(low):
            shown[i] = degrade(shown[i], np.random.default_rng([config.seed, 3, int(i)]))
        with atomic(cache) as temporary:
            torch.save(_encode(vae, shown, "encoding"), temporary)
    latents = _read_latents(cache, len(images))
    abar = DDIMScheduler(**SCHEDULE).alphas_cumprod
    palette = torch.from_numpy(CITYSCAPES.paint(np.arange(256, dtype=np.uint8))).float() / 255
    factor = config.height // latents.shape[2]
    narrow = latents.shape[3] // 2
    weights = class_weights(labels[:500])

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng([config.seed, 4, step])
        chosen = rng.integers(len(latents), size=config.batch)
        z, y = (
            latents[chosen].float(),
            torch.from_numpy(labels[np.sort(chosen)][np.argsort(np.argsort(chosen))]),
        )
        if step < config.narrow_share * config.steps:  # half-width crops first: twice the images per second
            left = int(rng.integers(latents.shape[3] - narrow + 1))
            z = z[..., left : left + narrow]
            y = y[..., left * factor : (left + narrow) * factor]
        layout = palette[y.long()].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        texts = [
            "" if rng.random() < 0.12 else caption(MIXES[mixes[i]], bool(low[i]), rng)
            for i in chosen.tolist()
        ]
        tokens = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
        keep = torch.from_numpy((rng.random((config.batch, 1, 1, 1)) > 0.08).astype(np.float32))
        t = torch.randint(0, 1000, (config.batch,), generator=generator)
        n = offset_noise(z.shape, generator)
        points = Points.of(abar[t].view(-1, 1, 1, 1))
        z_t, v = schedule.noised(z, n, points), schedule.target("v_prediction", z, n, points)
        z_t = z_t.contiguous(memory_format=torch.channels_last)
        out = prior(*(tensor.to(device) for tensor in (z_t, t, tokens, layout, keep)))
        weight = F.avg_pool2d(weights[y.long()][:, None], factor)
        return (weight.to(device) * (out.float() - v.to(device)).square()).mean()

    average = _steps("prior", prior, config.lr, config.steps, config, out, loss_of)
    assert isinstance(average, Prior)
    return average


SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
    timestep_spacing="leading",
    prediction_type="v_prediction",
)


def save(folder: Path, vae: AutoencoderKL, prior: Prior, tokenizer: CLIPTokenizer) -> Path:
    """Write the diffusers folder: fp16 safetensors, one sub-folder a part, and `segshift.json` with its
    defaults.
    """
    for name, part in (
        ("vae", vae),
        ("unet", prior.unet),
        ("controlnet", prior.controlnet),
        ("text_encoder", prior.text_encoder),
    ):
        part.half().save_pretrained(folder / name, safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    classes = {
        "vae": "AutoencoderKL",
        "unet": "UNet2DConditionModel",
        "controlnet": "ControlNetModel",
        "scheduler": "DDIMScheduler",
    }
    index: dict[str, Any] = {"_class_name": "StableDiffusionControlNetPipeline"}
    index |= {k: ["diffusers", v] for k, v in classes.items()}
    index |= {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    write_json(folder / "model_index.json", index)
    write_json(folder / "segshift.json", DEFAULTS)
    return folder


def train(config: PriorConfig, out: str | Path) -> Path:
    """Draw the scenes, train the VAE, then UNet, ControlNet and text encoder; write `out/model`. Resumes.

    Raises: InputError when `out` belongs to another configuration, or the size is no multiple of 16.
    """
    if config.height % 16 or config.width % 32 or config.height < CROP[0] or config.width < CROP[1]:
        raise InputError(
            f"--height {config.height} --width {config.width}: expected a multiple of 16, {CROP[0]} or more, "
            f"and one of 32, {CROP[1]} or more"
        )
    if config.start is not None:
        for part in ("vae", *TEXT_PARTS):
            read_tensors(_weights(config.start, part))  # before scenes are drawn
    out = begin(
        out,
        "prior",
        config,
        free=("workers", "checkpoint_every", "threads", "device", "steps"),
        begun=lambda out: (out / "data" / "images.npy").exists(),
    )
    with alone(out):
        return _train(config, out)


def _train(config: PriorConfig, out: Path) -> Path:
    if config.threads:
        torch.set_num_threads(config.threads)
    images, labels, mixes = draw_data(config, out / "data")
    vae = _train_vae(config, out, images, labels)
    vae.requires_grad_(False).eval()
    sample = _encode(vae, np.array(images[:256]), "measuring latents").float()
    fold_statistics(vae, sample.mean((0, 2, 3)).to(vae.device), sample.std((0, 2, 3)).to(vae.device))
    tokenizer = build_tokenizer()
    prior = _train_prior(config, out, vae, images, labels, mixes, tokenizer)
    temporary = out / "model.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    save(temporary, vae, prior, tokenizer)
    shutil.rmtree(out / "model", ignore_errors=True)
    return temporary.rename(out / "model")

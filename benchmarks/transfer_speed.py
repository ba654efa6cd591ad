"""Images per second and peak memory of image transfer, beside two other ways to compute the same thing.

    python benchmarks/transfer_speed.py                                  the embedded prior's size
    python benchmarks/transfer_speed.py --sd15 --device cuda --dtype float16
    python benchmarks/transfer_speed.py --sd15 --device cuda --levers compile fused interval bfloat16

ours       batches; both passes of the guidance in one; the layout embedded once per image
plain      a loop over diffusers' parts as a user writes it: one image after the other, scheduler.step, and
           SDEdit's start
published  the published code's arithmetic: one image after the other, two passes per step, and stochastic
           inversion

--levers adds a row for ours with each of them, and one with all:

compile    torch.compile of the networks (the first round, which does not count, compiles)
fused      one matrix for queries, keys and values
interval   guidance in a part of the walk only, as --speed fast
bfloat16   arithmetic of the networks

What a lever does to the images, and to a network that is trained on them, is not measured here.

Weights are random: time and memory do not depend on them. The three take turns in every round, so that
whatever else the machine does meets all alike; what counts is the ratio. Memory of each is measured in a
process of its own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import Tensor

from segshift.generators import schedule
from segshift.generators.stable_diffusion import StableDiffusion
from segshift.methods.zodi import transfer as zodi
from segshift.town import prior

SD15 = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
}


LEVERS = ("compile", "fused", "interval", "bfloat16")


VAE_CHANNELS = (128, 256, 512, 512)
"""Of Stable Diffusion's autoencoder, and of its XL's."""


def autoencoder(channels: Sequence[int] = VAE_CHANNELS, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=tuple(channels),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **settings,
    )


def build(args: argparse.Namespace, levers: Sequence[str] = ()) -> StableDiffusion:
    torch.manual_seed(0)
    diffusers.utils.logging.set_verbosity_error()
    if args.sd15:
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        controlnet = ControlNetModel.from_unet(unet)
        vae = autoencoder()
        scheduler = DDIMScheduler(**SD15)
    else:
        parts = prior.Prior(prior.build_tokenizer())
        unet, controlnet, vae = parts.unet, parts.controlnet, prior.build_vae()
        scheduler = DDIMScheduler(**prior.SCHEDULE)
    dtype = torch.bfloat16 if "bfloat16" in levers else getattr(torch, args.dtype)
    for part in (unet, controlnet, vae):
        part.requires_grad_(False).eval().to(args.device, dtype)
    if "fused" in levers:
        for part in (unet, vae):  # diffusers fuses no ControlNet
            part.fuse_qkv_projections()
    if "compile" in levers:
        for part in (unet, controlnet, vae.encoder, vae.decoder):
            part.compile()
    return StableDiffusion("random", vae=vae, unet=unet, controlnet=controlnet, scheduler=scheduler)


def inputs(
    args: argparse.Namespace, model: StableDiffusion
) -> tuple[Tensor, Tensor, Tensor, Tensor, zodi.Sampling]:
    """Images and layouts [n,3,H,W] in [0, 1], two text conditionings [1,L,M], settings."""
    size = (512, 1024) if args.sd15 else (128, 256)
    length, sampling = (77, zodi.Sampling(0.9, 20, 9.0)) if args.sd15 else (48, zodi.Sampling(0.9, 10, 2.5))
    images, layouts = torch.rand(2, args.images, 3, *size, device=args.device)
    text, negative = torch.randn(2, 1, length, model.unet.config.cross_attention_dim, device=args.device)
    return images, layouts, text, negative, sampling


def ours(model, images, layouts, text, negative, sampling, batch: int) -> None:
    for part in (model.unet, model.controlnet, model.vae):
        part.to(memory_format=torch.channels_last)
    for x, y in zip(images.split(batch), layouts.split(batch), strict=True):
        z0, hint = model.encode(x), model.hint(y)
        words, against = {"text": text}, {"text": negative}
        zodi.transfer(model, z0, words, against, hint, sampling, lambda i, z0=z0: torch.randn(z0.shape))


@torch.no_grad()
def plain(model, images, layouts, text, negative, sampling, batch: int) -> None:
    for part in (model.unet, model.controlnet, model.vae):
        part.to(memory_format=torch.contiguous_format)
    scheduler, dtype, both = model.scheduler, model.dtype, torch.cat((negative, text)).to(model.dtype)
    for x, y in zip(images.split(1), layouts.split(1), strict=True):
        z = model.vae.encode((2 * x - 1).to(dtype)).latent_dist.mode() * model.vae.config.scaling_factor
        scheduler.set_timesteps(sampling.steps)
        walk = scheduler.timesteps[-sampling.walked :]
        z = scheduler.add_noise(z, torch.randn_like(z), walk[:1])
        control = torch.cat((y, y)).to(dtype)
        for t in walk:
            twice = torch.cat((z, z))
            down, middle = model.controlnet(
                twice, t, both, controlnet_cond=model.embed_layout(control), return_dict=False
            )
            output = model.unet(
                twice, t, both, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
            unconditional, conditional = output.chunk(2)
            output = unconditional + sampling.guidance * (conditional - unconditional)
            z = scheduler.step(output, t, z, eta=sampling.eta).prev_sample
        model.vae.decode(z / model.vae.config.scaling_factor).sample.clamp(-1, 1).cpu()


@torch.no_grad()
def published(model, images, layouts, text, negative, sampling, batch: int) -> None:
    for part in (model.unet, model.controlnet, model.vae):
        part.to(memory_format=torch.contiguous_format)
    dtype = model.dtype

    def apply(z: Tensor, t: int, words: Tensor, y: Tensor) -> Tensor:
        given = z.to(dtype), t, words.to(dtype)
        down, middle = model.controlnet(
            *given, controlnet_cond=model.embed_layout(y.to(dtype)), return_dict=False
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return model.unet(*given, **residuals).sample.float()

    for x, y in zip(images.split(1), layouts.split(1), strict=True):
        z0 = model.encode(x)
        start = model.point(sampling.strength, (z0.shape[-2], z0.shape[-1]))
        eps = apply(schedule.noised(z0, torch.randn_like(z0), start), start.t, text, y)
        z = schedule.noised(z0, eps, start)
        for here, there in pairwise(zodi.walk(model, z, sampling)):
            conditional = apply(z, here.t, text, y)
            unconditional = apply(z, here.t, negative, y)
            eps = unconditional + sampling.guidance * (conditional - unconditional)
            x0 = (z - here.b * eps) / here.a
            z = schedule.step(x0, eps, there, schedule.sigma(here, there, sampling.eta), torch.randn_like(z))
        model.decode(z).cpu()


WAYS: dict[str, Callable[..., None]] = {"ours": ours, "plain": plain, "published": published}


def rows(args: argparse.Namespace) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Way and levers of each row of the table, by its name."""
    made: dict[str, tuple[str, tuple[str, ...]]] = {way: (way, ()) for way in WAYS}
    made |= {f"ours, {lever}": ("ours", (lever,)) for lever in args.levers}
    return made | ({"ours, all levers": ("ours", tuple(args.levers))} if len(args.levers) > 1 else {})


def seconds(row: str, args: argparse.Namespace, model: StableDiffusion, given: tuple) -> float:
    way, levers = rows(args)[row]
    *tensors, sampling = given
    if "interval" in levers:
        sampling = replace(sampling, guided=zodi.GUIDED)
    started = perf_counter()
    WAYS[way](model, *tensors, sampling, args.batch)
    if args.device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - started


def memory(row: str, args: argparse.Namespace) -> float:
    """MiB at the peak of one batch: allocated on the GPU, resident on the CPU (libraries and all)."""
    torch.set_num_threads(args.threads)
    model = build(args, rows(args)[row][1])
    seconds(row, args, model, inputs(args, model))
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sd15", action="store_true", help="Stable Diffusion 1.5's size at 512x1024")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--images", type=int, default=8, help="images a round")
    parser.add_argument("--batch", type=int, default=8, help="images at once, in ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--levers", nargs="*", default=[], choices=LEVERS, help="also measured alone and together"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = {row: pool.submit(memory, row, args).result() for row in rows(args)}
    models = {levers: build(args, levers) for _, levers in rows(args).values()}
    given = inputs(args, models[()])
    took: dict[str, list[float]] = {row: [] for row in rows(args)}
    for turn in range(args.rounds + 1):  # the first warms up
        for row, (_, levers) in rows(args).items():
            took[row].append(seconds(row, args, models[levers], given))
            if turn == 0:
                took[row].clear()
    table = Table(
        "way", "images/s", "times plain", "times published", "peak MiB", title=f"{args.device}, {args.dtype}"
    )
    for row in took:
        ratios = [
            f"{statistics.median(b / a for a, b in zip(took[row], took[o], strict=True)):.2f}"
            for o in ("plain", "published")
        ]
        table.add_row(row, f"{args.images / statistics.median(took[row]):.3f}", *ratios, f"{peaks[row]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()

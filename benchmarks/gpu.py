"""What one GPU does, in one call of ten minutes: transfer, training and prediction at the published sizes.

    python benchmarks/gpu.py runs/gpu
    python benchmarks/gpu.py runs/gpu --tiny --device cpu     every line at a tiny size: does it run?

Weights are random and so are the images: time and memory do not depend on them. A line is one measurement:
one call that does not count, then calls until a few seconds are full; the rate is the median. It is written
as soon as it is there, so a call that is cut short keeps what it has, and running it again measures the rest.
A line that fails, as of memory, says why and costs itself alone.

    matrix        the rate of a large matrix product: what the device can do at most
    transfer      published arithmetic, a plain diffusers loop (both in transfer_speed.py), and ours by
                  precision and images at once
    ZoDi          pairs per second: published loop and ours (train_speed.py)
    ICCLD         source only and both steps at the published shape (memory.py): images per second and memory
    prediction    labels of photographs from disk to disk, and the network alone

"of the matrix rate" counts the floating-point operations of the networks per image (torch's counter).

Writes OUT/gpu.md and OUT/gpu.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import memory
import torch
import train_speed
import transfer_speed
import tyro
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from settings import write_results
from torch.utils.flop_counter import FlopCounterMode

from segshift import networks
from segshift.config import NetworkConfig, PredictConfig, TownConfig, TrainConfig
from segshift.execution.device import pick
from segshift.generators.stable_diffusion_xl import StableDiffusionXL
from segshift.methods.zodi import transfer as zodi
from segshift.recipes.town import town_target
from segshift.runs import read_json, read_lines, write_json
from segshift.settings import Device
from segshift.stages import predict, train
from segshift.town import writer


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    out: tyro.conf.Positional[Path]
    device: Device = "auto"
    minutes: float = 9.5
    """No further line begins after this time."""
    seconds: float = 5.0
    """Time that a line is repeated for, at least once."""
    tiny: bool = False
    """Small networks and images, for a look whether every line runs."""


@dataclass(frozen=True)
class Line:
    """One measurement: `call` does `count` units of work of `flops` each, 0 where they are not counted."""

    call: Callable[[], Any]
    count: int
    unit: str
    flops: float = 0.0


Lines = dict[str, Callable[[], Line]]
"""By name: what prepares a line. Only the prepared line is on the device."""


def measure(line: Line, device: torch.device, b: Benchmark) -> dict[str, Any]:
    """Units per second, TFLOP/s, and GiB allocated at most (on a GPU). Tiny: one call."""
    cuda = device.type == "cuda"

    def timed() -> float:
        began = time.perf_counter()
        line.call()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    if not b.tiny:
        timed()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    took, end = [timed()], time.perf_counter() + b.seconds
    while not b.tiny and time.perf_counter() < end:
        took.append(timed())
    rate = line.count / median(took)
    found = {"rate": rate, "unit": line.unit, "calls": len(took), "tflops": rate * line.flops / 1e12}
    return found | ({"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else {})


# --------------------------------------------------------------------------------------------------- lines


def matrix(device: torch.device, dtype: torch.dtype, side: int) -> Line:
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    return Line(lambda: a @ b, 1, "products/s", 2 * side**3)


def arguments(b: Benchmark, device: torch.device, dtype: str, images: int) -> argparse.Namespace:
    return argparse.Namespace(sd15=not b.tiny, device=device.type, dtype=dtype, images=images, batch=images)


def stable_diffusion(b: Benchmark, device: torch.device, way: str, dtype: str, images: int) -> Line:
    """Stable Diffusion 1.5's size at 512x1024 and the published settings; tiny: the embedded prior's."""
    args = arguments(b, device, dtype, images)
    model = transfer_speed.build(args)
    given = transfer_speed.inputs(args, model)
    if b.tiny:
        given = (*given[:-1], replace(given[-1], steps=2))
    call = transfer_speed.WAYS[way]
    one = tuple(x[:1] for x in given[:2]) + given[2:]
    return Line(lambda: call(model, *given, images), images, "images/s", flops(lambda: call(model, *one, 1)))


def sdxl(b: Benchmark, device: torch.device, dtype: str, images: int) -> Line:
    """Stable Diffusion XL's size at 768x1536 and its own settings; tiny: blocks of 32 channels at 64x128."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64, 64) if b.tiny else (320, 640, 1280),
        "attention_head_dim": (2, 4, 4) if b.tiny else (5, 10, 20),
        "transformer_layers_per_block": (1, 1, 1) if b.tiny else (1, 2, 10),
        "cross_attention_dim": 64 if b.tiny else 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8 if b.tiny else 256,
        "projection_class_embeddings_input_dim": 80 if b.tiny else 2816,
        "use_linear_projection": True,
    }
    with torch.device(device):  # millions of random numbers are drawn where they are needed
        unet = UNet2DConditionModel(sample_size=128, **shape)
        controlnet = ControlNetModel.from_unet(unet)
        channels = (32,) * 4 if b.tiny else transfer_speed.VAE_CHANNELS
        vae = transfer_speed.autoencoder(channels, scaling_factor=0.13025, force_upcast=False)
    for part in (unet, controlnet, vae):
        part.requires_grad_(False).eval().to(device, getattr(torch, dtype))
    scheduler = DDIMScheduler(**transfer_speed.SD15)
    model = StableDiffusionXL("random", vae=vae, unet=unet, controlnet=controlnet, scheduler=scheduler)
    size = (64, 128) if b.tiny else (768, 1536)
    pictures, layouts = torch.rand(2, images, 3, *size, device=device)
    words, against = (
        {
            "text": torch.randn(1, 77, unet.config.cross_attention_dim, device=device),
            "pooled": torch.randn(1, 32 if b.tiny else 1280, device=device),
        }
        for _ in range(2)
    )
    sampling = zodi.Sampling(0.9, 2 if b.tiny else 20, 5.0)

    def call(count: int) -> None:
        z0, hint = model.encode(pictures[:count]), model.hint(layouts[:count])
        zodi.transfer(model, z0, words, against, hint, sampling, lambda i: torch.randn(z0.shape))

    return Line(lambda: call(images), images, "images/s", flops(lambda: call(1)))


def flops(call: Callable[[], Any]) -> float:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def zodi_training(b: Benchmark, device: torch.device, loop: str, precision: torch.dtype | None) -> Line:
    """Four pairs at the published crop."""
    crop, pairs = ((64, 64), 2) if b.tiny else ((384, 768), 4)
    settings = train_speed.Settings(network(b), crop, pairs, device=device.type)
    return Line(train_speed.step(settings, loop, precision), pairs, "pairs/s")


def network(b: Benchmark) -> NetworkConfig:
    """What ZoDi's training and prediction are measured with."""
    return NetworkConfig(encoder="tu-test_resnet" if b.tiny else "resnet50", pretrained=False)


def iccld_trainings(b: Benchmark, device: torch.device) -> dict[str, dict[str, Any]]:
    """Source only and both steps of the published recipe, by the training itself, data loading included.

    The rate is the median of a step, counted in images of the source.
    """
    home = memory.Benchmark(b.out / "iccld", device=b.device)
    encoder = "test_resnet" if b.tiny else "resnet101"
    found = {}
    for name, (config, out) in memory.trainings(home, encoder, False, steps=2 if b.tiny else 30).items():
        if b.tiny:
            config = small(config)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        train.train(config, out)
        took = [line["seconds"] for line in read_lines(out / "metrics.jsonl") if "seconds" in line]
        rate = config.batch_size / median(took[1:])
        found[f"ICCLD, {name}"] = {"rate": rate, "unit": "images/s", "calls": len(took), "tflops": 0.0} | (
            {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}
        )
    return found


def small(config: TrainConfig) -> TrainConfig:
    """The same training of a small UNet on small images."""
    return replace(
        config,
        size=(64, 128),
        target_size=(64, 128),
        crop=(64, 64),
        workers=0,
        precision="no",
        iccld=replace(config.iccld, unet_channels=(8, 16)),
    )


def prediction(b: Benchmark, device: torch.device) -> Lines:
    """Labels of town frames: from disk to disk by `predict`, and the network alone."""
    data = town_target("clear").format(out=b.out / "iccld")
    run = b.out / "iccld" / "prediction"
    size = (64, 128) if b.tiny else (512, 1024)

    def whole() -> Line:
        config = TrainConfig(
            source=town_target("clear", "train").format(out=b.out / "iccld"),
            method="source_only",
            select="last",
            network=network(b),
            size=size,
            crop=(64, 64),
            steps=1,
            batch_size=2,
            device=b.device,
            workers=0,
        )
        train.train(config, run)
        count = 0

        def call() -> None:
            nonlocal count
            count += 1
            predict.predict(
                PredictConfig(run=str(run), data=data, checkpoint="last", device=b.device),
                b.out / "iccld" / f"prediction-{count}",
            )

        return Line(call, frames(b), "images/s")

    def alone() -> Line:
        segmenter = networks.build(network(b), 19).to(device).eval()
        images = torch.rand(4, 3, *size, device=device)

        @torch.no_grad()
        def call() -> None:
            segmenter(images).argmax(1).cpu()

        return Line(call, len(images), "images/s")

    return {"prediction, from disk to disk": whole, "prediction, the network alone": alone}


def frames(b: Benchmark) -> int:
    """Frames that `predict` reads and labels."""
    return 2 if b.tiny else 16


def lines(b: Benchmark, device: torch.device) -> Lines:
    """Every line but ICCLD's, in the order of their worth."""
    side = 64 if b.tiny else 8192
    counts = (2,) if b.tiny else (8, 1, 2, 4, 16, 32)
    halves = ("bfloat16",) if device.type == "cpu" else ("float16", "bfloat16")
    made: Lines = {
        f"matrix product, {dtype}": lambda dtype=dtype: matrix(device, getattr(torch, dtype), side)
        for dtype in ("float32", *halves)
    }
    made["transfer, published, float32, 1"] = lambda: stable_diffusion(b, device, "published", "float32", 1)
    made[f"transfer, plain, {halves[0]}, 1"] = lambda: stable_diffusion(b, device, "plain", halves[0], 1)
    made[f"transfer, ours, float32, {counts[0]}"] = lambda: stable_diffusion(
        b, device, "ours", "float32", counts[0]
    )
    for half in halves:
        for count in counts if half == halves[0] else counts[:1]:
            made[f"transfer, ours, {half}, {count}"] = lambda half=half, count=count: stable_diffusion(
                b, device, "ours", half, count
            )
    for count in counts[:2]:
        made[f"transfer, SDXL, {halves[0]}, {count}"] = lambda count=count: sdxl(b, device, halves[0], count)
    for loop in ("published", "joint"):
        for precision in (None, torch.bfloat16):
            name = f"ZoDi, {loop}, {'bfloat16' if precision else 'float32'}"
            made[name] = lambda loop=loop, precision=precision: zodi_training(b, device, loop, precision)
    return made | prediction(b, device)


# --------------------------------------------------------------------------------------------------- table


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: rate, peak memory, and share of the measured matrix rate of the same precision."""
    rows = ["| line | rate | peak, GiB | of the matrix rate |", "|---|---|---|---|"]
    for name, line in found.items():
        if "failed" in line:
            rows.append(f"| {name} | {line['failed']} | | |")
            continue
        dtype = next((d for d in ("float16", "bfloat16", "float32") if f" {d}" in name), "")
        most = found.get(f"matrix product, {dtype}", {}).get("tflops")
        share = f"{line['tflops'] / most:.0%}" if line["tflops"] and most else ""
        rate = f"{line['rate']:.3g} {line['unit']}" + (
            f", {line['tflops']:.3g} TFLOP/s" if line["tflops"] else ""
        )
        peak = f"{line['peak_gib']:.1f}" if "peak_gib" in line else ""
        rows.append(f"| {name} | {rate} | {peak} | {share} |")
    return "\n".join(rows) + "\n"


def main(b: Benchmark) -> None:
    began, device = time.monotonic(), pick(b.device)
    size = (64, 128) if b.tiny else (512, 1024)
    writer.town(
        TownConfig(
            height=size[0],
            width=size[1],
            source_train=4,
            source_val=1,
            target_train=4,
            target_val=frames(b),
            workers=1 if b.tiny else 0,
        ),
        b.out / "iccld" / "town",
    )
    known = b.out / f"lines-{device.type}{'-tiny' * b.tiny}.json"
    found: dict[str, dict[str, Any]] = read_json(known) if known.exists() else {}

    def keep(name: str, record: Callable[[], dict[str, dict[str, Any]]]) -> None:
        if name in found or any(line.startswith(f"{name}, ") for line in found):
            return
        if time.monotonic() - began > 60 * b.minutes:
            print(f"{name}: no time left, run again")
            return
        try:
            found.update(record())
        except (RuntimeError, torch.OutOfMemoryError) as error:  # out of memory, or not for this device
            found[name] = {"failed": str(error).splitlines()[0][:120]}
        write_json(known, found)
        print(name, found.get(name, ""), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    for name, prepare in lines(b, device).items():
        keep(name, lambda name=name, prepare=prepare: {name: measure(prepare(), device, b)})
    keep("ICCLD", lambda: iccld_trainings(b, device))
    write_results(b.out, "gpu", table(found), {"lines": found, "device": str(device), "tiny": b.tiny})


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

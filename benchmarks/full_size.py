"""One frame through Stable Diffusion 1.5 with its ControlNet at full size, and the memory that it takes.

    python benchmarks/full_size.py runs/full-size

Writes random weights of the published sizes in the hub's layout (5.7 GiB of disk), one frame of 512x1024, and
runs `segshift transfer` on it for two steps in a process of its own. Ends with code 1 where the frame is not
made, or where that process held more than 16 GiB. What the frame shows is noise. Running it again keeps the
weights.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import diffusers
import torch
import tyro
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transfer_speed import SD15, VAE_CHANNELS, autoencoder
from transformers import CLIPTextConfig, CLIPTextModel

from segshift import runs
from segshift.config import TownConfig
from segshift.town import prior, writer

MOST = 16.0
"""GiB that the transfer may hold."""


@dataclass(frozen=True)
class Benchmark:
    """What is run; the defaults are Stable Diffusion 1.5's sizes."""

    out: tyro.conf.Positional[Path]
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Of the UNet's and the ControlNet's blocks."""
    vae_channels: tuple[int, ...] = VAE_CHANNELS
    text: tuple[int, int] = (768, 12)
    """Width and layers of the text encoder."""
    size: tuple[int, int] = (512, 1024)
    """Height and width of the frame."""


def weights(b: Benchmark, folder: Path) -> None:
    """A pipeline of random weights. Its model_index.json is written last."""
    torch.manual_seed(0)
    diffusers.utils.logging.set_verbosity_error()
    width, layers = b.text
    unet = UNet2DConditionModel(sample_size=64, block_out_channels=b.channels, cross_attention_dim=width)
    ControlNetModel.from_unet(unet).save_pretrained(folder / "controlnet")
    unet.save_pretrained(folder / "unet")
    del unet
    autoencoder(b.vae_channels).save_pretrained(folder / "vae")
    DDIMScheduler(**SD15).save_pretrained(folder / "scheduler")
    prior.build_tokenizer().save_pretrained(folder / "tokenizer")  # a small one: its size is of no account
    text = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        hidden_act="quick_gelu",
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    runs.write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})


def main(b: Benchmark) -> None:
    model, height, width = b.out / "model", *b.size
    if not (model / "model_index.json").is_file():
        weights(b, model)
    town = TownConfig(
        height=height, width=width, source_train=1, source_val=0, target_train=0, target_val=0, workers=1
    )
    writer.town(town, b.out / "town")
    command = [sys.executable, "-m", "segshift", "transfer", str(b.out / "transferred")]
    command += ["--source", f"cityscapes:{b.out}/town/cityscapes:train", "--to", "night"]
    command += ["--diffusion.model", str(model), "--diffusion.device", "cpu", "--batch-size", "1"]
    started = perf_counter()
    code = subprocess.run(
        [*command, "--steps", "2", "--strength", "1", "--short-side", str(height)], check=False
    ).returncode
    seconds = perf_counter() - started
    held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    made = list((b.out / "transferred" / "night").rglob("*_leftImg8bit.png"))
    told = {"code": code, "frames": len(made), "GiB": round(held, 2), "seconds": round(seconds)}
    print(json.dumps(told))
    if code or len(made) != 1 or held > MOST:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

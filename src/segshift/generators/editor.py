"""Editing models: any pipeline of diffusers that is called with an image and a prompt.

    segshift transfer OUT --source ... --generator editor --generator.model timbrooks/instruct-pix2pix

InstructPix2Pix, FLUX Kontext, Qwen-Image-Edit and others, and the image-to-image pipeline of a text-to-image
model. None of them is given the layout, so a gate judges what they return.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from segshift.config import DiffusionConfig, TransferConfig
from segshift.data import transforms
from segshift.execution.device import pick
from segshift.generators.base import (
    Domain,
    FrameError,
    Generator,
    Source,
    file_hash,
    resize,
    working_size,
)
from segshift.runs import InputError

INSTRUCTIONS = {
    "night": "make it night",
    "snow": "make it a snowy day",
    "rain": "make it a rainy day",
    "fog": "make it a foggy day",
    "game": "make it look like a video game",
}
"""What is said for the known domains; a sentence of the user's is said as it is."""

KEEP = ", keep every object where it is"
"""Follows every instruction."""

SHORT_SIDE = 512
"""Of the working size, where the user gives none."""

_FILES = ("*/*.safetensors", "*/*.json", "*/*.txt", "*/*.model", "model_index.json")


def instruction(name: str) -> str:
    """The instruction of a target domain, a known name or a sentence."""
    return INSTRUCTIONS.get(name, name) + KEEP


class Editor(Generator):
    """A pipeline of diffusers as a generator, one image a call."""

    needs_layouts = False
    short_side: int

    def __init__(self, name: str, pipeline: Any, hashes: dict[str, str], config: TransferConfig) -> None:
        """Raises: InputError for a pipeline that is not called with an image and a prompt."""
        self.name, self.pipeline, self.hashes = name, pipeline, hashes
        self.short_side = config.short_side or SHORT_SIDE
        self.seed, self.dtype = config.seed, config.diffusion.dtype
        self.device = pick(config.diffusion.device)
        self.takes = inspect.signature(pipeline.__call__).parameters
        if not {"image", "prompt"} <= self.takes.keys():
            raise InputError(
                f"{name} is a {type(pipeline).__name__}, which is not called with an image and a prompt: "
                "name an editing model with --generator.model"
            )
        asked = {"num_inference_steps": config.steps, "guidance_scale": config.guidance}
        self.asked = {option: value for option, value in asked.items() if value is not None}
        if missing := self.asked.keys() - self.takes.keys():
            raise InputError(f"{name} knows no {', '.join(sorted(missing))}: leave the option out")

    def size(self, height: int, width: int) -> tuple[int, int]:
        return working_size(height, width, self.short_side)

    def prepare(self, sources: Sequence[Source], rows: int) -> list[Source]:
        return [replace(source, image=self.reconstruct(source.image)) for source in sources]

    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        return resize(image, self.size(*image.shape[:2]))

    def generate(
        self, batch: list[Source], index: Sequence[int], domain: Domain, seeds: Sequence[int]
    ) -> np.ndarray:
        return np.stack([self._one(batch[i], domain, seed) for i, seed in zip(index, seeds, strict=True)])

    @torch.inference_mode()
    def _one(self, source: Source, domain: Domain, seed: int) -> np.ndarray:
        height, width = source.image.shape[:2]
        own = transforms.key_seed(seed, source.id, domain.slug) % 2**32
        optional = {
            "generator": torch.Generator().manual_seed(own),
            "strength": domain.strength,
            "height": height,
            "width": width,
            "_auto_resize": False,
        }
        try:
            out = self.pipeline(
                prompt=domain.prompt,
                image=Image.fromarray(source.image),
                **{option: value for option, value in optional.items() if option in self.takes},
                **self.asked,
            )
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            raise FrameError(
                f"editor '{self.name}' fails on {source.id} ({' '.join(str(error).split())[:160]}): try it "
                "alone in diffusers"
            ) from error
        images = getattr(out, "images", None)
        picture = None if images is None or len(images) == 0 else images[0]
        flags = getattr(out, "nsfw_content_detected", None)
        if not isinstance(picture, Image.Image) or (flags and flags[0]):
            raise FrameError(f"editor '{self.name}' returned no picture of {source.id}: try another --seed")
        if picture.size != (width, height):
            raise FrameError(
                f"editor '{self.name}' returned {picture.width}x{picture.height} of {source.id}: expected "
                f"{width}x{height}, so choose a --short-side that it keeps"
            )
        return np.asarray(picture.convert("RGB"))

    def settings(self, size: tuple[int, int], output_size: str) -> dict[str, Any]:
        return {**super().settings(size, output_size), **self.asked, "dtype": self.dtype}


def load(config: TransferConfig) -> Editor:
    """The editor of `config.diffusion.model`. Raises: InputError."""
    from diffusers import AutoPipelineForImage2Image, DiffusionPipeline

    from segshift.generators import loading

    diffusion: DiffusionConfig = config.diffusion
    if diffusion.model == "town":
        raise InputError("--generator editor without a model: name one with --generator.model")
    loading.pipeline(diffusion)
    home = loading.home(diffusion, {}, _FILES)
    for path in (*home.glob("*/config.json"), *home.glob("*/tokenizer_config.json")):
        loading.refuse_code(path)
    if code := sorted(home.glob("*/*.py")):
        raise InputError(f"{code[0]} is code that comes with a model, which is never run: choose another")
    given = {
        "torch_dtype": getattr(torch, diffusion.dtype),
        "use_safetensors": True,
        "local_files_only": True,
    }
    try:
        try:
            pipeline = AutoPipelineForImage2Image.from_pretrained(home, **given)
        except ValueError:  # no text-to-image model
            pipeline = DiffusionPipeline.from_pretrained(home, **given)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InputError(
            f"cannot load {home} as an editor ({' '.join(str(error).split())[:160]}): expected a whole "
            "pipeline of diffusers with weights in safetensors"
        ) from error
    where = pick(diffusion.device)
    if diffusion.offload == "none" or where.type == "cpu":
        pipeline.to(where)
    elif diffusion.offload == "parts":
        pipeline.enable_model_cpu_offload(device=where)
    else:
        pipeline.enable_sequential_cpu_offload(device=where)
    pipeline.set_progress_bar_config(disable=True)
    files = sorted(home.glob("*/*.safetensors"))
    return Editor(diffusion.model, pipeline, {str(f.relative_to(home)): file_hash(f) for f in files}, config)

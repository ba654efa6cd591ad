"""Rectified flow on latents in packs of 2x2: what FLUX.1 and its like share.

Liu, Gong, Liu, "Flow Straight and Fast", arXiv 2209.03003; the shift of time by the size of the picture is of
Esser et al., "Scaling Rectified Flow Transformers", arXiv 2403.03206.

| symbol | meaning |
|---|---|
| u | share of the schedule's time, in [0, 1] |
| m | shift: larger for larger pictures, which need more noise to lose as much |
| b = m u / (1 + (m - 1) u), a = 1 - b | noise and signal at u, so b/a = m u / (1 - u) |

A strength means the same noise b/a in every size and for every shift of the model's: that of u = strength at
the family's usual m, which is that of its first model for a picture of 2:1 with its default short side.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from segshift.generators.base import Defaults, Record
from segshift.generators.parts import PartsOfAFolder
from segshift.generators.schedule import Point
from segshift.runs import InputError


def pack(z: Tensor) -> Tensor:
    """[B,C,h,w] to [B,hw/4,4C]: a row for every 2x2 elements."""
    rows, channels, height, width = z.shape
    z = z.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return z.reshape(rows, height * width // 4, 4 * channels)


def unpack(packed: Tensor, size: tuple[int, int]) -> Tensor:
    """Back to [B,C,h,w]. size: h and w."""
    rows, _, channels = packed.shape
    height, width = size
    z = packed.reshape(rows, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(rows, channels // 4, height, width)


@dataclass(eq=False, kw_only=True)
class Flow(PartsOfAFolder):
    """A transformer that predicts n - x0. `scheduler`: only its settings are used."""

    walks: ClassVar[str] = "transformer"
    kind_of_scheduler: ClassVar[Any] = FlowMatchEulerDiscreteScheduler
    usual_shift: ClassVar[float]
    """m at which strengths are counted."""

    prediction = "flow"

    name: str
    vae: Any
    transformer: Any
    controlnet: Any
    scheduler: FlowMatchEulerDiscreteScheduler
    tokenizer: PreTrainedTokenizerBase
    text_encoder: PreTrainedModel
    defaults: Defaults
    hashes: dict[str, str]

    def __post_init__(self) -> None:
        self.most_steps = self.scheduler.config.num_train_timesteps
        self.embed_layout = None

    def grid(self, steps: int, size: tuple[int, int]) -> list[Point]:
        """u = 1, ..., 1 / N in N equal steps, then 0. With `shift_terminal` b is stretched to end there."""
        m = self._shift(size)
        noise = [_noise(1 - i / steps, m) for i in range(steps)]
        if last := self.scheduler.config.shift_terminal:
            factor = (1 - last) / (1 - noise[-1]) if noise[-1] < 1 else 1.0
            noise = [1 - (1 - b) * factor for b in noise]
        return [self._at(b) for b in (*noise, 0.0)]

    def point(self, share: float, size: tuple[int, int]) -> Point:
        return self._at(_noise(share, self._shift(size)))

    def share(self, strength: float, size: tuple[int, int]) -> float:
        """The u with the b/a of u = strength at the usual m."""
        usual = self.usual_shift * strength
        return usual / (usual + self._shift(size) * (1 - strength))

    def _shift(self, size: tuple[int, int]) -> float:
        """m of latents of h x w."""
        config = self.scheduler.config
        if not config.use_dynamic_shifting:
            return config.shift
        least, most = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (most - least)
        mu = config.base_shift + slope * (size[0] * size[1] // 4 - least)
        return exp(mu) if config.time_shift_type == "exponential" else mu

    def _at(self, b: float) -> Point:
        return Point(self.scheduler.config.num_train_timesteps * b, 1 - b, b)

    @torch.inference_mode()
    def hint(self, pictures: Tensor) -> Record:
        """{"layout": [B,N,4C]}: the latents of the layout, packed."""
        if self.controlnet is None:
            raise ValueError(f"{self.name} was made without a ControlNet")
        return {"layout": pack(self.encode(pictures)).to(self.dtype)}

    @classmethod
    def _check(cls, home: Path, modules: dict[str, Any], scheduler: Any) -> None:
        transformer, controlnet = modules["transformer"].config, modules["controlnet"]
        channels = cls._channels(modules["vae"].config)
        if transformer.in_channels != 4 * channels:
            raise InputError(
                f"the transformer of {home} takes {transformer.in_channels} channels and its VAE makes "
                f"{channels}, in packs of four {4 * channels}: expected a text-to-image model, not one for "
                "inpainting or editing"
            )
        reads, writes = transformer.joint_attention_dim, cls._width(modules)
        if reads != writes:
            raise InputError(
                f"the transformer of {home} reads text of width {reads} and its text encoder writes "
                f"{writes}: take both from the same model"
            )
        if controlnet is not None:
            for name in ("in_channels", "joint_attention_dim", "num_attention_heads", "attention_head_dim"):
                theirs, ours = controlnet.config[name], transformer[name]
                if theirs != ours:
                    raise InputError(
                        f"the ControlNet has {name} {theirs} and the transformer of {home} {ours}: choose a "
                        f"ControlNet made for {cls.card.title}"
                    )

    @classmethod
    def _channels(cls, vae: Any) -> int:
        """Of the latents, by the VAE's configuration."""
        return vae.latent_channels

    @classmethod
    def _width(cls, modules: dict[str, Any]) -> int:
        """Of the text that the encoder writes."""
        raise NotImplementedError


class OneFrameFlow(Flow):
    """A flow whose VAE is one of videos, each picture a video of one frame, with latents that are normalised
    by channel."""

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        video = (2 * images - 1).to(self.vae.dtype)[:, :, None]
        mode = self.vae.encode(video).latent_dist.mode()[:, :, 0].float()
        mean, std = self._scale(mode)
        return (mode - mean) / std

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        mean, std = self._scale(z)
        video = (z * std + mean).to(self.vae.dtype)[:, :, None]
        return self._pixels(self.vae.decode(video).sample[:, :, 0])

    def _scale(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, [1,C,1,1]."""
        config = self.vae.config
        mean, std = (
            torch.tensor(values, device=z.device) for values in (config.latents_mean, config.latents_std)
        )
        return mean[None, :, None, None], std[None, :, None, None]

    def _require_room(self, prompt: str, found: int, most: int) -> None:
        """Raises: InputError for a prompt of more tokens than are read, `found` of `most`."""
        if found > most:
            raise InputError(
                f"the prompt '{prompt}' has {found} tokens with the words around it, and {self.name} reads "
                f"{most}: shorten it"
            )


def _noise(u: float, m: float) -> float:
    return m * u / (1 + (m - 1) * u)

"""Cosmos-Transfer2.5 with a ControlNet, for one frame.

NVIDIA, "World Simulation with Video Foundation Models for Physical AI", arXiv 2511.00062. A transformer for
videos with rectified flow (segshift.generators.flow); a picture is a video of one frame, and its latents are
kept without that axis. It is told besides the latents:

| input | what it is |
|---|---|
| b [B] | the share of noise itself, in (0, 1) |
| text [B,L,M] | all layers of Qwen2.5-VL on the prompt in a fixed frame of words, normalised, side by side |
| image [B,N,D] | zeros: nothing is known of an earlier frame |
| masks | zeros: no frame is given, and nothing is padded |

The schedule is that of Karras et al., "Elucidating the Design Space", arXiv 2206.00364, eq. 5, in the
noise-to-signal ratio:

    b/a = (r_min^(1/7) + u (r_max^(1/7) - r_min^(1/7)))^7, u the share of the schedule's time, in [0, 1]

It is the same for every size of picture. diffusers counts guidance from the prompt's own output: its 3 is 4
here. The ControlNet sees the layout as the VAE's latents of a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLWan,
    CosmosControlNetModel,
    CosmosTransformer3DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from segshift.generators.base import SENTENCE, Card, Defaults, Record
from segshift.generators.flow import OneFrameFlow
from segshift.generators.schedule import Point
from segshift.runs import InputError

CARD = Card(
    title="Cosmos-Transfer2.5",
    models=("nvidia/Cosmos-Transfer2.5-2B",),
    controlnets=("nvidia/Cosmos-Transfer2.5-2B",),
    licence="NVIDIA Open Model License: commercial use; it asks for a guardrail, which is not run here",
    layouts="colours (segments), or edges",
    parameters=11.3,
    strengths={"night": 0.518, "snow": 0.395, "rain": 0.395, "fog": 0.376, "game": 0.376, SENTENCE: 0.437},
    # diffusers' guidance, steps and height
    usual=Defaults(guidance=4.0, steps=36, short_side=704, palette="cityscapes"),
)

FRAME = (
    "<|im_start|>system\nYou are a helpful assistant who will provide prompts to an image generator."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
)
"""What the prompt is put into, as in the training."""

TOKENS = 512
"""L; what is left of it is padding, which is attended to as in the training."""

RHO = 7
USUAL_RANGE = (0.01, 200.0)
"""r_min and r_max at which strengths are counted: those of the published model."""


class CosmosTransfer(OneFrameFlow):
    """The parts. Records: text {"text": [B,L,M]}, layout {"layout": [B,C,h,w]}, the latents of the layout."""

    card: ClassVar[Card] = CARD
    parts: ClassVar[dict[str, Any]] = {
        "vae": AutoencoderKLWan,
        "transformer": CosmosTransformer3DModel,
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
    }
    kind_of_scheduler: ClassVar[Any] = UniPCMultistepScheduler
    kind_of_controlnet: ClassVar[Any] = CosmosControlNetModel

    def _embed(self, prompt: str) -> Record:
        words = FRAME.format(prompt)
        found = len(self.tokenizer(words).input_ids)
        self._require_room(prompt, found, TOKENS)
        tokens = self.tokenizer(words, padding="max_length", max_length=TOKENS, return_tensors="pt")
        out = self.text_encoder(input_ids=tokens.input_ids.to(self.device), output_hidden_states=True)
        layers = [layer.float() for layer in out.hidden_states[1:]]
        normal = [(x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-8) for x in layers]
        return {"text": torch.cat(normal, dim=-1).to(self.dtype)}  # a hundred thousand wide

    @torch.inference_mode()
    def hint(self, pictures: Tensor) -> Record:
        if self.controlnet is None:
            raise ValueError(f"{self.name} was made without a ControlNet")
        return {"layout": self.encode(pictures).to(self.dtype)}

    def grid(self, steps: int, size: tuple[int, int]) -> list[Point]:
        """u = 1, ..., 0 in N points, then no noise."""
        return [*(self.point(1 - i / max(steps - 1, 1), size) for i in range(steps)), self._at(0.0)]

    def point(self, share: float, size: tuple[int, int]) -> Point:
        ratio = _ratio(share, self._range)
        return self._at(ratio / (1 + ratio))

    def share(self, strength: float, size: tuple[int, int]) -> float:
        """The u with the b/a of u = strength in the usual range."""
        low, high = (bound ** (1 / RHO) for bound in self._range)
        return min((_ratio(strength, USUAL_RANGE) ** (1 / RHO) - low) / (high - low), 1.0)

    @property
    def _range(self) -> tuple[float, float]:
        config = self.scheduler.config
        return config.sigma_min, config.sigma_max

    @torch.inference_mode()
    def output(
        self, z: Tensor, point: Point, text: Record, hint: Record | None, control_strength: float
    ) -> Tensor:
        rows, _, height, width = z.shape
        config, blank = self.transformer.config, torch.zeros((), dtype=self.dtype, device=z.device)
        words: Any = text["text"].to(self.dtype)
        if config.img_context_dim_in:
            words = words, blank.expand(rows, config.img_context_num_tokens, config.img_context_dim_in)
        video = z.to(self.dtype)[:, :, None]
        given = {
            "timestep": torch.full((rows,), point.b, device=z.device),
            "encoder_hidden_states": words,
            "condition_mask": blank.expand(rows, 1, 1, height, width),
            "padding_mask": blank.expand(1, 1, height, width),
            "return_dict": False,
        }
        residuals = None
        if hint is not None and self.controlnet is not None:
            residuals = self.controlnet(
                controls_latents=hint["layout"][:, :, None],
                latents=video,
                conditioning_scale=control_strength,
                **given,
            )[0]
        out = self.transformer(video, block_controlnet_hidden_states=residuals, **given)[0]
        return out[:, :, 0].float()

    @classmethod
    def _check(cls, home: Path, modules: dict[str, Any], scheduler: Any) -> None:
        transformer, controlnet = modules["transformer"].config, modules["controlnet"]
        channels, layers = modules["vae"].config.z_dim, transformer.num_layers
        every = transformer.controlnet_block_every_n
        if transformer.in_channels != channels + 1 or not every:
            acts = f"every {every}th" if every else "none"
            raise InputError(
                f"the transformer of {home} takes {transformer.in_channels} channels, its VAE makes "
                f"{channels}, and a ControlNet acts on {acts} of its blocks: expected a {cls.card.title}, "
                "which takes one channel more than its VAE makes"
            )
        told = modules["text_encoder"].config.text_config
        reads, writes = _width(transformer), told.hidden_size * told.num_hidden_layers
        if reads != writes:
            raise InputError(
                f"the transformer of {home} reads text of width {reads} and the layers of its text encoder "
                f"write {writes}: take both from the same model"
            )
        kept = scheduler.config
        if not (kept.use_karras_sigmas and kept.use_flow_sigmas and kept.sigma_min and kept.sigma_max):
            raise InputError(
                f"{home}/scheduler has no range of noise (use_karras_sigmas, use_flow_sigmas, sigma_min, "
                f"sigma_max): expected the schedule of {cls.card.title}"
            )
        if controlnet is None:
            return
        theirs = controlnet.config
        pairs = {
            "n_controlnet_blocks": (theirs.n_controlnet_blocks, -(-layers // every)),
            "model_channels": (
                theirs.model_channels,
                transformer.num_attention_heads * transformer.attention_head_dim,
            ),
            "latent_channels": (theirs.latent_channels, channels + 2),
            "width of text": (_width(theirs), reads),
            "img_context_dim_in": (theirs.img_context_dim_in, transformer.img_context_dim_in),
        }
        for name, (found, expected) in pairs.items():
            if found != expected:
                raise InputError(
                    f"the ControlNet has {name} {found} and the transformer of {home} asks for {expected}: "
                    f"choose a ControlNet made for {cls.card.title}"
                )


def _ratio(u: float, bounds: tuple[float, float]) -> float:
    low, high = (bound ** (1 / RHO) for bound in bounds)
    return (low + u * (high - low)) ** RHO


def _width(config: Any) -> int:
    """Of the text that a network reads."""
    return config.crossattn_proj_in_channels if config.use_crossattn_projection else config.text_embed_dim


load_model, parameters = CosmosTransfer.load, CosmosTransfer.parameters

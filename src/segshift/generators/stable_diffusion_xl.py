"""Stable Diffusion XL with a ControlNet or a ControlNet-Union.

Podell et al., "SDXL", arXiv 2307.01952. The UNet is Stable Diffusion's, with more conditioning:

| input | what it is |
|---|---|
| text [B,L,M] | the last but one layers of two CLIP text encoders, side by side |
| pooled [B,P] | the second encoder's projected summary of the prompt |
| time_ids [B,6] | height and width of the original, top and left of its crop, height and width asked for |

The noise schedule is Stable Diffusion's, so a strength means the same noise-to-signal ratio b/a in both.

A ControlNet-Union (xinsir) takes several kinds of pictures, and is told by a one-hot vector which one it is
given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    UNet2DConditionModel,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from segshift.generators import loading
from segshift.generators.base import Card, Defaults, Record
from segshift.generators.stable_diffusion import StableDiffusion
from segshift.runs import InputError

CARD = Card(
    title="Stable Diffusion XL",
    models=("stabilityai/stable-diffusion-xl-base-1.0",),
    controlnets=("xinsir/controlnet-union-sdxl-1.0",),
    licence="CreativeML Open RAIL++-M: commercial use, with a list of forbidden uses; ControlNet: Apache 2.0",
    layouts="colours (ADE20K); a ControlNet-Union edges, too",
    parameters=4.72,
    trains=True,
    # diffusers' guidance, and a size at which 2:1 pictures have about the million pixels of the training
    usual=Defaults(guidance=5.0, short_side=768),
)

UNION_INDEX = {"colours": 5, "edges": 3}
"""Place of a segmentation, and of canny edges, among the pictures that a ControlNet-Union takes."""


class RowByRow(nn.Module):
    """An attention block of a ControlNet-Union whose rows do not see each other.

    In diffusers, as in the published code, it attends along the batch, so that a picture depends on its
    neighbours. For one picture that is this: the rows with and without the prompt are the same here.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,C] to [B,N,C]."""
        return self.block(x.reshape(1, -1, x.shape[-1])).reshape(x.shape)


@dataclass(eq=False)
class StableDiffusionXL(StableDiffusion):
    """The parts. Records: text {"text": [B,L,M], "pooled": [B,P]}, layout as Stable Diffusion's."""

    card: ClassVar[Card] = CARD
    parts: ClassVar[dict[str, Any]] = {
        "vae": AutoencoderKL,
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")

    tokenizer_2: PreTrainedTokenizerBase | None = None
    text_encoder_2: PreTrainedModel | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()  # it overflows in half precision and says so
        if isinstance(self.controlnet, ControlNetUnionModel):
            layers = self.controlnet.transformer_layes
            self.controlnet.transformer_layes = nn.ModuleList(RowByRow(layer) for layer in layers)

    def _embed(self, prompt: str) -> Record:
        hidden, pooled = [], None
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.tokenizer_2, self.text_encoder_2),
        ):
            if tokenizer is None or encoder is None:
                raise ValueError(f"{self.name} was made without a text encoder")
            tokens = self._tokens(prompt, tokenizer, encoder)
            out = encoder(tokens.input_ids, output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
            pooled = out[0]
        assert pooled is not None
        return {"text": torch.cat(hidden, dim=-1), "pooled": pooled}

    def _given(self, z: Tensor, t: float | Tensor, text: Record, dtype: torch.dtype) -> dict[str, Any]:
        """With the `time_ids` of a picture that was never cropped or resized."""
        pixels = 2 ** (len(self.vae.config.block_out_channels) - 1)
        size = [z.shape[-2] * pixels, z.shape[-1] * pixels]
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=dtype, device=z.device)
        pooled = text["pooled"].to(dtype)
        more = {"text_embeds": pooled, "time_ids": ids.repeat(len(z), 1)}
        return super()._given(z, t, text, dtype) | {"added_cond_kwargs": more}

    def _layout(self, layout: Tensor) -> dict[str, Any]:
        if not isinstance(self.controlnet, ControlNetUnionModel):
            return super()._layout(layout)
        index = UNION_INDEX[self.defaults.layout]
        kind = torch.zeros(len(layout), self.controlnet.config.num_control_type, device=layout.device)
        kind[:, index] = 1
        return {
            "controlnet_cond": [layout],
            "control_type": kind.to(self.dtype),
            "control_type_idx": [index],
        }

    @classmethod
    def _controlnet(cls, place: Path, dtype: torch.dtype) -> Any:
        """By its weights: published configurations call both the same."""
        _, files = loading.weights(place, loading.stem(ControlNetModel), dtype)
        union = False
        try:
            for file in files:
                with safe_open(file, "pt") as weights:
                    union |= "task_embedding" in weights.keys()  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise InputError(f"cannot read {file} ({error}): get the folder again") from error
        return ControlNetUnionModel if union else ControlNetModel

    @classmethod
    def _check(cls, home: Path, modules: dict[str, Any], scheduler: DDIMScheduler) -> None:
        super()._check(home, modules, scheduler)
        unet, controlnet = modules["unet"].config, modules["controlnet"]
        pooled = modules["text_encoder_2"].config.projection_dim
        reads = _pooled(unet)
        if reads != pooled:
            raise InputError(
                f"the UNet of {home} reads {_width(reads)} and its text_encoder_2 writes a summary of "
                f"{pooled}: expected the parts of one {cls.card.title}, and not of its refiner"
            )
        if controlnet is not None and (takes := _pooled(controlnet.config)) != reads:
            raise InputError(
                f"the ControlNet reads {_width(takes)} and the UNet of {home} {_width(reads)}: choose a "
                f"ControlNet made for {cls.card.title}"
            )


def _pooled(config: Any) -> int | None:
    """Width of the summary of the prompt that a network reads besides six numbers; None where it reads
    none."""
    if config.addition_embed_type != "text_time":
        return None
    return config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim


def _width(pooled: int | None) -> str:
    return "no summary of the prompt" if pooled is None else f"a summary of {pooled}"


load_model, parameters = StableDiffusionXL.load, StableDiffusionXL.parameters

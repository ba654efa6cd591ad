"""FLUX.1 with a ControlNet.

Black Forest Labs, "FLUX.1", 2024. A transformer with rectified flow (segshift.generators.flow), told besides
the latents:

| input | what it is |
|---|---|
| text [B,L,M] | the last layer of a T5 encoder |
| pooled [B,P] | CLIP's summary of the prompt |
| ids | for each pack of latents its row and column, for text 0 |
| guidance [B] | w of classifier-free guidance, which FLUX.1 [dev] learned to follow in one pass |

With guidance as an input there is no negative prompt, and a step costs one pass instead of two. The noise of
the inversion is predicted at w = 1. FLUX.1 [schnell] has no such input, is guided as any model is, and takes
four steps without guidance where nothing else is said. Under guidance the ControlNet reads each prompt, where
diffusers gives the negative pass the residuals of the other.

A ControlNet sees the layout as a picture (XLabs) or as the VAE's latents of one (all others). Published ones
take canny or soft edges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FluxControlNetModel,
    FluxTransformer2DModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

from segshift.generators.base import SENTENCE, Card, Defaults, Record
from segshift.generators.flow import Flow, pack, unpack
from segshift.generators.schedule import Point
from segshift.runs import InputError

CARD = Card(
    title="FLUX.1",
    models=("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"),
    controlnets=(
        "Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0",
        "InstantX/FLUX.1-dev-Controlnet-Canny",
    ),
    licence="[dev] and its ControlNets: FLUX.1 [dev] Non-Commercial License, to be accepted on the hub; "
    "[schnell]: Apache 2.0",
    layouts="edges",
    parameters=19.0,
    strengths={"night": 0.708, "snow": 0.444, "rain": 0.444, "fog": 0.399, "game": 0.399, SENTENCE: 0.543},
    # diffusers' guidance and steps, and a size at which 2:1 pictures have about a million pixels
    usual=Defaults(guidance=3.5, steps=28, short_side=768, layout="edges"),
)

UNION_MODE = 0
"""What a ControlNet of several kinds calls canny edges."""


@dataclass(eq=False, kw_only=True)
class Flux(Flow):
    """The parts. Records: text {"text": [B,L,M], "pooled": [B,P], "guidance": [B]}, layout {"layout":
    [B,N,4C]}, of an XLabs ControlNet its embedding [B,C0,h,w]."""

    card: ClassVar[Card] = CARD
    parts: ClassVar[dict[str, Any]] = {
        "vae": AutoencoderKL,
        "transformer": FluxTransformer2DModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")
    kind_of_controlnet: ClassVar[Any] = FluxControlNetModel
    usual_shift: ClassVar[float] = exp(0.5 + (1.15 - 0.5) / (4096 - 256) * (48 * 96 - 256))

    tokenizer_2: PreTrainedTokenizerBase
    text_encoder_2: PreTrainedModel

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reads_negative = not self.transformer.config.guidance_embeds
        if self.controlnet is not None and self.controlnet.input_hint_block is not None:
            self.embed_layout = self.controlnet.input_hint_block  # once per image, not at every step
            self.controlnet.input_hint_block = nn.Identity()
        if self.controlnet is not None and self.controlnet.union and self.defaults.layout != "edges":
            raise InputError(
                f"the ControlNet of {self.name} is one of several kinds of pictures, none of which has "
                f"classes in {self.defaults.layout}: take `edges` in its segshift.json"
            )

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        config = self.vae.config
        mode = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist.mode().float()
        return (mode - config.shift_factor) * config.scaling_factor

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        config = self.vae.config
        latents = z / config.scaling_factor + config.shift_factor
        return self._pixels(self.vae.decode(latents.to(self.vae.dtype)).sample)

    def _embed(self, prompt: str) -> Record:
        long = self._tokens(prompt, self.tokenizer_2, self.text_encoder_2)
        short = self.tokenizer(  # a summary, so CLIP may read the beginning alone
            prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        return {
            "text": self.text_encoder_2(long.input_ids)[0],
            "pooled": self.text_encoder(short.input_ids).pooler_output,
            "guidance": torch.ones(1, device=self.device),
        }

    @torch.inference_mode()
    def hint(self, pictures: Tensor) -> Record:
        if self.embed_layout is None:
            return super().hint(pictures)
        return {"layout": self.embed_layout((2 * pictures - 1).to(self.dtype))}

    def denoise(
        self,
        z: Tensor,
        point: Point,
        text: Record,
        hint: Record | None,
        control_strength: float = 1.0,
        *,
        negative: Record | None = None,
        guidance: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """As every family's; with guidance as an input, that of one pass, and `negative` is not read."""
        if not self.reads_negative:
            text = text | {"guidance": torch.full_like(text["guidance"], guidance)}
            negative = None
        return super().denoise(z, point, text, hint, control_strength, negative=negative, guidance=guidance)

    @torch.inference_mode()
    def output(
        self, z: Tensor, point: Point, text: Record, hint: Record | None, control_strength: float
    ) -> Tensor:
        size = z.shape[-2], z.shape[-1]
        given = {
            "hidden_states": pack(z).to(self.dtype),
            "timestep": torch.full((len(z),), point.b, device=z.device),
            "encoder_hidden_states": text["text"].to(self.dtype),
            "pooled_projections": text["pooled"].to(self.dtype),
            "txt_ids": torch.zeros(text["text"].shape[1], 3, device=z.device),
            "img_ids": _ids(size).to(z.device),
            "return_dict": False,
        }
        residuals: dict[str, Any] = {}
        if hint is not None and self.controlnet is not None:
            kind = torch.full((len(z), 1), UNION_MODE, device=z.device) if self.controlnet.union else None
            double, single = self.controlnet(
                **given,
                guidance=text["guidance"] if self.controlnet.config.guidance_embeds else None,
                controlnet_cond=hint["layout"],
                controlnet_mode=kind,
                conditioning_scale=control_strength,
            )
            residuals = {
                "controlnet_block_samples": double,
                "controlnet_single_block_samples": single,
                "controlnet_blocks_repeat": self.embed_layout is not None,
            }
        guidance = text["guidance"] if self.transformer.config.guidance_embeds else None
        return unpack(self.transformer(**given, guidance=guidance, **residuals)[0].float(), size)

    @classmethod
    def _usual(cls, modules: dict[str, Any]) -> Defaults:
        distilled = not modules["transformer"].config.guidance_embeds  # FLUX.1 [schnell]
        return replace(CARD.usual, guidance=1.0, steps=4) if distilled else CARD.usual

    @classmethod
    def _width(cls, modules: dict[str, Any]) -> int:
        return modules["text_encoder_2"].config.hidden_size

    @classmethod
    def _check(cls, home: Path, modules: dict[str, Any], scheduler: Any) -> None:
        super()._check(home, modules, scheduler)
        writes = modules["text_encoder"].config.hidden_size
        for part in ("transformer", "controlnet"):
            if modules[part] is not None and (reads := modules[part].config.pooled_projection_dim) != writes:
                raise InputError(
                    f"the {part} reads a summary of {reads} and the text_encoder of {home} writes one of "
                    f"{writes}: take both from the same model"
                )


def _ids(size: tuple[int, int]) -> Tensor:
    """[hw/4, 3]: 0, row and column of each pack of latents of h x w."""
    rows, columns = torch.meshgrid(torch.arange(size[0] // 2), torch.arange(size[1] // 2), indexing="ij")
    return torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(-1, 3).float()


load_model, parameters = Flux.load, Flux.parameters

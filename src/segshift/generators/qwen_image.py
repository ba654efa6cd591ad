"""Qwen-Image with a ControlNet.

Wu et al., "Qwen-Image Technical Report", arXiv 2508.02324. A transformer with rectified flow
(segshift.generators.flow), told besides the latents:

| input | what it is |
|---|---|
| text [B,L,M] | the last layer of Qwen2.5-VL on the prompt in a fixed frame of words, from token 34 on |
| mask [B,L] | which of the L rows are of the prompt; the others are padding |

The VAE is one of videos: a picture is a video of one frame, and its latents are kept without that axis.

Guidance keeps the length that each pack of the output has under the prompt, as in diffusers. Under guidance
the ControlNet reads each prompt, where diffusers gives the negative pass the residuals of the other. A
ControlNet sees the layout as the VAE's latents of a picture; published ones take canny or soft edges.
"""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from segshift.generators.base import SENTENCE, Card, Defaults, Record
from segshift.generators.flow import OneFrameFlow, pack, unpack
from segshift.generators.schedule import Point
from segshift.runs import InputError

CARD = Card(
    title="Qwen-Image",
    models=("Qwen/Qwen-Image",),
    controlnets=("InstantX/Qwen-Image-ControlNet-Union",),
    licence="Apache 2.0, also of the ControlNet",
    layouts="edges",
    parameters=30.6,
    strengths={"night": 0.803, "snow": 0.572, "rain": 0.572, "fog": 0.527, "game": 0.527, SENTENCE: 0.666},
    # diffusers' guidance; steps and size are ours
    usual=Defaults(guidance=4.0, steps=30, short_side=768, layout="edges"),
)

FRAME = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""What the prompt is put into, as in the training."""

CUT = 34
"""Tokens of FRAME before the prompt."""

TOKENS = 256
"""L: rows of text that the transformer is given; prompts of one batch have as many."""


class QwenImage(OneFrameFlow):
    """The parts. Records: text {"text": [B,L,M], "mask": [B,L]}, layout {"layout": [B,N,4C]}."""

    card: ClassVar[Card] = CARD
    parts: ClassVar[dict[str, Any]] = {
        "vae": AutoencoderKLQwenImage,
        "transformer": QwenImageTransformer2DModel,
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
    }
    kind_of_controlnet: ClassVar[Any] = QwenImageControlNetModel
    usual_shift: ClassVar[float] = exp(0.5 + (0.9 - 0.5) / (8192 - 256) * (48 * 96 - 256))

    def _embed(self, prompt: str) -> Record:
        tokens = self.tokenizer(FRAME.format(prompt), return_tensors="pt").to(self.device)
        found = tokens.input_ids.shape[1] - CUT
        self._require_room(prompt, found, TOKENS)
        out = self.text_encoder(
            input_ids=tokens.input_ids, output_hidden_states=True
        )  # nothing is padded yet
        text = out.hidden_states[-1][:, CUT:]
        mask = torch.arange(TOKENS, device=self.device)[None] < found
        return {"text": nn.functional.pad(text, (0, 0, 0, TOKENS - found)), "mask": mask.long()}

    def combined(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """o(negative) + w (o(text) - o(negative)), each pack at the length that o(text) has there."""
        size = conditional.shape[-2], conditional.shape[-1]
        guided, plain = pack(super().combined(unconditional, conditional, guidance)), pack(conditional)
        return unpack(guided * (plain.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)), size)

    @torch.inference_mode()
    def output(
        self, z: Tensor, point: Point, text: Record, hint: Record | None, control_strength: float
    ) -> Tensor:
        size = z.shape[-2], z.shape[-1]
        given = {
            "hidden_states": pack(z).to(self.dtype),
            "timestep": torch.full((len(z),), point.b, dtype=self.dtype, device=z.device),
            "encoder_hidden_states": text["text"].to(self.dtype),
            "encoder_hidden_states_mask": text["mask"],
            "img_shapes": [(1, size[0] // 2, size[1] // 2)] * len(z),
            "return_dict": False,
        }
        residuals = None
        if hint is not None and self.controlnet is not None:
            residuals = self.controlnet(
                **given, controlnet_cond=hint["layout"], conditioning_scale=control_strength
            )
        out = self.transformer(**given, controlnet_block_samples=residuals)[0]
        return unpack(out.float(), size)

    @classmethod
    def _channels(cls, vae: Any) -> int:
        return vae.z_dim

    @classmethod
    def _width(cls, modules: dict[str, Any]) -> int:
        return modules["text_encoder"].config.text_config.hidden_size

    @classmethod
    def _check(cls, home: Path, modules: dict[str, Any], scheduler: Any) -> None:
        super()._check(home, modules, scheduler)
        controlnet = modules["controlnet"]
        if controlnet is not None and controlnet.config.extra_condition_channels:
            raise InputError(
                "the ControlNet takes a mask besides its picture, as for inpainting: choose one that takes "
                "edges"
            )


load_model, parameters = QwenImage.load, QwenImage.parameters

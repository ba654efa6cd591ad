"""Stable Diffusion 1.x and 2.x with a ControlNet, read from a diffusers pipeline folder or from the hub.

The embedded prior and the user's own models are the same code path: a folder with `unet/`, `vae/`,
`text_encoder/`, `tokenizer/` and `scheduler/`, with or without `controlnet/`.

A v-prediction is turned into eps and x0 without dividing by sqrt(abar_t), so any Stable Diffusion 2 works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from segshift.generators.base import Card, Defaults, Record
from segshift.generators.parts import PartsOfAFolder, dtype_of
from segshift.generators.schedule import Point, Points, PredictionType
from segshift.runs import InputError

CARD = Card(
    title="Stable Diffusion 1, 2",
    models=("stable-diffusion-v1-5/stable-diffusion-v1-5",),
    controlnets=("lllyasviel/control_v11p_sd15_seg",),
    licence="CreativeML Open RAIL-M: commercial use, with a list of forbidden uses",
    layouts="colours (ADE20K)",
    parameters=1.43,
    trains=True,
)


@dataclass(eq=False)
class StableDiffusion(PartsOfAFolder):
    """The parts. Records: text {"text": [B,L,M]}, layout {"layout": [B,C0,h,w]}, the ControlNet's embedding
    of it."""

    card: ClassVar[Card] = CARD
    parts: ClassVar[dict[str, Any]] = {
        "vae": AutoencoderKL,
        "unet": UNet2DConditionModel,
        "text_encoder": AutoModel,
    }
    walks: ClassVar[str] = "unet"
    kind_of_scheduler: ClassVar[Any] = DDIMScheduler
    kind_of_controlnet: ClassVar[Any] = ControlNetModel

    name: str
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None
    """Takes embedded layouts: its own embedding becomes `embed_layout`."""
    scheduler: DDIMScheduler
    """Only its tables are used: `alphas_cumprod` and the kind of prediction."""
    tokenizer: PreTrainedTokenizerBase | None = None
    text_encoder: PreTrainedModel | None = None
    defaults: Defaults = field(default_factory=Defaults)
    hashes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.most_steps = self.scheduler.config.num_train_timesteps - 1
        self.prediction: PredictionType = self.scheduler.config.prediction_type
        self.embed_layout = None
        if self.controlnet is not None:  # diffusers would embed the layout again at every step
            self.embed_layout = self.controlnet.controlnet_cond_embedding
            self.controlnet.controlnet_cond_embedding = nn.Identity()

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        posterior = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist
        return self.vae.config.scaling_factor * posterior.mode().float()

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        return self._pixels(self.vae.decode((z / self.vae.config.scaling_factor).to(self.vae.dtype)).sample)

    def _embed(self, prompt: str) -> Record:
        if self.tokenizer is None or self.text_encoder is None:
            raise ValueError(f"{self.name} was made without a text encoder")
        tokens = self._tokens(prompt, self.tokenizer, self.text_encoder)
        # Stable Diffusion 1 attends to the padding too; a text encoder that does not says so in its config
        config = self.text_encoder.config
        mask = tokens.attention_mask if getattr(config, "use_attention_mask", False) else None
        return {"text": self.text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state}

    @torch.inference_mode()
    def hint(self, pictures: Tensor) -> Record:
        if self.embed_layout is None:
            raise ValueError(f"{self.name} was made without a ControlNet")
        return {"layout": self.embed_layout(pictures.to(self.dtype))}

    def grid(self, steps: int, size: tuple[int, int]) -> list[Point]:
        """The leading DDIM grid: 951, ..., 51, 1 for 20 steps, then the time step before the first."""
        config = self.scheduler.config
        stride = config.num_train_timesteps // steps
        return [self._at(i * stride + config.steps_offset) for i in range(steps - 1, -2, -1)]

    def point(self, share: float, size: tuple[int, int]) -> Point:
        """t = int(s T), at most T - 1."""
        return self._at(min(int(share * self.scheduler.config.num_train_timesteps), self.most_steps))

    def _at(self, t: int) -> Point:
        """Before the first time step abar is abar_0, or 1 where the model's schedule says so."""
        abar = float(self.scheduler.alphas_cumprod[t] if t >= 0 else self.scheduler.final_alpha_cumprod)
        return Point(t, abar**0.5, (1 - abar) ** 0.5)

    @torch.inference_mode()
    def output(
        self, z: Tensor, point: Point, text: Record, hint: Record | None, control_strength: float
    ) -> Tensor:
        return self.predict(z, point.t, text, None if hint is None else hint["layout"], control_strength)

    def predict(
        self, z: Tensor, t: float | Tensor, text: Record, layout: Tensor | None, control_strength: float
    ) -> Tensor:
        """`output`, with gradients. t: a number, or one for each row [B]. layout: that of a hint."""
        residuals: dict[str, Any] = {}
        if layout is not None and self.controlnet is not None:
            dtype = dtype_of(self.controlnet)
            down, middle = self.controlnet(
                **self._given(z, t, text, dtype),
                **self._layout(layout.to(dtype)),
                conditioning_scale=control_strength,
                return_dict=False,
            )
            residuals = {
                "down_block_additional_residuals": [residual.to(self.dtype) for residual in down],
                "mid_block_additional_residual": middle.to(self.dtype),
            }
        return self.unet(**self._given(z, t, text, self.dtype), **residuals, return_dict=False)[0].float()

    def points(self, t: Tensor) -> Points:
        """The points of time steps [B], 0 to `most_steps`."""
        return Points.of(self.scheduler.alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1))

    def learn_control(self, *, anew: bool) -> ControlNetModel:
        """The ControlNet in float32, whole and to be trained, which this model uses from now on; layouts are
        pictures [B,3,H,W] to it then.

        anew: made of the UNet's own encoder and convolutions of zeros (Zhang et al., "Adding Conditional
        Control", arXiv 2302.05543), not the one that was loaded. Raises: InputError for one that takes
        several kinds of pictures.
        """
        if anew:
            halvings = len(self.vae.config.block_out_channels) - 1
            channels = (16, 32, 96, *[256] * halvings)[: halvings + 1]  # as the published ones
            self.controlnet = ControlNetModel.from_unet(
                self.unet, conditioning_embedding_out_channels=channels
            )
            self.controlnet.to(self.device)
        elif isinstance(self.controlnet, ControlNetModel):
            self.controlnet.controlnet_cond_embedding = self.embed_layout
        else:
            raise InputError(
                "a ControlNet-Union takes several kinds of pictures: start from a ControlNet that takes one, "
                "or leave --diffusion.controlnet out"
            )
        self.embed_layout = nn.Identity()
        return self.controlnet.float().requires_grad_(True)

    def _given(self, z: Tensor, t: float | Tensor, text: Record, dtype: torch.dtype) -> dict[str, Any]:
        """What UNet and ControlNet are given alike."""
        return {"sample": z.to(dtype), "timestep": t, "encoder_hidden_states": text["text"].to(dtype)}

    def _layout(self, layout: Tensor) -> dict[str, Any]:
        """What the ControlNet is given of embedded layouts."""
        return {"controlnet_cond": layout}

    @classmethod
    def _check(cls, home: Path, modules: dict[str, Any], scheduler: DDIMScheduler) -> None:
        unet, vae, controlnet = modules["unet"], modules["vae"], modules["controlnet"]
        text = sum(modules[part].config.hidden_size for part in cls.parts if part.startswith("text_encoder"))
        if unet.config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"the UNet of {home} takes {unet.config.in_channels} channels and its VAE makes "
                f"{vae.config.latent_channels}: expected a text-to-image model, not one for inpainting or "
                "upscaling"
            )
        if text != unet.config.cross_attention_dim:
            raise InputError(
                f"the UNet of {home} reads text of width {unet.config.cross_attention_dim} and its text "
                f"encoder writes {text}: take both from the same model"
            )
        if (
            controlnet is not None
            and controlnet.config.cross_attention_dim != unet.config.cross_attention_dim
        ):
            raise InputError(
                f"the ControlNet reads text of width {controlnet.config.cross_attention_dim} and the UNet of "
                f"{home} {unet.config.cross_attention_dim}: choose a ControlNet made for this model (Stable "
                "Diffusion 1 has 768, 2 has 1024, XL 2048)"
            )
        if controlnet is not None and controlnet.config.controlnet_conditioning_channel_order != "rgb":
            raise InputError(
                "the ControlNet takes its layout as BGR: expected one that takes RGB, as the published ones "
                "do"
            )
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(
                f"{home}/scheduler predicts '{scheduler.config.prediction_type}': expected epsilon or "
                "v_prediction"
            )


load_model, parameters = StableDiffusion.load, StableDiffusion.parameters

"""Stable Diffusion 1.x and 2.x with a ControlNet, read from a diffusers pipeline folder or from the hub.

The embedded prior and the user's own models are the same code path: a folder with `unet/`, `vae/`,
`text_encoder/`, `tokenizer/` and `scheduler/`, with or without `controlnet/`. A hub name is first fetched
into such a folder. A safety checker is never read.

A v-prediction is turned into eps and x0 without dividing by sqrt(abar_t), so any Stable Diffusion 2 works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from segshift.config import DiffusionConfig, TransferConfig
from segshift.execution.device import pick
from segshift.generators import loading
from segshift.generators.base import Card, Defaults, DiffusionFamily, Record, join
from segshift.generators.schedule import Point, Prediction
from segshift.runs import InputError

CARD = Card(
    title="Stable Diffusion 1, 2",
    models=("stable-diffusion-v1-5/stable-diffusion-v1-5",),
    controlnets=("lllyasviel/control_v11p_sd15_seg",),
    licence="CreativeML Open RAIL-M: commercial use, with a list of forbidden uses",
    layouts="colours (ADE20K)",
    parameters=1.43,
)


@dataclass(eq=False)
class StableDiffusion(DiffusionFamily):
    """The parts. Records: text {"text": [B,L,M]}, layout {"layout": [B,C0,h,w]}, the ControlNet's embedding
    of it."""

    card: ClassVar[Card] = CARD
    parts: ClassVar[dict[str, Any]] = {
        "vae": AutoencoderKL,
        "unet": UNet2DConditionModel,
        "text_encoder": AutoModel,
    }
    """Class of each network, by its folder."""
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    """Their folders."""
    usual: ClassVar[Defaults] = Defaults()
    """Defaults of a model that brings none."""

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
        self.prediction: Prediction = self.scheduler.config.prediction_type
        self.embed_layout: nn.Module | None = None
        if self.controlnet is not None:  # diffusers would embed the layout again at every step
            self.embed_layout = self.controlnet.controlnet_cond_embedding
            self.controlnet.controlnet_cond_embedding = nn.Identity()

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        posterior = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist
        return self.vae.config.scaling_factor * posterior.mode().float()

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Cut off (not rounded) to grey levels, as ZoDi's code does."""
        images = self.vae.decode((z / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()
        if not images.isfinite().all():  # of which a black picture would tell nobody
            raise InputError(
                f"{self.name} made a picture that is not finite in {self.dtype}: take --diffusion.dtype "
                "bfloat16 or float32, in a new folder"
            )
        return (images * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str]) -> Record:
        rows = [self._embed(prompt) for prompt in prompts]
        record = rows[0]
        for row in rows[1:]:
            record = join(record, row)
        return record

    def _embed(self, prompt: str) -> Record:
        """Text conditioning of one row."""
        if self.tokenizer is None or self.text_encoder is None:
            raise ValueError(f"{self.name} was made without a text encoder")
        tokens = self._tokens(prompt, self.tokenizer, self.text_encoder)
        # Stable Diffusion 1 attends to the padding too; a text encoder that does not says so in its config
        config = self.text_encoder.config
        mask = tokens.attention_mask if getattr(config, "use_attention_mask", False) else None
        return {"text": self.text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state}

    def _tokens(self, prompt: str, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel) -> Any:
        """The prompt's tokens [1,L], padded to what the encoder reads. Raises: InputError where it has
        more."""
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        found = len(tokenizer(prompt).input_ids)
        if found > length:
            raise InputError(
                f"the prompt '{prompt}' has {found} tokens, and the text encoder of {self.name} reads "
                f"{length}: shorten it"
            )
        return tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt").to(
            encoder.device
        )

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
        inputs = z.to(self.dtype), point.t, text["text"].to(self.dtype)
        more = self._conditioning(text, z)
        residuals: dict[str, Any] = {}
        if hint is not None and self.controlnet is not None:
            down, middle = self.controlnet(
                *inputs,
                **self._layout(hint["layout"]),
                **more,
                conditioning_scale=control_strength,
                return_dict=False,
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(*inputs, **residuals, **more, return_dict=False)[0].float()

    def _conditioning(self, text: Record, z: Tensor) -> dict[str, Any]:
        """What UNet and ControlNet are given besides the latents, the time and the text."""
        return {}

    def _layout(self, layout: Tensor) -> dict[str, Any]:
        """What the ControlNet is given of embedded layouts."""
        return {"controlnet_cond": layout}

    # ------------------------------------------------------------------------------------------- loading

    @classmethod
    def load(cls, config: DiffusionConfig, *, control: bool = True) -> Self:
        """The model that `config` names; without the ControlNet when `control` is False.

        Raises: InputError when a folder, a file or a download is missing or broken, or when the parts do not
        fit.
        """
        transformers_logging.disable_progress_bar()
        dtype = getattr(torch, config.dtype)
        home = loading.home(
            config,
            {part: loading.stem(kind) for part, kind in cls.parts.items()},
            tuple(f"{name}/*" for name in (*cls.tokenizers, "scheduler")),
        )
        places = {part: home / part for part in cls.parts}
        if control:
            places["controlnet"] = cls._controlnet_home(config, home, dtype)
        modules: dict[str, Any] = {"controlnet": None}
        hashes: dict[str, str] = {}
        for part, place in places.items():
            if not place.is_dir():
                raise InputError(
                    f"no folder {place}: a model of {cls.card.title} has {', '.join(cls.parts)}: get the "
                    "whole folder"
                )
            kind = cls._controlnet(place, dtype) if part == "controlnet" else cls.parts[part]
            modules[part], hashes[part] = loading.part(kind, place, dtype)
        scheduler, tokenizers = loading.scheduler_and_tokenizers(home, cls.tokenizers)
        cls._check(home, modules, scheduler)
        where = pick(config.device)
        for part in places:
            modules[part].requires_grad_(False).eval().to(where)
            if where.type != "mps":
                modules[part].to(memory_format=torch.channels_last)  # a tenth faster on the CPU, too
        homes = (home, places["controlnet"]) if control else (home,)
        return cls(
            name=config.model,
            scheduler=scheduler,
            defaults=loading.defaults(cls.usual, *homes),
            hashes=hashes,
            **tokenizers,
            **modules,
        )

    @classmethod
    def parameters(cls, config: DiffusionConfig) -> dict[str, int]:
        """Weights of each network of the model that `config` names, by its configuration; the ControlNet's
        where one is in the same folder or named. Of a hub model no weights are fetched. Raises: InputError.
        """
        configs = tuple(f"{part}/config.json" for part in cls.parts)
        home = loading.home(config, {}, configs)
        kinds = {home / part: kind for part, kind in cls.parts.items()}
        beside = home / "controlnet"
        if config.controlnet or beside.is_dir():
            place = cls._controlnet_home(config, home, torch.float32) if config.controlnet else beside
            kinds[place] = cls._controlnet(place, torch.float32)
        return {place.name: loading.parameters(kind, place) for place, kind in kinds.items()}

    @classmethod
    def _controlnet_home(cls, config: DiffusionConfig, home: Path, dtype: torch.dtype) -> Path:
        usual = cls.card.controlnets[0]
        if config.controlnet is None:
            if (home / "controlnet").is_dir():
                return home / "controlnet"
            if config.model == "town" or Path(config.model).expanduser().is_dir():
                raise InputError(
                    f"no folder {home / 'controlnet'}: name a ControlNet with --diffusion.controlnet (a "
                    f"local folder or {usual}), or transfer without one (--no-control)"
                )
        name = config.controlnet or usual
        revision = config.controlnet_revision or loading.REVISIONS.get(name)
        weights = {".": "diffusion_pytorch_model"}
        return loading.folder(name, revision, dtype, "--diffusion.controlnet", weights, ())

    @classmethod
    def _controlnet(cls, place: Path, dtype: torch.dtype) -> Any:
        """The class of the ControlNet in a folder. Raises: InputError where it has no weights."""
        return ControlNetModel

    @classmethod
    def _check(cls, home: Path, modules: dict[str, Any], scheduler: DDIMScheduler) -> None:
        """Parts of different models load well and fail late, with a message about matrix shapes."""
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


def load(config: TransferConfig) -> StableDiffusion:
    """The model of `config.diffusion`, without the ControlNet where the configuration does without.

    Raises: InputError, as `StableDiffusion.load`.
    """
    return load_model(config.diffusion, control=config.control)

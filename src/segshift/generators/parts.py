"""Diffusion models read part by part from a pipeline's folder or from the hub: what families of them share.

A folder has one sub-folder for each part, with or without `controlnet/`. A hub name is first fetched into
such a folder. A safety checker is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from segshift.config import DiffusionConfig
from segshift.execution.device import pick
from segshift.generators import loading, offload
from segshift.generators.base import Defaults, DiffusionFamily, Record, join
from segshift.runs import InputError


def dtype_of(module: nn.Module) -> torch.dtype:
    """Of a network's weights. Its own property walks over every module: a millisecond, many times a step."""
    return next(module.parameters()).dtype


class PartsOfAFolder(DiffusionFamily):
    """A family whose constructor takes its name, a module for each of `parts`, `controlnet` (or None),
    `scheduler`, a tokenizer for each of `tokenizers`, `defaults` and `hashes`."""

    parts: ClassVar[dict[str, Any]]
    """Class of each network, by its folder."""
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    """Their folders."""
    walks: ClassVar[str]
    """The part that predicts the noise."""
    kind_of_scheduler: ClassVar[Any]
    kind_of_controlnet: ClassVar[Any]
    most_tokens: ClassVar[int] = 512
    """Of a text encoder that has no limit of its own."""

    embed_layout: nn.Module | None
    """What the ControlNet does with a layout before the first step; None where it is given latents."""
    _where: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks compute; weights may wait elsewhere."""
        return self._where or getattr(self, self.walks).device

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(getattr(self, self.walks))

    def _pixels(self, images: Tensor) -> Tensor:
        """[B,3,H,W] in [-1, 1] to uint8, cut off (not rounded) to grey levels, as ZoDi's code does. Raises:
        InputError when they are not finite."""
        images = images.float()
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
        raise NotImplementedError

    def _tokens(self, prompt: str, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel) -> Any:
        """The prompt's tokens [1,L], padded to what the encoder reads. Raises: InputError where it has
        more."""
        length = min(
            tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", self.most_tokens)
        )
        found = len(tokenizer(prompt, verbose=False).input_ids)
        if found > length:
            raise InputError(
                f"the prompt '{prompt}' has {found} tokens, and the text encoder of {self.name} reads "
                f"{length}: shorten it"
            )
        return tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt").to(self.device)

    @classmethod
    def load(cls, config: DiffusionConfig, *, control: bool = True) -> Self:
        """The model that `config` names; without the ControlNet when `control` is False.

        Raises: InputError when a folder, a file or a download is missing or broken, or when the parts do not
        fit.
        """
        diffusers_logging.disable_progress_bar()
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
        scheduler, tokenizers = loading.scheduler_and_tokenizers(cls.kind_of_scheduler, home, cls.tokenizers)
        cls._check(home, modules, scheduler)
        where = pick(config.device)
        for part in places:
            modules[part].requires_grad_(False).eval()
            if where.type != "mps" and all(weight.ndim < 5 for weight in modules[part].parameters()):
                modules[part].to(memory_format=torch.channels_last)  # a tenth faster on the CPU, too
        homes = (home, places["controlnet"]) if control else (home,)
        build: Any = cls  # its fields are its own
        model = build(
            name=config.model,
            scheduler=scheduler,
            defaults=loading.defaults(cls._usual(modules), *homes),
            hashes=hashes,
            **tokenizers,
            **modules,
        )
        if model.embed_layout is not None:
            model.embed_layout.to(where)  # used once an image
        offload.place(config.model, {part: modules[part] for part in places}, where, config.offload)
        model._where = where
        return model

    @classmethod
    def parameters(cls, config: DiffusionConfig) -> dict[str, int]:
        """Weights of each network of the model that `config` names, by its configuration; the ControlNet's
        where one is in the same folder or named. Of a hub model no weights are fetched. Raises: InputError.
        """
        configs = tuple(f"{part}/config.json" for part in cls.parts)
        home = loading.home(config, {}, configs)
        count = {part: loading.parameters(kind, home / part) for part, kind in cls.parts.items()}
        beside = home / "controlnet"
        if config.controlnet or beside.is_dir():
            place = cls._controlnet_home(config, home, torch.float32) if config.controlnet else beside
            count["controlnet"] = loading.parameters(cls._controlnet(place, torch.float32), place)
        return count

    @classmethod
    def _controlnet_home(cls, config: DiffusionConfig, home: Path, dtype: torch.dtype) -> Path:
        usual = cls.card.controlnets[0]
        if config.controlnet is None:
            if (home / "controlnet").is_dir():
                return home / "controlnet"
            if config.model == "town" or Path(config.model).is_dir():
                raise InputError(
                    f"no folder {home / 'controlnet'}: name a ControlNet with --diffusion.controlnet (a "
                    f"local folder or {usual}), or transfer without one (--no-control)"
                )
        name = config.controlnet or usual
        revision = config.controlnet_revision or loading.CONTROLNET_REVISIONS.get(name)
        weights = {".": "diffusion_pytorch_model"}
        return loading.folder(name, revision, dtype, "--diffusion.controlnet", weights, ())

    @classmethod
    def _controlnet(cls, place: Path, dtype: torch.dtype) -> Any:
        """The class of the ControlNet in a folder. Raises: InputError where it has no weights."""
        return cls.kind_of_controlnet

    @classmethod
    def _usual(cls, modules: dict[str, Any]) -> Defaults:
        """Defaults of this model where it brings none."""
        return cls.card.usual

    @classmethod
    def _check(cls, home: Path, modules: dict[str, Any], scheduler: Any) -> None:
        """Parts of different models load well and fail late, with a message about matrix shapes. Raises:
        InputError for parts that do not fit each other."""
        raise NotImplementedError

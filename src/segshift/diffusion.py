"""A latent diffusion model with its ControlNet, read from a diffusers pipeline folder or from the hub.

The embedded prior, Stable Diffusion 1.x and 2.x and the user's own models are one code path: a folder with `unet/`,
`vae/`, `text_encoder/`, `tokenizer/` and `scheduler/`, with or without `controlnet/`. A hub name is first fetched
into such a folder. Weights are read from safetensors only; a safety checker is never read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from math import inf
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from segshift import hub
from segshift.config import DiffusionConfig
from segshift.execution.device import pick
from segshift.runs import InputError, read_json

CONTROLNET = "lllyasviel/control_v11p_sd15_seg"
"""The ControlNet of a hub model for which none is named."""

REVISIONS = {"stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"}
"""Commits pinned by us; of any other model the newest is taken, and its weights' hashes are recorded all the same."""


@dataclass(frozen=True)
class Defaults:
    """What a model is sampled with where the user says nothing. A model folder brings its own as `segshift.json`."""

    guidance: float = 9.0
    steps: int = 20
    eta: float = 1.0
    short_side: int = 512
    palette: Literal["ade20k", "cityscapes"] = "ade20k"
    """Colours that the ControlNet was trained on."""


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The frozen parts, in evaluation mode, on one device and in one dtype."""

    name: str
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None
    scheduler: DDIMScheduler
    """Only its tables are used: `alphas_cumprod` and the kind of prediction."""
    tokenizer: PreTrainedTokenizerBase | None = None
    text_encoder: nn.Module | None = None
    defaults: Defaults = Defaults()
    hashes: dict[str, str] | None = None
    """sha256 of each part's weight file."""

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype


def load(config: DiffusionConfig, *, control: bool = True) -> Diffusion:
    """The model that `config` names; without the ControlNet when `control` is False.

    Raises: InputError when a folder, a file or a download is missing or broken, or when the parts do not fit.
    """
    transformers_logging.disable_progress_bar()
    dtype = getattr(torch, config.dtype)
    home = _home(config, dtype)
    parts: dict[str, tuple[type, Path]] = {
        "vae": (AutoencoderKL, home / "vae"),
        "unet": (UNet2DConditionModel, home / "unet"),
        "text_encoder": (AutoModel, home / "text_encoder"),
    }
    if control:
        parts["controlnet"] = (ControlNetModel, _controlnet_home(config, home, dtype))
    modules, hashes = {}, {}
    for part, (kind, folder) in parts.items():
        modules[part], hashes[part] = _part(kind, folder, dtype)
    try:
        scheduler = DDIMScheduler.from_pretrained(home / "scheduler", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(home / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot read {home}/scheduler and {home}/tokenizer ({_line(error)}): expected those of a diffusers "
            "pipeline: copy them there again"
        ) from error
    _check(home, modules, scheduler)
    where = pick(config.device)
    for module in modules.values():
        module.requires_grad_(False).eval().to(where)
        if where.type != "mps":
            module.to(memory_format=torch.channels_last)  # a tenth faster on the CPU, too
    return Diffusion(
        name=config.model, scheduler=scheduler, tokenizer=tokenizer, defaults=_defaults(home), hashes=hashes,
        **{"controlnet": None, **modules},
    )  # fmt: skip


@torch.inference_mode()
def embed(diffusion: Diffusion, prompt: str) -> Tensor:
    """Text conditioning [1, L, D] of a prompt. Raises: InputError when it is longer than the text encoder reads."""
    tokenizer, encoder = diffusion.tokenizer, diffusion.text_encoder
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    found = len(tokenizer(prompt).input_ids)
    if found > length:
        raise InputError(
            f"the prompt '{prompt}' has {found} tokens, and the text encoder of {diffusion.name} reads {length}: "
            "shorten it"
        )
    tokens = tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt").to(encoder.device)
    # Stable Diffusion 1 attends to the padding too; a text encoder that does not says so in its config
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder(tokens.input_ids, attention_mask=mask).last_hidden_state


def _home(config: DiffusionConfig, dtype: torch.dtype) -> Path:
    """The pipeline folder, fetched where it is a hub name."""
    if config.model == "town":
        home = Path(str(resources.files("segshift"))) / "town" / "prior"
        if not home.is_dir():
            raise InputError(f"no embedded prior at {home}: install segshift again, or train one (segshift prior train)")
        return home
    return _folder(
        config.model, config.revision, dtype, "--diffusion.model",
        {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"},
        ("tokenizer/*", "scheduler/*"),
    )  # fmt: skip


def _controlnet_home(config: DiffusionConfig, home: Path, dtype: torch.dtype) -> Path:
    if config.controlnet is None:
        if (home / "controlnet").is_dir():
            return home / "controlnet"
        if config.model == "town" or Path(config.model).expanduser().is_dir():
            raise InputError(
                f"no folder {home / 'controlnet'}: name a ControlNet with --diffusion.controlnet (a local folder or "
                f"{CONTROLNET}), or transfer without one (--no-control)"
            )
    return _folder(
        config.controlnet or CONTROLNET, config.controlnet_revision, dtype, "--diffusion.controlnet",
        {".": "diffusion_pytorch_model"}, (),
    )  # fmt: skip


def _folder(
    name: str, revision: str | None, dtype: torch.dtype, option: str, weights: dict[str, str], more: tuple[str, ...]
) -> Path:
    """`name` as a local folder, or the hub's files of it: `weights` (file stem by sub-folder) and `more` patterns."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name[0] in "./~\\":
        raise InputError(f"no folder {path}: expected a diffusers folder or a hub name for {option}")
    revision = revision or REVISIONS.get(name)
    stems = {folder: f"{folder}/{stem}".removeprefix("./") for folder, stem in weights.items()}
    configs = [f"{folder}/config.json".removeprefix("./") for folder in weights]
    small = (*configs, *more, "segshift.json")
    try:
        with hub.access():
            for suffix in (".fp16", "") if dtype == torch.float16 else ("",):
                wanted = [f"{stem}{suffix}.safetensors" for stem in stems.values()]
                home = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, *wanted]))
                if all((home / file).exists() for file in wanted):
                    break
    except (OSError, HfHubHTTPError, HTTPError, HFValidationError) as error:
        raise InputError(
            f"cannot download {', '.join(wanted)} of {name} (revision {revision or 'main'}) from "
            f"the Hugging Face hub ({_line(error)}): go online once, or point to a local copy with {option} /path"
        ) from error
    return home


def _part(kind: type, folder: Path, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """One network and the sha256 of its weights."""
    stem = "model" if kind is AutoModel else "diffusion_pytorch_model"
    variants = ("fp16", None) if dtype == torch.float16 else (None, "fp16")
    files = {v: folder / (f"{stem}.{v}.safetensors" if v else f"{stem}.safetensors") for v in variants}
    variant = next((v for v in variants if files[v].is_file()), "none")
    if variant == "none":
        others = ", ".join(sorted(p.name for p in folder.glob("*"))) or "nothing"
        raise InputError(
            f"{folder} holds {others}: expected config.json and {stem}.safetensors of a diffusers pipeline (weights "
            "are read from safetensors only): get that file, or convert the pickled one to it"
        )
    asked = {"dtype" if kind is AutoModel else "torch_dtype": dtype}
    try:
        module, told = kind.from_pretrained(
            folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, **asked
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"cannot read {files[variant]} ({_line(error)}): get the folder again") from error
    if missing := sorted(told["missing_keys"]):  # diffusers would go on with random numbers in their place
        raise InputError(
            f"{files[variant]} lacks {len(missing)} weights that its config.json asks for ({missing[0]}, ...): "
            "get both files from the same model"
        )
    return module, weights_hash(files[variant])


def weights_hash(path: Path) -> str:
    """sha256 of a file; read once per process as long as it stays the same."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(home: Path, modules: dict[str, nn.Module], scheduler: DDIMScheduler) -> None:
    """Parts of different models load well and fail late, with a message about matrix shapes."""
    unet, vae, controlnet = (modules.get(part) for part in ("unet", "vae", "controlnet"))
    text = modules["text_encoder"].config.hidden_size
    if unet.config.in_channels != vae.config.latent_channels:
        raise InputError(
            f"the UNet of {home} takes {unet.config.in_channels} channels and its VAE makes "
            f"{vae.config.latent_channels}: expected a text-to-image model, not one for inpainting or upscaling"
        )
    if text != unet.config.cross_attention_dim:
        raise InputError(
            f"the UNet of {home} reads text of width {unet.config.cross_attention_dim} and its text encoder writes "
            f"{text}: take both from the same model"
        )
    if controlnet is not None and controlnet.config.cross_attention_dim != unet.config.cross_attention_dim:
        raise InputError(
            f"the ControlNet reads text of width {controlnet.config.cross_attention_dim} and the UNet of {home} "
            f"{unet.config.cross_attention_dim}: choose a ControlNet made for this model (Stable Diffusion 1 has 768, "
            "2 has 1024)"
        )
    if controlnet is not None and controlnet.config.controlnet_conditioning_channel_order != "rgb":
        raise InputError("the ControlNet takes its layout as BGR: expected one that takes RGB, as the published ones do")
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise InputError(
            f"{home}/scheduler predicts '{scheduler.config.prediction_type}': expected epsilon or v_prediction"
        )


def _defaults(home: Path) -> Defaults:
    path = home / "segshift.json"
    if not path.exists():
        return Defaults()
    told, known = read_json(path), {field.name for field in fields(Defaults)}
    if not set(told) <= known:
        raise InputError(f"{path} holds {json.dumps(told)[:80]}: expected some of {', '.join(sorted(known))}")
    made = read_json(path, Defaults)
    if not (0 <= made.guidance < inf and made.steps > 0 and 0 <= made.eta <= 1 and made.short_side > 0):
        raise InputError(
            f"{path} holds a number out of range ({json.dumps(told)[:80]}): expected guidance of 0 or more, "
            "eta from 0 to 1, steps and short_side of 1 or more"
        )
    return made


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

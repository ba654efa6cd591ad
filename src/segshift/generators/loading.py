"""Parts of diffusion models from a folder in the hub's layout or from the hub. Weights are read from
safetensors only."""

from __future__ import annotations

import json
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from segshift import hub
from segshift.generators.base import Defaults, file_hash
from segshift.runs import InputError, read_json


def folder(
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    option: str,
    weights: dict[str, str],
    more: tuple[str, ...],
) -> Path:
    """`name` as a local folder, or the hub's files of it: `weights` (file stem by sub-folder) and `more`
    patterns.

    option: that the name was given by. Raises: InputError when there is no such folder, or a download fails.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name[0] in "./~\\":
        raise InputError(f"no folder {path}: expected a diffusers folder or a hub name for {option}")
    stems = {place: f"{place}/{stem}".removeprefix("./") for place, stem in weights.items()}
    configs = [f"{place}/config.json".removeprefix("./") for place in weights]
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
            f"the Hugging Face hub ({_line(error)}): go online once, or point to a local copy with {option} "
            "/path"
        ) from error
    return home


def part(kind: Any, place: Path, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """One network of a diffusers or transformers class, and the sha256 of its weights.

    Raises: InputError when the folder has no safetensors, or they cannot be read or lack some weights.
    """
    stem = "model" if kind is AutoModel else "diffusion_pytorch_model"
    variants = ("fp16", None) if dtype == torch.float16 else (None, "fp16")
    files = {v: place / (f"{stem}.{v}.safetensors" if v else f"{stem}.safetensors") for v in variants}
    variant = next((v for v in variants if files[v].is_file()), "none")
    if variant == "none":
        others = ", ".join(sorted(p.name for p in place.glob("*"))) or "nothing"
        raise InputError(
            f"{place} holds {others}: expected config.json and {stem}.safetensors of a diffusers pipeline "
            "(weights are read from safetensors only): get that file, or convert the pickled one to it"
        )
    asked = {"dtype" if kind is AutoModel else "torch_dtype": dtype}
    try:
        module, told = kind.from_pretrained(
            place,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **asked,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"cannot read {files[variant]} ({_line(error)}): get the folder again") from error
    if missing := sorted(told["missing_keys"]):  # diffusers would go on with random numbers in their place
        raise InputError(
            f"{files[variant]} lacks {len(missing)} weights that its config.json asks for ({missing[0]}, "
            "...): get both files from the same model"
        )
    return module, file_hash(files[variant])


def scheduler_and_tokenizer(home: Path) -> tuple[DDIMScheduler, PreTrainedTokenizerBase]:
    """Those of a pipeline folder. Raises: InputError when they cannot be read."""
    try:
        scheduler = DDIMScheduler.from_pretrained(home / "scheduler", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(home / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot read {home}/scheduler and {home}/tokenizer ({_line(error)}): expected those of a "
            "diffusers pipeline: copy them there again"
        ) from error
    return scheduler, tokenizer


def defaults(home: Path) -> Defaults:
    """Those of the folder's segshift.json, or Stable Diffusion's. Raises: InputError for unknown or
    impossible ones."""
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

"""Parts of diffusion models from a folder in the hub's layout or from the hub. Weights are read from
safetensors only."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from hashlib import sha256
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from segshift import hub
from segshift.config import DiffusionConfig
from segshift.generators.base import Defaults, file_hash
from segshift.runs import InputError, read_json

REVISIONS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    "nvidia/Cosmos-Transfer2.5-2B": "diffusers/general",
}
"""Commits pinned by us, and branches where the newest of the main one is no pipeline; of any other model the
newest is taken, and its weights' hashes are recorded all the same."""

CONTROLNET_REVISIONS = {"nvidia/Cosmos-Transfer2.5-2B": "diffusers/controlnet/general/seg"}
"""The same of ControlNets."""

INDEX = "model_index.json"


def pipeline(config: DiffusionConfig) -> tuple[Path, str]:
    """model_index.json of the pipeline that `config` names, and its `_class_name`.

    Raises: InputError when it is missing, or asks for code of its own.
    """
    place = home(config, {}, (INDEX,))
    path = place / INDEX
    if not path.is_file():
        raise InputError(
            f"no file {path}: expected the folder of a diffusers pipeline, with one folder for each of its "
            "parts"
        )
    name = read_json(path).get("_class_name")
    if not isinstance(name, str):
        raise InputError(
            f"{path} names as `_class_name` {json.dumps(name)[:80]}: expected a pipeline of diffusers; code "
            "that comes with a model is never run"
        )
    return path, name


def home(config: DiffusionConfig, weights: dict[str, str], more: tuple[str, ...]) -> Path:
    """The pipeline's folder; from the hub, only what is asked for, as in `folder`. Raises: InputError."""
    if config.model != "town":
        revision = config.revision or REVISIONS.get(config.model)
        dtype = getattr(torch, config.dtype)
        return folder(config.model, revision, dtype, "--diffusion.model", weights, more)
    place = Path(str(resources.files("segshift"))) / "town" / "prior"
    if not place.is_dir():
        raise InputError(
            f"no embedded prior at {place}: install segshift again, or train one (segshift prior train)"
        )
    return place


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
    path = Path(name)
    if os.path.isdir(path):
        return path
    if name.count("/") != 1 or name[0] in "./~\\":
        raise InputError(f"no folder {path}: expected a diffusers folder or a hub name for {option}")
    stems = {place: f"{place}/{stem}".removeprefix("./") for place, stem in weights.items()}
    configs = [f"{place}/config.json".removeprefix("./") for place in weights]
    small = (*configs, *more, "segshift.json")
    try:
        with hub.access():
            for variant in ("fp16", None) if dtype == torch.float16 else (None,):
                names = [_names(stem, variant) for stem in stems.values()]
                wanted = [of_one[0] for of_one in names]
                patterns = [*small, *(file for of_one in names for file in of_one)]
                home = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
                if all(any((home / file).exists() for file in of_one) for of_one in names):
                    break
    except (OSError, HfHubHTTPError, HTTPError, HFValidationError) as error:
        told = hub.refusal(name, revision, error) or (
            f"cannot download {', '.join(wanted or more)} of {name} (revision {revision or 'main'}) from "
            f"the Hugging Face hub ({_line(error)}): go online once"
        )
        raise InputError(f"{told}, or point to a local copy with {option} /path") from error
    return home


def part(kind: Any, place: Path, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """One network of a diffusers or transformers class, and the sha256 of its weights.

    Raises: InputError when the folder has no safetensors, they cannot be read or lack some weights, or are of
    another class.
    """
    variant, files = weights(place, stem(kind), dtype)
    file = files[0]
    refuse_code(place / "config.json")
    named = _content(place / "config.json").get("_class_name", kind.__name__)
    if issubclass(kind, ModelMixin) and str(named).replace("Union", "") != kind.__name__.replace("Union", ""):
        raise InputError(f"{place} holds a {named}: expected a {kind.__name__}, of the same family")
    asked = {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype}
    try:
        module, info = kind.from_pretrained(
            place,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **asked,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"cannot read {file} ({_line(error)}): get the folder again") from error
    if missing := sorted(info["missing_keys"]):  # diffusers would go on with random numbers in their place
        raise InputError(
            f"{file} lacks {len(missing)} weights that its config.json asks for ({missing[0]}, "
            "...): get both files from the same model"
        )
    hashes = [file_hash(file) for file in files]
    return module, hashes[0] if len(files) == 1 else sha256("".join(hashes).encode()).hexdigest()


def stem(kind: Any) -> str:
    """What a class of diffusers or transformers calls its weight files."""
    return "diffusion_pytorch_model" if issubclass(kind, ModelMixin) else "model"


def _names(stem: str, variant: str | None) -> tuple[str, str, str]:
    """What the files of one network are called: one file; or a list of several, and their pattern."""
    more = f".{variant}" if variant else ""
    return (
        f"{stem}{more}.safetensors",
        f"{stem}.safetensors.index{more}.json",
        f"{stem}{more}-*-of-*.safetensors",
    )


def weights(place: Path, stem: str, dtype: torch.dtype) -> tuple[str | None, list[Path]]:
    """The weight files of a part to load in `dtype`, and their variant. Raises: InputError where there are
    none, or some are missing."""
    for variant in ("fp16", None) if dtype == torch.float16 else (None, "fp16"):
        whole, listed, _ = (place / name for name in _names(stem, variant))
        if whole.is_file():
            return variant, [whole]
        if listed.is_file():
            names = sorted({str(name) for name in _content(listed).get("weight_map", {}).values()})
            if not names or (lost := [name for name in names if not (place / name).is_file()]):
                raise InputError(
                    f"{listed} lists {', '.join(lost) if names else 'no file'}, and {place} holds no such "
                    "file: get the whole folder"
                )
            return variant, [place / name for name in names]
    others = ", ".join(sorted(p.name for p in place.glob("*"))) or "nothing"
    raise InputError(
        f"{place} holds {others}: expected config.json and {stem}.safetensors of a diffusers pipeline "
        "(weights are read from safetensors only): get that file, or convert the pickled one to it"
    )


def parameters(kind: Any, place: Path) -> int:
    """Weights of one network of a diffusers or transformers class, by its config.json. Raises: InputError."""
    try:
        with torch.device("meta"):
            if issubclass(kind, ModelMixin):
                module = kind.from_config(kind.load_config(place, local_files_only=True))
            else:
                config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
                module = AutoModel.from_config(config) if kind is AutoModel else kind(config)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {place}/config.json ({_line(error)}): get the folder again") from error
    return sum(weight.numel() for weight in module.parameters())


def scheduler_and_tokenizers(
    kind: Any, home: Path, names: tuple[str, ...]
) -> tuple[Any, dict[str, PreTrainedTokenizerBase]]:
    """Those of a pipeline folder: the scheduler read as one of class `kind`, tokenizers by folder. Raises:
    InputError when they cannot be read."""
    for name in names:
        refuse_code(home / name / "tokenizer_config.json")
    try:
        scheduler = kind.from_pretrained(home / "scheduler", local_files_only=True)
        tokenizers = {
            name: AutoTokenizer.from_pretrained(home / name, local_files_only=True, trust_remote_code=False)
            for name in names
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot read {home}/scheduler and {' and '.join(f'{home}/{name}' for name in names)} "
            f"({_line(error)}): expected those of a diffusers pipeline: copy them there again"
        ) from error
    return scheduler, tokenizers


def _content(path: Path) -> dict[str, Any]:
    """An object of JSON; empty where there is none, of which the libraries complain."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def refuse_code(path: Path) -> None:
    """Raises: InputError for a configuration that names Python files of its own."""
    if "auto_map" in _content(path):
        raise InputError(
            f"{path} asks for code of its own (auto_map), and code that comes with a model is never run: "
            "choose a model of the libraries' own classes"
        )


def defaults(made: Defaults, *homes: Path) -> Defaults:
    """`made` with what segshift.json says in the folders `homes`, the last one first.

    Raises: InputError for unknown or impossible values.
    """
    for home in homes:
        made = _defaults(made, home / "segshift.json")
    return made


def _defaults(made: Defaults, path: Path) -> Defaults:
    if not path.exists():
        return made
    given, known = read_json(path), {field.name for field in fields(Defaults)}
    if not set(given) <= known:
        raise InputError(
            f"{path} holds {json.dumps(given)[:80]}: expected some of {', '.join(sorted(known))}"
        )
    values = read_json(path, Defaults)
    made = replace(made, **{name: getattr(values, name) for name in given})
    if not (0 <= made.guidance < inf and made.steps > 0 and 0 <= made.eta <= 1 and made.short_side > 0):
        raise InputError(
            f"{path} holds a number out of range ({json.dumps(given)[:80]}): expected guidance of 0 or more, "
            "eta from 0 to 1, steps and short_side of 1 or more"
        )
    return made


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

"""Generators and families of diffusion models: one file each, and their tables.

To add a generator: a file with `load(config: TransferConfig) -> Generator`, and its line in GENERATORS. To
add a family of diffusion models: a file with a `CARD`, `load_model(config: DiffusionConfig, *, control: bool)
-> DiffusionFamily` and `parameters(config: DiffusionConfig) -> dict[str, int]`, and its line in FAMILIES.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from segshift.config import DiffusionConfig, TransferConfig
from segshift.generators.base import (
    STRENGTHS,
    Card,
    Defaults,
    DiffusionFamily,
    Domain,
    FrameError,
    Generator,
    Source,
)
from segshift.runs import InputError

__all__ = [
    "FAMILIES",
    "GENERATORS",
    "Card",
    "DiffusionFamily",
    "Domain",
    "FrameError",
    "Generator",
    "Source",
    "describe",
    "family",
    "load",
    "strengths",
]

GENERATORS = {
    "diffusion": "",  # --diffusion.model: a family's
    "editor": "segshift.generators.editor",  # --generator.model
    "custom": "segshift.generators.custom",  # --generator module:factory
}
"""The file of each kind; it is imported when it is used."""

DEFAULT = "diffusion"

FAMILIES = {
    "StableDiffusion": "segshift.generators.stable_diffusion",
    "StableDiffusionXL": "segshift.generators.stable_diffusion_xl",
    "Flux": "segshift.generators.flux",
    "QwenImage": "segshift.generators.qwen_image",
    "Cosmos2_5_Transfer": "segshift.generators.cosmos_transfer",
}
"""The file of each family, by what the `_class_name` in model_index.json begins with."""

_VARIANTS = re.compile(r"(ControlNet(Union)?)?(Img2Img)?Pipeline")
"""Ends of the `_class_name`s that stand for the same parts."""


def load(config: TransferConfig) -> Generator | DiffusionFamily:
    """What `config.generator` names. Raises: InputError."""
    kind = "custom" if config.custom_generator else config.generator or DEFAULT
    if kind not in GENERATORS or (kind == "custom" and not config.custom_generator):
        kinds = ", ".join(kind for kind in GENERATORS if kind != "custom")
        raise InputError(f"--generator is '{config.generator}': expected {kinds} or <module>:<factory>")
    if kind == "diffusion":
        return family(config.diffusion).load_model(config.diffusion, control=config.control)
    return import_module(GENERATORS[kind]).load(config)


def family(config: DiffusionConfig) -> Any:
    """The file of the family of `config.model`, by its model_index.json.

    Raises: InputError for another kind of pipeline, or where that file cannot be read or fetched.
    """
    return import_module(FAMILIES[_stem(config)])


def _stem(config: DiffusionConfig) -> str:
    from segshift.generators import loading

    path, name = loading.pipeline(config)
    for stem in FAMILIES:
        if name.startswith(stem) and _VARIANTS.fullmatch(name.removeprefix(stem)):
            return stem
    known = ", ".join(f"{stem}Pipeline" for stem in FAMILIES)
    raise InputError(
        f"{path} is of a {name}: expected a text-to-image model of one of the families {known} (segshift "
        "models lists examples)"
    )


def strengths(config: TransferConfig) -> Mapping[str, float]:
    """Default noise strengths of what `config` names. Raises: InputError."""
    return family(config.diffusion).CARD.strengths if config.walks else STRENGTHS


def describe(what: str | DiffusionConfig) -> str:
    """Lines on a family, by its key in FAMILIES, or on one model. Raises: InputError."""
    if isinstance(what, str):
        card: Card = import_module(FAMILIES[what]).CARD
        return _lines(
            f"{card.title} ({what}Pipeline)",
            {
                "--diffusion.model": ", ".join(card.models),
                "--diffusion.controlnet": ", ".join(card.controlnets),
                "layout": card.layouts,
                "strength": ", ".join(f"{name} {share:g}" for name, share in card.strengths.items()),
                "weights": f"{_memory(round(1e9 * card.parameters))}, with a ControlNet",
                "licence": card.licence,
            },
        )
    from segshift.generators import loading, offload

    module = family(what)
    home = loading.home(what, {}, (loading.INDEX,))
    count, chosen = module.parameters(what), loading.defaults(module.CARD.usual, home, home / "controlnet")
    return _lines(
        f"{what.model}: {module.CARD.title}",
        {
            "layout": _layout(chosen),
            "weights": _memory(sum(count.values())),
            "on the GPU, in float16": ", ".join(
                f"--diffusion.offload {way} {_gib(2 * offload.held(count, way))}" for way in offload.WAYS
            ),
            "of these, in float16": ", ".join(f"{part} {_gib(2 * n)}" for part, n in count.items()),
        },
    )


def _layout(chosen: Defaults) -> str:
    if chosen.layout == "edges":
        return "edges"
    own = not isinstance(chosen.palette, str)
    return f"colours ({f'its own, of {len(chosen.palette)} classes' if own else chosen.palette})"


def _lines(title: str, fields: dict[str, str]) -> str:
    return "\n".join([title, *(f"  {name:<24}{text}" for name, text in fields.items())])


def _memory(count: int) -> str:
    return f"{_gib(2 * count)} in float16 or bfloat16, {_gib(4 * count)} in float32"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.3g} MiB"

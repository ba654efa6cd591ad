"""Generators: one file each, and their table.

To add one: a file with `load(config: TransferConfig) -> Generator | DiffusionFamily`, and its line below.
"""

from __future__ import annotations

from importlib import import_module

from segshift.config import TransferConfig
from segshift.generators.base import DiffusionFamily, Domain, FrameError, Generator, Source
from segshift.runs import InputError

__all__ = ["GENERATORS", "DiffusionFamily", "Domain", "FrameError", "Generator", "Source", "load"]

GENERATORS = {
    "stable-diffusion": "segshift.generators.stable_diffusion",
    "custom": "segshift.generators.custom",  # --generator module:factory
}
"""The file of each kind; it is imported when it is used."""

DEFAULT = "stable-diffusion"


def load(config: TransferConfig) -> Generator | DiffusionFamily:
    """What `config.generator` names. Raises: InputError."""
    kind = "custom" if config.custom_generator else config.generator or DEFAULT
    if kind not in GENERATORS or (kind == "custom" and not config.custom_generator):
        kinds = ", ".join(kind for kind in GENERATORS if kind != "custom")
        raise InputError(f"--generator is '{config.generator}': expected {kinds} or <module>:<factory>")
    return import_module(GENERATORS[kind]).load(config)

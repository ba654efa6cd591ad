"""Licences of published weights that are not free for every use. Nothing is downloaded to know them."""

from __future__ import annotations

import warnings
from fnmatch import fnmatchcase

import timm

from segshift.config import NetworkConfig

FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "unknown", None)
"""Licences that timm tells and nobody needs to be warned of; unknown and None say nothing."""
NON_COMMERCIAL = "for non-commercial use only"
OWN_TERMS = "whose terms are to be read before commercial use"
PATTERNS = (
    ("mit_*", f"NVIDIA's, {NON_COMMERCIAL}"),
    ("hf:*nvidia/segformer-*", f"NVIDIA's, {NON_COMMERCIAL}"),
    ("hf:*nvidia/mit-*", f"NVIDIA's, {NON_COMMERCIAL}"),
    ("hf:*eupe*", f"Meta's, {NON_COMMERCIAL}"),
    ("hf:*dinov3*", f"under Meta's DINOv3 licence, {OWN_TERMS}"),
)
"""Names of encoders of segmentation-models-pytorch and of networks of transformers."""


def sentence_of(config: NetworkConfig) -> str | None:
    """What is to be said of the published weights that `config` names; None where they are free."""
    if config.name.startswith("hf:"):
        called = config.name
    elif ":" in config.name:
        return None  # the user's own
    else:
        called = config.encoder
    kind = next((kind for pattern, kind in PATTERNS if fnmatchcase(called.lower(), pattern)), None)
    if kind is None and not called.startswith("hf:") and timm.is_model(name := called.removeprefix("tu-")):
        licence = getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "license", None)
        if licence not in FREE:
            no_commerce = "-nc-" in licence or "noncommercial" in licence
            kind = f"under {licence}, {NON_COMMERCIAL if no_commerce else OWN_TERMS}"
    return kind and f"the published weights of {called} are {kind}; --network.no-pretrained does without them"


def warn(config: NetworkConfig) -> None:
    """A warning where `config` starts from such weights, downloaded or from a file."""
    sentence = sentence_of(config) if config.pretrained else None
    if sentence is not None:
        warnings.warn(sentence, stacklevel=3)

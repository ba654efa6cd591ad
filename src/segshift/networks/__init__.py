"""Segmentation networks, from libraries or the user's own.

`NETWORKS` is the table of families: a name as --network.name takes it, or a pattern, and the module that
builds it. A family is a module with `build(config, classes, pretrained)`, which returns a `Segmenter`.
Options of its own are a dataclass in `networks.options` and a field of `NetworkConfig`. Nothing here imports
torch before a network is built.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segshift.config import NetworkConfig
    from segshift.networks.segmenter import Segmenter

NETWORKS: dict[str, str] = {
    "iccld": "segshift.networks.iccld",
    "refinenet": "segshift.networks.refinenet",
    "vit": "segshift.networks.vit",
    "hf:*": "segshift.networks.transformers",
    "*:*": "segshift.networks.custom",
    "*": "segshift.networks.smp",
}
"""The first pattern that fits a name decides. A module is imported when one of its networks is built."""


def build(config: NetworkConfig, classes: int, *, trained: bool = False) -> Segmenter:
    """The network that `config` names, with `classes` output channels, on the CPU in training mode.

    `trained`: for prediction. Refuse files that hold only an encoder; allow logits without a gradient.
    Raises: InputError for an unknown name, a missing download, another number of classes, a network that
    cannot be trained or adapted, or weights of another one.
    """
    module = next(module for pattern, module in NETWORKS.items() if fnmatchcase(config.name, pattern))
    from segshift.networks import licences

    licences.warn(config)
    pretrained = config.pretrained and config.weights is None  # the weights file replaces the download
    segmenter: Segmenter = import_module(module).build(config, classes, pretrained)
    if config.weights is not None:
        from segshift.networks.weights import load_weights

        load_weights(segmenter, Path(config.weights), whole=trained)
    if config.adapter != "none":
        from segshift.networks.adapters import adapt

        adapt(segmenter.encoder, config)
    if not trained:
        segmenter.require_gradients()
    return segmenter.train()

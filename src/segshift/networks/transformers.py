"""Segmentation networks of transformers: `hf:<folder or name on the hub>`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PretrainedConfig,
    PreTrainedModel,
)

from segshift import hub
from segshift.config import NetworkConfig
from segshift.networks import masks
from segshift.networks.segmenter import Segmenter
from segshift.networks.weights import Tensors, own_names
from segshift.runs import InputError
from segshift.users_code import first_line


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """The network with a new classifier; a mask classifier without weights, for it only predicts. Raises:
    InputError when it cannot be read or does not segment."""
    name = config.name.removeprefix("hf:")
    with _reading(name, pretrained):
        settings = AutoConfig.from_pretrained(name, num_labels=classes, trust_remote_code=False)
        if settings.model_type in masks.FAMILIES:
            classifier = AutoModelForUniversalSegmentation.from_config(settings).float()
            return masks.MaskSegmenter(name, classifier, classes, encoder_tensors)
        network = _read(name, settings, pretrained).float()  # a file may hold half precision
    backbone = isinstance(getattr(network, "backbone", None), nn.Module)
    encoder = "backbone" if backbone else network.base_model_prefix
    layer = encoder if hasattr(network, encoder) else None

    return Segmenter(
        network, classes, config.feature_layer or layer, encoder=encoder, encoder_tensors=encoder_tensors
    )


def encoder_tensors(encoder: nn.Module, tensors: Tensors) -> Tensors | None:
    """The encoder's tensors by its own names, from a file below any head: transformers knows what files call
    them.
    """
    found = own_names(encoder, tensors)
    if found is not None or not isinstance(encoder, PreTrainedModel):
        return found
    loaded, about = type(encoder).from_pretrained(
        None, config=encoder.config, state_dict=dict(tensors), output_loading_info=True
    )
    return None if about["missing_keys"] or about["mismatched_keys"] else loaded.state_dict()


def _read(name: str, settings: PretrainedConfig, pretrained: bool) -> PreTrainedModel:
    if not pretrained:
        return AutoModelForSemanticSegmentation.from_config(settings)
    return AutoModelForSemanticSegmentation.from_pretrained(
        name, config=settings, ignore_mismatched_sizes=True, use_safetensors=True
    )


@contextmanager
def _reading(name: str, pretrained: bool) -> Iterator[None]:
    """A block that reads a folder or the hub. Raises: InputError for what is not there or does not
    segment."""
    try:
        with nullcontext() if Path(name).is_dir() else hub.access():
            yield
    except OSError as error:
        files = "config.json and model.safetensors" if pretrained else "config.json"
        told = hub.refusal(name, None, error) or (
            f"cannot read {files} of '{name}', neither as a local folder nor from the hub "
            f"({first_line(error)}): download them where there is a network"
        )
        raise InputError(f"{told}, and name their folder with --network.name hf:<folder>") from error
    except ValueError as error:
        raise InputError(
            f"'{name}' is no semantic segmentation network of transformers ({first_line(error)}): name "
            "one that AutoModelForSemanticSegmentation reads, or a mask classifier "
            f"({', '.join(masks.FAMILIES)})"
        ) from error

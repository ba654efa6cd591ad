"""Semantic segmentation networks of transformers: `hf:<folder or name on the hub>`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel

from segshift import hub
from segshift.config import NetworkConfig
from segshift.networks.segmenter import Segmenter
from segshift.networks.weights import Tensors, own_names
from segshift.runs import InputError
from segshift.users_code import first_line


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """The network with a new classifier. Raises: InputError when it cannot be read or does not segment."""
    network = _read(config.name.removeprefix("hf:"), classes, pretrained)
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


def _read(name: str, classes: int, pretrained: bool) -> PreTrainedModel:
    try:
        with nullcontext() if Path(name).is_dir() else hub.access():
            if pretrained:
                network = AutoModelForSemanticSegmentation.from_pretrained(
                    name, num_labels=classes, ignore_mismatched_sizes=True, use_safetensors=True
                )
            else:
                settings = AutoConfig.from_pretrained(name, num_labels=classes)
                network = AutoModelForSemanticSegmentation.from_config(settings)
    except OSError as error:
        files = "config.json and model.safetensors" if pretrained else "config.json"
        raise InputError(
            f"cannot read {files} of '{name}', neither as a local folder nor from the hub "
            f"({first_line(error)}): download them where there is a network, and name their folder with "
            "--network.name hf:<folder>"
        ) from error
    except ValueError as error:
        raise InputError(
            f"'{name}' is no semantic segmentation network of transformers ({first_line(error)}): name "
            "one that AutoModelForSemanticSegmentation reads"
        ) from error
    return network.float()  # a file may hold half precision

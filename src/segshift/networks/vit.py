"""Any plain vision transformer of timm, such as DINOv2's and DINOv3's, under a linear head or DPT's.

    p, D     side of a patch in pixels, which divides 32; channels of every block
    x        image, normalised and padded                           [B, 3, H, W]; 32 divides H and W
    maps     after each quarter of the blocks, with the backbone's  four of [B, D, H/p, W/p]
             last norm

The linear head is a 1x1 convolution on the four maps side by side (Oquab et al., "DINOv2", 2023, section
7.4). DPT: Ranftl, Bochkovskiy, Koltun, "Vision Transformers for Dense Prediction", ICCV 2021, section 3, as
segmentation-models-pytorch has it, without the class token; its widths grow with D (ours).

Patches of 14 pixels do not divide 32: such a backbone is built with 16, and timm resamples its weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import timm
import torch
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from torch import Tensor, nn

from segshift.config import NetworkConfig
from segshift.networks.segmenter import STRIDE, Segmenter
from segshift.networks.weights import Tensors, making_timm, own_names, timm_names
from segshift.runs import InputError


def any_size(name: str) -> dict[str, Any]:
    """What makes timm build a vision transformer that takes every image whose sides 32 divides."""
    return {"dynamic_img_size": True} | ({"patch_size": 16} if "patch14" in name else {})


def backbone(name: str, pretrained: bool) -> Any:
    """A timm model without its classifier, which takes images of any size.

    Raises: InputError when it gives no intermediate maps; timm's own errors for an unknown name or a failed
    download.
    """
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **any_size(name))
    except TypeError:  # convolutional: any size, and no such setting
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    if not hasattr(model, "forward_intermediates"):
        raise InputError(f"backbone '{name}' gives no intermediate maps in timm: choose another one")
    return model


def encoder_tensors(encoder: nn.Module, tensors: Tensors) -> Tensors | None:
    """The tensors of an encoder around `backbone` from a file of timm, or of the backbone's authors where
    timm knows their names. Other patch sizes and position grids are resampled, as timm does on a download.
    """
    found = timm_names(encoder, tensors)
    own = encoder.state_dict()
    if found is not None and all(found[key].shape == tensor.shape for key, tensor in own.items()):
        return found
    model: Any = encoder.model
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return found
    try:
        converted = convert(dict(tensors), model)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):  # of other networks
        return found
    return own_names(encoder, {f"model.{key}": value for key, value in converted.items()}) or found


def quarters(blocks: int) -> list[int]:
    """Indices of the last block of each quarter."""
    return [(i + 1) * blocks // 4 - 1 for i in range(4)]


class Encoder(nn.Module):
    """x [B, 3, H, W] to four maps [B, D, H/p, W/p]."""

    def __init__(self, name: str, pretrained: bool):
        """Raises: InputError for a backbone with other features; else as `backbone`."""
        super().__init__()
        self.model = backbone(name, pretrained)
        stages = list(self.model.feature_info)
        strides = {stage["reduction"] for stage in stages}
        if len(strides) > 1 or len(stages) < 4 or STRIDE % next(iter(strides)):
            raise InputError(
                f"backbone '{name}' has {len(stages)} stages at strides {sorted(strides)}, expected the "
                f"blocks of a plain vision transformer, four or more, at one stride that divides {STRIDE}: "
                "choose another one of timm's, or another --network.name"
            )
        self.stride, self.channels = strides.pop(), stages[0]["num_chs"]
        self.indices = quarters(len(stages))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(
            x, indices=self.indices, norm=True, intermediates_only=True, output_fmt="NCHW"
        )


class LinearHead(nn.Conv2d):
    """The four maps to logits [B, C, H/p, W/p]."""

    def __init__(self, channels: int, classes: int):
        super().__init__(4 * channels, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat(list(maps), 1))


class DPTHead(nn.Module):
    """The four maps to logits [B, C, H/2, W/2]."""

    def __init__(self, channels: int, stride: int, classes: int):
        super().__init__()
        self.decoder = DPTDecoder(
            [channels] * 4,
            [stride] * 4,
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=[channels // 8, channels // 4, channels // 2, channels],
            fusion_channels=channels // 4,
        )
        self.classify = DPTSegmentationHead(channels // 4, classes, upsampling=1.0)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classify(self.decoder(list(maps), [None] * 4))


class VisionTransformer(nn.Module):
    """x [B, 3, H, W] to logits [B, C, h, w]."""

    def __init__(self, encoder: Encoder, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def checkpoint_gradients(self) -> None:
        """Recompute the encoder's activations in the backward pass instead of keeping them."""
        self.encoder.model.set_grad_checkpointing(True)


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """`config.encoder` under `config.head`. Raises: InputError for an unknown or unfit backbone, or a failed
    download.
    """
    name = config.encoder.removeprefix("tu-")  # as smp marks timm's
    with making_timm(name, pretrained):
        encoder = Encoder(name, pretrained)
    head = (
        LinearHead(encoder.channels, classes)
        if config.head == "linear"
        else DPTHead(encoder.channels, encoder.stride, classes)
    )
    segmenter = Segmenter(
        VisionTransformer(encoder, head),
        classes,
        config.feature_layer or "encoder",
        encoder_tensors=encoder_tensors,
    )
    # not all are ImageNet's
    segmenter.mean = torch.tensor(encoder.model.pretrained_cfg["mean"]).view(3, 1, 1)
    segmenter.std = torch.tensor(encoder.model.pretrained_cfg["std"]).view(3, 1, 1)
    return segmenter

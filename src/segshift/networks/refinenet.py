"""RefineNet, built small on any encoder of segmentation-models-pytorch.

Lin, Milan, Shen, Reid, "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation",
CVPR 2017, figure 2 and section 3.

    f1 .. f4   encoder features at strides 4, 8, 16, 32
    RCU        residual convolution unit (figure 2b)
    fusion     multi-resolution fusion (figure 2c)
    CRP        chained residual pooling (figure 2d)

Deviations: bilinear upsampling with `align_corners=False`; four-pool CRP and a single classifier convolution,
as in the network that ZoDi's authors trained (the paper has two pools in most tables).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from segshift.config import NetworkConfig
from segshift.networks import smp
from segshift.networks.segmenter import Segmenter


def _conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), [B, C, H, W] to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class ChainedResidualPooling(nn.Module):
    """Sum of ever wider poolings of relu(x), [B, C, H, W] to the same."""

    def __init__(self, channels: int, pools: int = 4):
        super().__init__()
        self.convs = nn.ModuleList(_conv3(channels, channels) for _ in range(pools))

    def forward(self, x: Tensor) -> Tensor:
        x = path = F.relu(x)
        for conv in self.convs:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            x = x + path
        return x


class RefineBlock(nn.Module):
    """One stage's features and the coarser path [B, C', H/2, W/2] to a refined path [B, C, H, W]."""

    def __init__(self, encoder_channels: int, coarser_channels: int | None, channels: int):
        super().__init__()
        self.adapt = nn.Sequential(
            _conv3(encoder_channels, channels), ResidualConvUnit(channels), ResidualConvUnit(channels)
        )
        # With one input there is nothing to fuse (the paper's RefineNet-4).
        self.fuse_fine = _conv3(channels, channels) if coarser_channels else nn.Identity()
        self.fuse_coarse = _conv3(coarser_channels, channels) if coarser_channels else None
        self.pool = ChainedResidualPooling(channels)
        self.out = nn.Sequential(*(ResidualConvUnit(channels) for _ in range(3)))

    def forward(self, features: Tensor, coarser: Tensor | None) -> Tensor:
        x = self.fuse_fine(self.adapt(features))
        if coarser is not None:
            assert self.fuse_coarse is not None
            coarser = self.fuse_coarse(coarser)
            x = x + F.interpolate(coarser, x.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(self.pool(x))


class RefineNet(nn.Module):
    """Images [B, 3, H, W], H and W multiples of 32, to logits [B, classes, H/4, W/4]."""

    def __init__(self, encoder: str, weights: str | bool | None, classes: int, channels: int = 256):
        """`encoder` and `weights` as segmentation-models-pytorch takes them."""
        super().__init__()
        self.encoder = get_encoder(encoder, weights=weights)
        stages = self.encoder.out_channels[-4:]
        widths = (channels, channels, channels, 2 * channels)
        self.blocks = nn.ModuleList(
            RefineBlock(stage, coarser, width)
            for stage, coarser, width in zip(stages, (*widths[1:], None), widths, strict=True)
        )
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        *_, f1, f2, f3, f4 = self.encoder(images)
        path: Tensor | None = None
        for block, features in zip(
            reversed(self.blocks), (self.dropout(f4), self.dropout(f3), f2, f1), strict=True
        ):
            path = block(features, path)
        assert isinstance(path, torch.Tensor)
        return self.classifier(self.dropout(path))


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """RefineNet on `config.encoder`. Raises: InputError for an unknown encoder or a failed download."""
    with smp.making(config, pretrained):
        network = RefineNet(config.encoder, smp.encoder_weights(config.encoder, pretrained), classes)
    return smp.segmenter(network, config, classes)

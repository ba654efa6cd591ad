"""A network family: a linear classifier on the last map of any backbone of timm.

Keep it as src/segshift/networks/linear.py, and add its line at the top of `NETWORKS` in networks/__init__.py:

    "linear": "segshift.networks.linear",

    segshift train OUT --source cityscapes:/data/day --method source_only --network.name linear
    --network.encoder resnet18
"""

from __future__ import annotations

import timm
from torch import Tensor, nn

from segshift.config import NetworkConfig
from segshift.networks.segmenter import Segmenter
from segshift.networks.weights import making_timm, timm_names


class Linear(nn.Module):
    """Images [B, 3, H, W], normalised and padded to multiples of 32, to logits [B, classes, H/32, W/32]."""

    def __init__(self, encoder: str, classes: int, pretrained: bool):
        super().__init__()
        self.encoder = timm.create_model(encoder, pretrained=pretrained, features_only=True)
        self.classifier = nn.Conv2d(self.encoder.feature_info.channels()[-1], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x)[-1])


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """`pretrained`: download the encoder's weights. Raises: InputError for an unknown backbone or a failed
    download.

    The segmenter normalises and pads images and resizes logits; it watches the encoder's output for losses on
    features, and finds the encoder's tensors in a local file of timm's for --network.weights.
    """
    with making_timm(config.encoder, pretrained):
        network = Linear(config.encoder, classes, pretrained)
    return Segmenter(network, classes, config.feature_layer or "encoder", encoder_tensors=timm_names)

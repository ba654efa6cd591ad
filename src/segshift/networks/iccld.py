"""The networks of ICCLD: encoder, latent head, label encoder, decoder, denoising UNet, discriminator (all
ours).

    B, C, K      batch, classes, latent channels
    x            image, normalised and padded                       [B, 3, H, W]; 32 divides H and W
    y            label                                              [B, H, W] train ids, 255 void
    z            latent, about zero mean and unit variance          [B, K, H/8, W/8]
    skips        encoder features at strides 4 and 8                [B, c4, H/4, W/4] and [B, c8, H/8, W/8]

The heads are normalised by groups, not over the batch: a step sees two to four images of two domains, the
decoder takes latents of three origins (image, label, denoised), and neither has statistics that the other
should be scaled by. The encoder keeps the normalisation that it was pretrained with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from segshift.config import NetworkConfig
from segshift.data.labels import IGNORE
from segshift.networks.segmenter import STRIDE, Segmenter
from segshift.networks.vit import backbone, encoder_tensors, quarters
from segshift.networks.weights import making_timm
from segshift.runs import InputError

STRIDES = (4, 8, 16, 32)
"""Of the encoder's four maps."""
LATENT_STRIDE = 8
WIDTH = 128
"""Channels of the heads."""
SKIP_WIDTH = 48
"""Channels of an inter-coder connection; as DeepLabV3+ projects its low-level features."""
HEAD_LR = 10.0
"""Factor on the learning rate of everything but the encoder (DAFormer)."""
STATISTICS_MOMENTUM = 0.02
"""Share of a batch in the running statistics of the latent, once 50 batches were seen."""


class Encoder(nn.Module):
    """Any timm backbone that takes images of any size, as four maps at strides 4, 8, 16 and 32."""

    def __init__(self, name: str, pretrained: bool):
        """`name`: a convolutional or hierarchical backbone, or a plain vision transformer such as DINOv2's.

        Raises: InputError for a backbone without such maps; timm's own errors for an unknown name or a failed
        download.
        """
        super().__init__()
        self.model: Any = backbone(name, pretrained)
        stages = list(self.model.feature_info)
        strides = [stage["reduction"] for stage in stages]
        self.plain = len(set(strides)) == 1 and len(strides) >= len(STRIDES) and STRIDE % strides[0] == 0
        if not self.plain and tuple(strides[-4:]) != STRIDES:
            raise InputError(
                f"backbone '{name}' has features at strides {strides}, expected 4, 8, 16 and 32, or one "
                "stride for all blocks, which divides 32, as in a plain vision transformer: choose another "
                "one of timm's"
            )
        self.indices = quarters(len(stages)) if self.plain else list(range(len(stages) - 4, len(stages)))
        self.channels = [stages[i]["num_chs"] for i in self.indices]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [B, 3, H, W] to four maps [B, c, H/s, W/s], s = 4, 8, 16, 32."""
        size = x.shape[-2:]
        maps = self.model.forward_intermediates(
            x, indices=self.indices, norm=self.plain, intermediates_only=True, output_fmt="NCHW"
        )
        return [_resize(m, [side // s for side in size]) for m, s in zip(maps, STRIDES, strict=True)]


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class RunningNorm(nn.Module):
    """Latents by their running mean and deviation, one of each per channel.

    In training each batch first moves the statistics; then, in training as in evaluation, the latent is
    normalised by them as by constants: no gradient passes through them. So a frame's latent does not depend
    on its neighbours in the batch, and the decoder and the diffusion are trained on what they will be given.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("variance", torch.ones(channels, 1, 1))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, z: Tensor) -> Tensor:
        """z [B, K, h, w] to float32 of the same shape."""
        z = z.float()
        if self.training:
            self._follow(z.detach())
        return (z - self.mean) / (self.variance + 1e-5).sqrt()

    @torch.no_grad()
    def _follow(self, z: Tensor) -> None:
        self.batches += 1
        share = (1 / self.batches).clamp(min=STATISTICS_MOMENTUM)  # the plain mean over the first batches
        variance, mean = torch.var_mean(z, (0, 2, 3), keepdim=True, correction=0)
        distance = mean[0] - self.mean
        self.mean += share * distance  # of the mixture of what was seen and this batch, as the variance is
        self.variance += share * (variance[0] - self.variance + (1 - share) * distance**2)


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.GroupNorm(math.gcd(32, channels_out), channels_out),
        nn.SiLU(),
    )


class LatentHead(nn.Module):
    """Four maps to the image latent z_x."""

    def __init__(self, channels: Sequence[int], latent_channels: int, width: int):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.fuse = nn.Sequential(_convolution(4 * width, width), nn.Conv2d(width, latent_channels, 1))
        self.norm = RunningNorm(latent_channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[1].shape[-2:]
        lateral = [_resize(project(m), size) for project, m in zip(self.laterals, maps, strict=True)]
        return self.norm(self.fuse(torch.cat(lateral, 1)))


def class_shares(label: Tensor, classes: int, stride: int) -> Tensor:
    """label [B, H, W], 255 void, to the share of each class and of void in each cell [B, C + 1, H/s, W/s]."""
    index = torch.where(label == IGNORE, classes, label.long())
    return F.avg_pool2d(F.one_hot(index, classes + 1).movedim(-1, 1).float(), stride)


class LabelEncoder(nn.Module):
    """E_y: a label to the label latent z_y. Void is one more class to it."""

    def __init__(self, classes: int, latent_channels: int, width: int = WIDTH // 2):
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            _convolution(classes + 1, width),
            _convolution(width, width, stride=2),
            nn.Conv2d(width, latent_channels, 1),
        )
        self.norm = RunningNorm(latent_channels)

    def forward(self, label: Tensor) -> Tensor:
        """label [B, H, W], 255 void, 8 divides H and W, to z_y [B, K, H/8, W/8]."""
        return self.norm(self.body(class_shares(label, self.classes, LATENT_STRIDE // 2)))


class Decoder(nn.Module):
    """D: a latent to logits, with the inter-coder connections or without."""

    def __init__(
        self, channels: Sequence[int], latent_channels: int, classes: int, width: int, inter_coder: bool
    ):
        """`channels`: of the skips at strides 4 and 8."""
        super().__init__()
        skip = SKIP_WIDTH if inter_coder else 0
        self.connections = nn.ModuleList(nn.Conv2d(c, skip, 1) for c in channels) if inter_coder else None
        self.coarse = nn.Sequential(_convolution(latent_channels + skip, width), _convolution(width, width))
        self.fine = _convolution(width + skip, width)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, z: Tensor, skips: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """z [B, K, H/8, W/8] to logits [B, C, H, W], (H, W) = size."""
        fine, coarse = [], []
        if self.connections is not None:
            fine, coarse = ([project(s)] for project, s in zip(self.connections, skips, strict=True))
        h = self.coarse(torch.cat([z, *coarse], 1))
        h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
        return _resize(self.classify(self.fine(torch.cat([h, *fine], 1))), size)


class LatentSegmenter(nn.Module):
    """f = D after E: the part of ICCLD that draws nothing, a segmentation network like any other."""

    def __init__(
        self,
        encoder: str,
        classes: int,
        *,
        pretrained: bool = True,
        latent_channels: int = 8,
        inter_coder: bool = True,
        width: int = WIDTH,
    ):
        """`encoder`: timm's name of a backbone. Raises: as `Encoder`."""
        super().__init__()
        self.latent_channels = latent_channels
        self.encoder = Encoder(encoder, pretrained)
        self.head = LatentHead(self.encoder.channels, latent_channels, width)
        self.decoder = Decoder(self.encoder.channels[:2], latent_channels, classes, width, inter_coder)

    def fuse(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The encoder's four maps to z_x [B, K, H/8, W/8] and the skips."""
        return self.head(maps), list(maps[:2])

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x [B, 3, H, W] to z_x [B, K, H/8, W/8] and the skips at strides 4 and 8."""
        return self.fuse(self.encoder(x))

    def decode(self, z: Tensor, skips: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """z [B, K, H/8, W/8] to logits [B, C, H, W], (H, W) = size."""
        return self.decoder(z, skips, size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] to logits [B, C, H, W]."""
        z, skips = self.encode(x)
        return self.decode(z, skips, x.shape[-2:])

    def checkpoint_gradients(self) -> None:
        """Recompute the encoder's activations in the backward pass instead of keeping them.

        Batch norm then sees each batch twice and follows it the faster for it.
        """
        self.encoder.model.set_grad_checkpointing(True)


def build(config: NetworkConfig, classes: int, pretrained: bool) -> Segmenter:
    """f on a backbone of timm. Raises: InputError for an unknown or unfit backbone, or a failed download."""
    encoder = config.encoder.removeprefix("tu-")  # as smp marks timm's
    with making_timm(encoder, pretrained):
        network = LatentSegmenter(
            encoder,
            classes,
            pretrained=pretrained,
            latent_channels=config.iccld.latent_channels,
            inter_coder=config.iccld.inter_coder,
        )
    network = network.to(memory_format=torch.channels_last)
    layer = config.feature_layer or "encoder"
    return Segmenter(network, classes, layer, encoder_tensors=encoder_tensors, head_lr=HEAD_LR)


class Denoiser(nn.Module):
    """eps_theta: diffusers' `UNet2DModel` on the noisy latent and the condition, side by side."""

    def __init__(self, latent_channels: int, channels: Sequence[int], layers: int):
        """`channels`: by level; a level halves the resolution, the coarsest one has attention."""
        super().__init__()
        groups = math.gcd(32, *channels)
        levels = len(channels) - 1
        self.multiple = 2**levels
        self.unet = UNet2DModel(
            in_channels=2 * latent_channels,
            out_channels=latent_channels,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D",) * levels + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * levels,
            layers_per_block=layers,
            norm_num_groups=groups,
            attention_head_dim=math.gcd(32, channels[-1]),
        )
        nn.init.zeros_(self.unet.conv_out.weight)  # it starts as no opinion, and what it is added to decides
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, z_t: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        """z_t and condition [B, K, h, w], t [B], to the prediction [B, K, h, w] in float32."""
        height, width = z_t.shape[-2:]
        x = torch.cat([z_t, condition], 1)
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        return self.unet(x, t).sample[..., :height, :width].float()

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.unet.enable_gradient_checkpointing()


class Discriminator(nn.Sequential):
    """A: denoised latents [B, K, h, w] to domain logits [B, 3, h/8, w/8], a decision a patch."""

    def __init__(self, latent_channels: int, width: int = 64, spectral: bool = False):
        channels = (latent_channels, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(channels):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(channels[-1], 3, 3, 1, 1))
        if spectral:
            layers = [spectral_norm(layer) if isinstance(layer, nn.Conv2d) else layer for layer in layers]
        super().__init__(*layers)

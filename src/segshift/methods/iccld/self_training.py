"""ICCLD, step 1: teacher and student, and ClassMix. Symbols, citation and what is the paper's:
`segshift.methods.iccld.diffusion`.

    L = CE(f(x^s), y^s) + CE(f(x^mix), y^mix; w) + CE(D(E_y(y^s), skips), y^s),   f = D after E

The last term where labels are diffused. Options of relatives, off by default: ImageNet feature distance
(Hoyer et al., "DAFormer", CVPR 2022), masked image consistency (Hoyer et al., "MIC", CVPR 2023),
confidence-weighted pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segshift.data.labels import IGNORE
from segshift.methods.base import Batch, Method, cross_entropy, weighted_cross_entropy
from segshift.methods.iccld import ICCLDConfig
from segshift.methods.iccld.classmix import augment, mixed, pseudo_label
from segshift.networks.iccld import HEAD_LR, STRIDES, LabelEncoder, LatentSegmenter, class_shares
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError

M = TypeVar("M", bound=nn.Module)
Tensors = tuple[Tensor, ...] | list[Tensor]

THING_SHARE = 0.75
"""Least share of a cell that one thing class covers, for the feature distance (DAFormer)."""


class Average(AveragedModel, Generic[M]):
    """The average of an M."""

    module: M


def average_of(network: M, momentum: float) -> Average[M]:
    """average = a average + (1 - a) network, a = min(1 - 1 / (step + 1), momentum), buffers included; frozen.

    Counts, such as batch norm's of batches, are copied. Update it once a step.
    """

    def follow(average: Tensors, network: Tensors, steps: Tensor | int) -> None:
        a = min(1 - 1 / (int(steps) + 1), momentum)
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, network, 1 - a)
        else:
            torch._foreach_copy_(average, network)

    average: Average[M] = Average(network, multi_avg_fn=follow, use_buffers=True)
    return average.requires_grad_(False).eval()


def pad_label(label: Tensor, size: Sequence[int], value: float = IGNORE) -> Tensor:
    """[B, h, w] with rows below and columns right of it up to `size`: as the segmenter pads images, but
    void."""
    height, width = label.shape[-2:]
    return F.pad(label, (0, size[1] - width, 0, size[0] - height), value=value)


def feature_distance(
    features: Tensor, reference: Tensor, label: Tensor, classes: int, things: Sequence[int]
) -> Tensor:
    """Mean distance of features [B, D, H/32, W/32] where one of `things` covers the cell (DAFormer, eq. 11 to
    13).

    label: [B, H, W]. Without `things` every class counts.
    """
    share, index = class_shares(label, classes, STRIDES[-1])[:, :classes].max(1)
    chosen = torch.tensor(list(things) or range(classes), device=label.device)
    counted = (share >= THING_SHARE) & torch.isin(index, chosen)
    distance = torch.linalg.vector_norm((features - reference).float(), dim=1)
    return (distance * counted).sum() / counted.sum().clamp(min=1)


def hide_blocks(images: Tensor, block: int, ratio: float, fill: Tensor) -> Tensor:
    """Images [B, 3, H, W] with a share `ratio` of their block x block squares replaced by `fill` (MIC)."""
    count, _, height, width = images.shape
    squares = torch.rand(count, 1, -(-height // block), -(-width // block), device=images.device) < ratio
    hidden = squares.repeat_interleave(block, 2).repeat_interleave(block, 3)[..., :height, :width]
    return torch.where(hidden, fill, images)


def latent_network(segmenter: Segmenter) -> LatentSegmenter:
    """E and D. Raises: InputError when the network has no latent."""
    if not isinstance(segmenter.network, LatentSegmenter):
        raise InputError(
            f"ICCLD decodes from a latent and the network is a {type(segmenter.network).__name__}: take "
            "--network.name iccld, with any backbone of timm as --network.encoder"
        )
    return segmenter.network


class Student(nn.Module):
    """What step 1 trains: E and D, and E_y where labels are diffused."""

    def __init__(self, segmenter: Segmenter, label_encoder: LabelEncoder | None):
        super().__init__()
        self.segmenter, self.label_encoder = segmenter, label_encoder


class SelfTraining(Method):
    """Step 1. One player: E and D, and E_y where labels are diffused."""

    def __init__(
        self,
        segmenter: Segmenter,
        config: ICCLDConfig,
        *,
        excluded: Sequence[int] = (),
        things: Sequence[int] = (),
        head_lr: float = HEAD_LR,
    ):
        """things: train ids whose features are kept near ImageNet's; all classes where empty. head_lr: factor
        on the learning rate of everything but the encoder. Raises: InputError when the network has no latent.
        """
        super().__init__(excluded)
        network = latent_network(segmenter)
        self.segmenter, self.config, self.things, self.head_lr = segmenter, config, tuple(things), head_lr
        labels = config.diffused == "label"
        self.label_encoder = LabelEncoder(segmenter.classes, network.latent_channels) if labels else None
        self.teacher = average_of(self._student(), config.momentum)
        self.reference = (
            copy.deepcopy(network.encoder).requires_grad_(False) if config.feature_distance else None
        )

    def _student(self) -> Student:
        return Student(self.segmenter, self.label_encoder)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"segmenter": self._student()}

    def parameter_groups(self, player: str) -> list[tuple[list[nn.Parameter], float]]:
        return self.encoder_and_heads(self.segmenter, player, self.head_lr)

    def checkpoint_gradients(self) -> None:
        self.segmenter.checkpoint_gradients()

    def train(self, mode: bool = True) -> SelfTraining:
        super().train(mode)
        for frozen in (self.teacher, self.reference):
            if frozen is not None:
                frozen.eval()
        return self

    def losses(self, player: str, prepared: Batch, step: int) -> dict[str, Tensor]:
        """prepared: source and target [B, 3, H, W], label [B, H, W] of the source."""
        x_s, y_s, x_t, c = prepared["source"], prepared["label"], prepared["target"], self.config
        y_t, trust = self._pseudo(x_t)
        x_mix, y_mix, w = mixed(x_s, y_s, x_t, y_t, trust, c.augmentation)
        images = [x_s, x_mix]
        if c.masked_weight:
            images.append(
                hide_blocks(augment(x_t, c.augmentation), c.masked_block, c.masked_ratio, self.segmenter.mean)
            )
        x = self.segmenter.prepare(torch.cat(images))
        network, (height, width), count = latent_network(self.segmenter), y_s.shape[-2:], len(x_s)
        maps = network.encoder(x)
        z, skips = network.fuse(maps)
        logits = network.decode(z, skips, x.shape[-2:])[..., :height, :width].chunk(len(images))
        terms = {
            "source": cross_entropy(logits[0], y_s),
            "mixed": weighted_cross_entropy(logits[1], y_mix, w),
        }
        y = pad_label(y_s, x.shape[-2:])
        if self.label_encoder is not None:
            constant = [skip[:count].detach() for skip in skips]
            decoded = network.decode(self.label_encoder(y), constant, x.shape[-2:])
            terms["label_latent"] = cross_entropy(decoded, y)
        if self.reference is not None:
            with torch.no_grad():
                reference = self.reference(x[:count])[-1]
            distance = feature_distance(maps[-1][:count], reference, y, self.segmenter.classes, self.things)
            terms["feature_distance"] = c.feature_distance * distance
        if c.masked_weight:
            terms["masked"] = c.masked_weight * weighted_cross_entropy(logits[2], y_t, trust)
        return terms

    def _pseudo(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's y^t [B, H, W] and the weight of its pixels: q [B, 1, 1], or max p [B, H, W]."""
        with torch.inference_mode():
            found = pseudo_label(self.predict(target).float().softmax(1), self.config.threshold)
        y_t, confidence, q = (part.clone() for part in found)  # clones may take part in a backward pass
        return y_t, confidence if self.config.confidence_weighted else q[:, None, None]

    def after_step(self, step: int) -> None:
        self.teacher.update_parameters(self._student())

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return self.restrict(self.teacher.module.segmenter(images))

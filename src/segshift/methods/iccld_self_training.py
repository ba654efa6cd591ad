"""ICCLD, step 1: teacher and student, and ClassMix. Symbols, citation and what is the paper's: `segshift.methods.iccld`.

    L = CE(f(x^s), y^s) + CE(f(x^mix), y^mix; w) + CE(D(E_y(y^s), skips), y^s),   f = D after E

The last term where labels are diffused. Options of relatives, off by default: ImageNet feature distance (Hoyer et al.,
"DAFormer", CVPR 2022), masked image consistency (Hoyer et al., "MIC", CVPR 2023), confidence-weighted pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segshift.config import StrongAugmentation
from segshift.iccld_network import STRIDES, LabelEncoder, LatentSegmenter, class_shares
from segshift.labels import IGNORE
from segshift.methods import Batch, Method, cross_entropy, weighted_cross_entropy
from segshift.methods.classmix import augment, mixed, pseudo_label
from segshift.models import Segmenter
from segshift.runs import InputError

Reading = Literal["label", "image"]
THINGS = (
    "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""Classes whose features DAFormer keeps near ImageNet's."""
THING_SHARE = 0.75
"""Least share of a cell that one thing class covers, for the feature distance (DAFormer)."""


def average_of(network: nn.Module, momentum: float) -> AveragedModel:
    """average = a average + (1 - a) network, a = min(1 - 1 / (step + 1), momentum), buffers included; frozen.

    Counts, such as batch norm's of batches, are copied. Update it once a step.
    """

    def follow(average: list[Tensor], network: list[Tensor], steps: Tensor) -> None:
        a = min(1 - 1 / (int(steps) + 1), momentum)
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, network, 1 - a)
        else:
            torch._foreach_copy_(average, network)

    return AveragedModel(network, multi_avg_fn=follow, use_buffers=True).requires_grad_(False).eval()


def pad_label(label: Tensor, size: Sequence[int], value: float = IGNORE) -> Tensor:
    """[B, h, w] with rows below and columns right of it up to `size`: as the segmenter pads images, but void."""
    height, width = label.shape[-2:]
    return F.pad(label, (0, size[1] - width, 0, size[0] - height), value=value)


def feature_distance(features: Tensor, reference: Tensor, label: Tensor, classes: int, things: Sequence[int]) -> Tensor:
    """Mean distance of features [B, D, H/32, W/32] where one of `things` covers the cell (DAFormer, eq. 11 to 13).

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


class SelfTraining(Method):
    """Step 1. One player: E and D, and E_y where labels are diffused."""

    def __init__(
        self,
        segmenter: Segmenter,
        excluded: Sequence[int] = (),
        *,
        reading: Reading = "label",
        threshold: float = 0.968,
        momentum: float = 0.999,
        augmentation: StrongAugmentation = StrongAugmentation(),
        confidence_weighted: bool = False,
        feature_distance: float = 0.0,
        thing_classes: Sequence[int] = (),
        masked_weight: float = 0.0,
        masked_block: int = 64,
        masked_ratio: float = 0.7,
        head_lr: float = 10.0,
        gradient_checkpointing: bool = False,
    ):
        """The arguments' meaning: `ICCLDConfig`. Raises: InputError when the network has no latent."""
        super().__init__(excluded)
        if not isinstance(segmenter.network, LatentSegmenter):
            raise InputError(
                f"ICCLD decodes from a latent and the network is a {type(segmenter.network).__name__}: take "
                "network.name iccld, with any backbone of timm as network.encoder"
            )
        self.segmenter, self.reading, self.threshold, self.augmentation = segmenter, reading, threshold, augmentation
        self.confidence_weighted, self.head_lr = confidence_weighted, head_lr
        self.distance_weight, self.things = feature_distance, tuple(thing_classes)
        self.masked_weight, self.masked_block, self.masked_ratio = masked_weight, masked_block, masked_ratio
        network = segmenter.network
        self.label_encoder = LabelEncoder(segmenter.classes, network.latent_channels) if reading == "label" else None
        self.teacher = average_of(self._student(), momentum)
        self.reference = copy.deepcopy(network.encoder).requires_grad_(False) if feature_distance else None
        if gradient_checkpointing:
            network.checkpoint_gradients()

    def _student(self) -> nn.ModuleList:
        return nn.ModuleList([self.segmenter] if self.label_encoder is None else [self.segmenter, self.label_encoder])

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"segmenter": self._student()}

    def parameter_groups(self, player: str) -> list[tuple[list[nn.Parameter], float]]:
        encoder = list(self.segmenter.network.encoder.parameters())
        known = {id(parameter) for parameter in encoder}
        heads = [parameter for parameter in self._student().parameters() if id(parameter) not in known]
        return [(encoder, 1.0), (heads, self.head_lr)]

    def train(self, mode: bool = True) -> SelfTraining:
        super().train(mode)
        for frozen in (self.teacher, self.reference):
            if frozen is not None:
                frozen.eval()
        return self

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """batch: source and target [B, 3, H, W], label [B, H, W] of the source."""
        x_s, y_s, x_t = batch["source"], batch["label"], batch["target"]
        y_t, trust = self._pseudo(x_t)
        x_mix, y_mix, w = mixed(x_s, y_s, x_t, y_t, trust, self.augmentation)
        images = [x_s, x_mix]
        if self.masked_weight:
            hidden = hide_blocks(augment(x_t, self.augmentation), self.masked_block, self.masked_ratio, self.segmenter.mean)
            images.append(hidden)
        x = self.segmenter.prepare(torch.cat(images))
        network, (height, width), count = self.segmenter.network, y_s.shape[-2:], len(x_s)
        maps = network.encoder(x)
        z, skips = network.fuse(maps)
        logits = network.decode(z, skips, x.shape[-2:])[..., :height, :width].chunk(len(images))
        terms = {"source": cross_entropy(logits[0], y_s), "mixed": weighted_cross_entropy(logits[1], y_mix, w)}
        y = pad_label(y_s, x.shape[-2:])
        if self.label_encoder is not None:
            constant = [skip[:count].detach() for skip in skips]
            decoded = network.decode(self.label_encoder(y), constant, x.shape[-2:])
            terms["label_latent"] = cross_entropy(decoded, y)
        if self.reference is not None:
            with torch.no_grad():
                reference = self.reference(x[:count])[-1]
            distance = feature_distance(maps[-1][:count], reference, y, self.segmenter.classes, self.things)
            terms["feature_distance"] = self.distance_weight * distance
        if self.masked_weight:
            terms["masked"] = self.masked_weight * weighted_cross_entropy(logits[2], y_t, trust)
        return terms

    def _pseudo(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's y^t [B, H, W] and the weight of its pixels: q [B, 1, 1], or max p [B, H, W]."""
        with torch.inference_mode():
            found = pseudo_label(self.predict(target).float().softmax(1), self.threshold)
        y_t, confidence, q = (part.clone() for part in found)  # clones may take part in a backward pass
        return y_t, confidence if self.confidence_weighted else q[:, None, None]

    def after_step(self, step: int) -> None:
        self.teacher.update_parameters(self._student())

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return self.restrict(self.teacher.module[0](images))

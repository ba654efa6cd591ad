"""ICCLD, step 1: teacher and student, and ClassMix. Symbols, citation and what is the paper's:
`segshift.methods.iccld.diffusion`.

    L = CE(f(x^s), y^s) + CE(f(x^mix), y^mix; w) + CE(D(E_y(y^s), skips), y^s),   f = D after E

The last term where labels are diffused. Options of relatives, off by default: ImageNet feature distance
(Hoyer et al., "DAFormer", CVPR 2022), masked image consistency (Hoyer et al., "MIC", CVPR 2023).

Batch norm in E sees one domain at a time, and its running statistics, which the teacher labels and predicts
with, are the target's (Li et al., "Adaptive Batch Normalization", 2018). With statistics of both domains the
teacher is sure and wrong in the target, and the student learns that (LOG.md).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from segshift.data.labels import IGNORE
from segshift.methods.base import Batch, Method, cross_entropy, weighted_cross_entropy
from segshift.methods.iccld import ICCLDConfig
from segshift.methods.iccld.classmix import class_thresholds, mixed, pseudo_label, strong_view
from segshift.networks.iccld import HEAD_LR, STRIDES, LabelEncoder, LatentSegmenter, class_shares
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError

M = TypeVar("M", bound=nn.Module)
Tensors = tuple[Tensor, ...] | list[Tensor]

LEAST = 0.5
"""Confidence below which no pseudo-label counts (ours). The surest half of what an untrained teacher says is
mostly wrong, and with it step 1 from scratch ends below source only (LOG.md)."""
TRUSTED = "pseudo-labels that count"
"""Name of their share in the log."""
FEW = 0.001
"""Mean share of them below which step 1 has learnt nothing from the target."""
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


class Thresholds(nn.Module):
    """The confidence from which pseudo-labels of each class count [C], as the last batch has it."""

    def __init__(self, classes: int):
        super().__init__()
        self.register_buffer("value", torch.ones(classes))

    value: Tensor

    def within(self, most: float) -> Tensor:
        """[C] between LEAST and `most`; all `most` where that is lower than LEAST."""
        return self.value.clamp(min(LEAST, most), most)


class Student(nn.Module):
    """What step 1 trains: E and D, and E_y where labels are diffused. Its thresholds are a batch's own, and
    their moving average is the teacher's.
    """

    def __init__(self, segmenter: Segmenter, label_encoder: LabelEncoder | None, thresholds: Thresholds):
        super().__init__()
        self.segmenter, self.label_encoder, self.thresholds = segmenter, label_encoder, thresholds


class TargetStatistics:
    """Batch norm of an encoder: it normalises by the batch in training, and its running statistics follow the
    target's images alone.
    """

    def __init__(self, encoder: nn.Module):
        self.encoder = encoder
        found = [m for m in encoder.modules() if isinstance(m, _BatchNorm)]
        self.norms = [(norm, norm.momentum) for norm in found if norm.track_running_stats]
        for norm, _ in self.norms:
            norm.momentum = 0.0

    @torch.no_grad()
    def follow(self, target: Tensor) -> None:
        """Move the running statistics towards those of target images [B, 3, H, W], normalised and padded."""
        if not self.norms:
            return
        for norm, momentum in self.norms:
            norm.momentum = momentum
        self.encoder(target)
        for norm, _ in self.norms:
            norm.momentum = 0.0


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
        self.thresholds = Thresholds(segmenter.classes)
        self.statistics = TargetStatistics(network.encoder)
        self.trusted = torch.zeros(())
        self.teacher = average_of(self._student(), config.momentum)
        self.reference = (
            copy.deepcopy(network.encoder).requires_grad_(False) if config.feature_distance else None
        )

    def _student(self) -> Student:
        return Student(self.segmenter, self.label_encoder, self.thresholds)

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
                hide_blocks(
                    strong_view(x_t, c.augmentation), c.masked_block, c.masked_ratio, self.segmenter.mean
                )
            )
        x = self.segmenter.prepare(torch.cat(images))
        network, (height, width), count = latent_network(self.segmenter), y_s.shape[-2:], len(x_s)
        self.statistics.follow(self.segmenter.prepare(x_t))
        by_domain = [network.encoder(part) for part in x.split(count)]
        maps = [torch.cat(level) for level in zip(*by_domain, strict=True)]
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
        """The teacher's y^t [B, H, W] and q [B, H, W]."""
        with torch.no_grad():
            p = self.predict(target).float().softmax(1)
            y_t, confidence, q = pseudo_label(p, self.class_thresholds)
            self.thresholds.value.copy_(
                class_thresholds(y_t, confidence, self.config.sure_share, self.class_thresholds)
            )
        self.trusted = q.mean()
        return y_t, q

    def observed(self) -> dict[str, Tensor]:
        """The share of the target's pixels whose pseudo-label counts, in [0, 1], in the last micro-batch."""
        return {TRUSTED: self.trusted}

    def advice(self, means: Mapping[str, float]) -> str | None:
        if means[TRUSTED] >= FEW:
            return None
        return (
            f"pseudo-labels counted on {means[TRUSTED]:.2%} of the target's pixels: this training learnt "
            "from the source alone. Start from --network.weights of a network trained on the source, "
            "train longer, or transfer the source towards the target first"
        )

    @property
    def class_thresholds(self) -> Tensor:
        """The teacher's [C], between LEAST and `threshold`."""
        return self.teacher.module.thresholds.within(self.config.threshold)

    def after_step(self, step: int) -> None:
        self.teacher.update_parameters(self._student())

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return self.restrict(self.teacher.module.segmenter(images))

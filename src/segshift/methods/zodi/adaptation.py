"""ZoDi, section 3.2: model adaptation on pairs of source and transferred image.

Azuma, Matsui, Maki, "ZoDi: Zero-Shot Domain Adaptation with Diffusion-Based Image Transfer", arXiv
2403.13652, ECCV 2024 workshop. Official code: azuma164/ZoDi (MIT).

    B, C, D   batch, classes, channels of the encoder's last stage
    x         source image                                         [B, 3, H, W] in [0, 1]
    x'        the same frame, transferred (zodi/transfer.py)       [B, 3, H, W] in [0, 1]
    y         label of both; of x' with void where a gate found    [B, H, W] train ids, 255 void
              the transfer to have failed
    f         segmenter, images to logits                          [B, C, H, W]
    g         encoder, pooled over space and normalised            [B, D], length 1
    lambda    weight of the similarity loss, 0.1
    p, q      projector and predictor of SimSiam and BYOL          [B, D] to [B, 128] to [B, 128]

    L = CE(f(x), y) + CE(f(x'), y) + lambda L_sim
    L_sim = - cos(g(x), g(x')), gradient through both branches

Variants of L_sim: SimSiam (Chen and He, CVPR 2021, eq. 2 to 4) and BYOL (Grill et al., NeurIPS 2020, eq. 2).

Deviations from the paper: none in the formulas. From the published code:
- It makes two passes, x then x', each with the encoder run on the other image besides; it adds the similarity
  in the pass of x only, accumulates both gradients, and steps once. That is the gradient of L. We run x and
  x' as one batch (`joint_pass`), which is the same gradient up to batch-norm statistics, taken here over both
  domains, in half of the encoder passes. With `joint_pass` False x and x' go through one after the other.
- SimSiam and BYOL there keep the feature map up to a 3 x 3 convolution before pooling, and BYOL compares all
  four stages; here both heads stand on g. The two directions are averaged there as here (SimSiam: summed
  there). The stop-gradient of SimSiam there is written so that it has no effect; here it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segshift.methods.base import Batch, Method, cross_entropy
from segshift.methods.zodi import Similarity
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError

HEAD_CHANNELS = 128
"""Width of the heads' output, as in the published code."""
BYOL_MOMENTUM = 0.99
"""Of BYOL's moving average, as in the published code."""


def pooled(features: Tensor) -> Tensor:
    """g: features [B, D, h, w], or [B, tokens, D] of a transformer, to [B, D] of length 1 (in float32)."""
    positions = (2, 3) if features.ndim == 4 else 1
    return F.normalize(features.float().mean(positions), dim=1)


def similarity(g: Tensor, g_transferred: Tensor) -> Tensor:
    """L_sim = - cos(g(x), g(x')) of vectors [B, D], the mean over the batch: in [-1, 1]."""
    return -F.cosine_similarity(g, g_transferred, dim=1).mean()


def predicted_similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """SimSiam eq. 3: - cos(q(p(x)), stop-gradient of p(x')), the mean over the batch. BYOL's eq. 2 is 2 + 2
    times it.
    """
    return similarity(prediction, target.detach())


def head(channels_in: int, hidden: int) -> nn.Sequential:
    """Projector or predictor: [B, channels_in] to [B, 128]."""
    return nn.Sequential(
        nn.Linear(channels_in, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, HEAD_CHANNELS),
    )


class Projected(nn.Module):
    """p after g: what BYOL averages."""

    def __init__(self, segmenter: Segmenter, projector: nn.Module):
        super().__init__()
        self.segmenter, self.projector = segmenter, projector

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to [B, 128]."""
        return self.projector(pooled(self.segmenter.forward_with_features(images)[1]))


class ZoDi(Method):
    """One player: the segmenter, with its heads where the similarity has some."""

    def __init__(
        self,
        segmenter: Segmenter,
        excluded: Sequence[int] = (),
        *,
        form: Similarity = "cosine",
        weight: float = 0.1,
        joint_pass: bool = True,
        head_lr: float = 1.0,
    ):
        """`weight` is lambda; `head_lr` the factor on the learning rate of everything but the encoder.

        Raises: InputError when the similarity needs a feature layer that the network has not.
        """
        super().__init__(excluded)
        self.segmenter, self.form, self.weight, self.joint_pass = segmenter, form, weight, joint_pass
        self.head_lr = head_lr
        if form != "none" and segmenter.feature_channels is None:
            raise InputError(
                "the similarity loss compares a layer's output, and segshift knows none of this network: "
                "name one in --network.feature-layer, or train with --zodi.similarity none"
            )
        if form in ("simsiam", "byol"):
            assert segmenter.feature_channels is not None
            self.projector = head(segmenter.feature_channels, 4 * HEAD_CHANNELS)
            self.predictor = head(HEAD_CHANNELS, HEAD_CHANNELS)
        if form == "byol":
            average = get_ema_multi_avg_fn(BYOL_MOMENTUM)
            self.target = AveragedModel(Projected(segmenter, self.projector), multi_avg_fn=average)
            self.target.requires_grad_(False)

    @property
    def networks(self) -> dict[str, nn.Module]:
        heads = [self.projector, self.predictor] if self.form in ("simsiam", "byol") else []
        return {"segmenter": nn.ModuleList([self.segmenter, *heads])}

    def parameter_groups(self, player: str) -> list[tuple[list[nn.Parameter], float]]:
        return self.encoder_and_heads(self.segmenter, player, self.head_lr)

    def checkpoint_gradients(self) -> None:
        self.segmenter.checkpoint_gradients()

    def losses(self, player: str, prepared: Batch, step: int) -> dict[str, Tensor]:
        """prepared: source and transferred [B, 3, H, W], label [B, H, W], and transferred_label where it is
        another.
        """
        x, x_transferred, y = prepared["source"], prepared["transferred"], prepared["label"]
        (logits, features), (logits_transferred, features_transferred) = self._both(x, x_transferred)
        terms = {
            "source": cross_entropy(logits, y),
            "transferred": cross_entropy(logits_transferred, prepared.get("transferred_label", y)),
        }
        if features is not None and features_transferred is not None:
            loss = self._similarity(pooled(features), pooled(features_transferred), x, x_transferred)
            terms["similarity"] = self.weight * loss
        return terms

    def _both(self, x: Tensor, x_transferred: Tensor) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """(f(x), features of x) and the same of x'."""
        if not self.joint_pass:
            return self._pass(x), self._pass(x_transferred)
        logits, features = self._pass(torch.cat([x, x_transferred]))
        halves = (None, None) if features is None else features.chunk(2)
        return tuple(zip(logits.chunk(2), halves, strict=True))

    def _pass(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return (
            (self.segmenter(images), None)
            if self.form == "none"
            else self.segmenter.forward_with_features(images)
        )

    def _similarity(self, g: Tensor, g_transferred: Tensor, x: Tensor, x_transferred: Tensor) -> Tensor:
        if self.form == "cosine":
            return similarity(g, g_transferred)
        z, z_transferred = self.projector(g), self.projector(g_transferred)
        target, target_transferred = z, z_transferred
        if self.form == "byol":
            target, target_transferred = self._target(x), self._target(x_transferred)
        there = predicted_similarity(self.predictor(z), target_transferred)
        back = predicted_similarity(self.predictor(z_transferred), target)
        return (there + back) / 2

    @torch.no_grad()
    def _target(self, images: Tensor) -> Tensor:
        """BYOL's target projection [B, 128], from the averaged encoder and projector."""
        return self.target(images)

    def after_step(self, step: int) -> None:
        if self.form == "byol":
            self.target.update_parameters(Projected(self.segmenter, self.projector))

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return self.restrict(self.segmenter(images))

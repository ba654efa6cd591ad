"""Source only: the baseline of every adaptation method.

    x   source image [B, 3, H, W]    y   its label [B, H, W]    f   the segmenter

    L = CE(f(x), y)

With `jitter` at zero it is the plain baseline; with strong jitter, the augmentation baseline.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segshift.methods.base import Batch, Method, cross_entropy
from segshift.networks.segmenter import Segmenter


class SourceOnly(Method):
    """One player, one term."""

    def __init__(self, segmenter: Segmenter, excluded: Sequence[int] = (), head_lr: float = 1.0):
        """`head_lr`: factor on the learning rate of everything but the encoder."""
        super().__init__(excluded)
        self.segmenter, self.head_lr = segmenter, head_lr

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"segmenter": self.segmenter}

    def parameter_groups(self, player: str) -> list[tuple[list[nn.Parameter], float]]:
        return self.encoder_and_heads(self.segmenter, player, self.head_lr)

    def checkpoint_gradients(self) -> None:
        self.segmenter.checkpoint_gradients()

    def losses(self, player: str, prepared: Batch, step: int) -> dict[str, Tensor]:
        """prepared: source [B, 3, H, W], label [B, H, W]."""
        return {"source": cross_entropy(self.segmenter(prepared["source"]), prepared["label"])}

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return self.restrict(self.segmenter(images))

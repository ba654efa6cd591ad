"""Source only: the baseline of every adaptation method.

    x   source image [B, 3, H, W]    y   its label [B, H, W]    f   the segmenter

    L = CE(f(x), y)

With `jitter` at zero it is the plain baseline; with strong jitter, the augmentation baseline.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segshift.methods import Batch, Method, cross_entropy
from segshift.models import Segmenter


class SourceOnly(Method):
    """One player, one term."""

    def __init__(self, segmenter: Segmenter, excluded: Sequence[int] = (), head_lr: float = 1.0):
        """`head_lr`: factor on the learning rate of everything but the encoder; any other than 1 needs a network with one."""
        super().__init__(excluded)
        self.segmenter, self.head_lr = segmenter, head_lr

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"segmenter": self.segmenter}

    def parameter_groups(self, player: str) -> list[tuple[list[nn.Parameter], float]]:
        return super().parameter_groups(player) if self.head_lr == 1 else self.encoder_and_heads(player, self.head_lr)

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """batch: source [B, 3, H, W], label [B, H, W]."""
        return {"source": cross_entropy(self.segmenter(batch["source"]), batch["label"])}

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return self.restrict(self.segmenter(images))

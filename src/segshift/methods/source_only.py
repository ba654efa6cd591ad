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

    def __init__(self, segmenter: Segmenter, excluded: Sequence[int] = ()):
        super().__init__(excluded)
        self.segmenter = segmenter

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"segmenter": self.segmenter}

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """batch: source [B, 3, H, W], label [B, H, W]."""
        return {"source": cross_entropy(self.segmenter(batch["source"]), batch["label"])}

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return self.restrict(self.segmenter(images))

"""A method: MinEnt (Vu et al., "ADVENT", CVPR 2019, section 3.1), with unlabelled target images.

    L = CE(f(x^s), y^s) + lambda mean(-sum_c p_c log p_c),   p = softmax f(x^t)

Keep it as src/segshift/methods/minent.py, and add its line to `MethodTable` in methods/__init__.py, with its
import:

    minent: MinEntConfig = field(default_factory=MinEntConfig)

    segshift train OUT --source gta5:/data/gta5 --method minent --target cityscapes:/data/day --minent.weight
    0.01
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from segshift.methods.spec import MethodSettings, MethodSpec, Setup
from segshift.settings import Weight

if TYPE_CHECKING:
    from torch import Tensor

    from segshift.methods.base import Batch, Method


def build(setup: Setup) -> Method:
    """Imports torch here: --help reads the settings, and does not wait for it. Raises: InputError."""
    from segshift.methods.source_only.training import SourceOnly

    class MinEnt(SourceOnly):
        def losses(self, player: str, prepared: Batch, step: int) -> dict[str, Tensor]:
            log_p = self.segmenter(prepared["target"]).float().log_softmax(1)
            entropy = -(log_p.exp() * log_p).sum(1).mean()
            return super().losses(player, prepared, step) | {"entropy": setup.config.minent.weight * entropy}

    segmenter = setup.segmenter()
    return MinEnt(segmenter, setup.excluded, setup.config.head_lr or segmenter.head_lr)


@dataclass(frozen=True)
class MinEntConfig(MethodSettings):
    """Low entropy on the target (MinEnt)."""

    prefix: ClassVar[str] = "minent."
    methods = (
        MethodSpec("minent", "MinEnt", "source images and unlabelled target images", build, target=True),
    )

    weight: Weight = 0.001
    """lambda."""

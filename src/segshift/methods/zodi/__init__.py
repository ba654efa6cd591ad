"""ZoDi's adaptation (section 3.2): its settings, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from segshift.methods.spec import MethodSettings, MethodSpec, Setup
from segshift.settings import Weight

if TYPE_CHECKING:
    from segshift.methods.base import Method

PAPER = (
    "Azuma, Matsui, Maki. ZoDi: Zero-Shot Domain Adaptation with Diffusion-Based Image Transfer. "
    "ECCV Workshops 2024, arXiv 2403.13652"
)
Similarity = Literal["cosine", "simsiam", "byol", "none"]


def build(setup: Setup) -> Method:
    """Raises: InputError, also when the similarity needs a feature layer that the network has not."""
    from segshift.methods.zodi.adaptation import ZoDi

    settings = setup.config.zodi
    return ZoDi(
        setup.segmenter(),
        setup.excluded,
        form=settings.similarity,
        weight=settings.similarity_weight,
        joint_pass=settings.joint_pass,
        head_lr=setup.config.head_lr or 1.0,
    )


@dataclass(frozen=True)
class ZoDiConfig(MethodSettings):
    """Training on pairs of source and transferred image (ZoDi, section 3.2)."""

    prefix: ClassVar[str] = "zodi."
    methods = (
        MethodSpec(
            "zodi", "ZoDi", "pairs of source and transferred image", build, transferred=True, paper=PAPER
        ),
    )

    similarity: Similarity = "cosine"
    """Form of the similarity loss between the features of the two images."""
    similarity_weight: Weight = 0.1
    """Weight of the similarity loss (lambda in the paper)."""
    joint_pass: bool = True
    """Both images of a pair go through the network in one batch; False: in two, each with its own batch-norm
    statistics."""

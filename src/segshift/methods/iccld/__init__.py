"""ICCLD: its settings, and what its two steps need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from segshift.methods.spec import MethodSettings, MethodSpec, Setup
from segshift.runs import InputError
from segshift.settings import Count, Momentum, Settings, Share, Weight

if TYPE_CHECKING:
    from segshift.methods.base import Method
    from segshift.methods.iccld.self_training import SelfTraining

PAPER = (
    "Yu, Sun, Chi, Yang, Luo. Adversarially Domain-adaptive Latent Diffusion for Unsupervised Semantic "
    "Segmentation. CVPR Workshops 2025, arXiv 2412.16859"
)
THINGS = (
    "traffic light",
    "traffic sign",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""Classes whose features DAFormer keeps near ImageNet's."""


def build_self_training(setup: Setup) -> SelfTraining:
    """Step 1. Raises: InputError."""
    from segshift.methods.iccld.self_training import SelfTraining

    segmenter = setup.segmenter()
    return SelfTraining(
        segmenter,
        setup.config.iccld,
        excluded=setup.excluded,
        things=[i for i, name in enumerate(setup.space.names) if name in THINGS],
        head_lr=setup.config.head_lr or segmenter.head_lr,
    )


def build_adversarial_diffusion(setup: Setup) -> Method:
    """Step 2. Raises: InputError, also when it is not what step 1 was trained for."""
    from segshift.methods.iccld.diffusion import AdversarialDiffusion
    from segshift.methods.iccld.self_training import SelfTraining

    step1, config = setup.start, setup.config.iccld
    if step1 is None:
        return AdversarialDiffusion(build_self_training(setup), config)
    assert isinstance(step1, SelfTraining)
    if step1.config.diffused != config.diffused:
        raise InputError(
            f"{setup.config.from_run} diffuses the {step1.config.diffused}, and --iccld.diffused is "
            f"{config.diffused}: give step 2 what step 1 was trained with"
        )
    return AdversarialDiffusion(step1, config)


@dataclass(frozen=True)
class StrongAugmentation(Settings):
    """Colour jitter and Gaussian blur, of one image at a time (DAFormer)."""

    prefix: ClassVar[str] = "iccld.augmentation."

    jitter: Share = 0.2
    """Largest change of brightness, contrast, saturation (factors in [1 - s, 1 + s]) and hue (turns in [-s,
    s]), 0 to 1.
    """
    jitter_probability: Share = 0.8
    """Share of the images that are jittered."""
    blur: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] = (0.15, 1.15)
    """Smallest and largest sigma, in pixels."""
    blur_probability: Share = 0.5
    """Share of the images that are blurred."""


@dataclass(frozen=True)
class ICCLDConfig(MethodSettings):
    """Adaptation to unlabelled target images (ICCLD): step 1 is method self_training, step 2
    adversarial_diffusion.

    The paper's settings are not known to us. These are ours or a related method's, as
    `methods/iccld/diffusion.py` says.
    """

    prefix: ClassVar[str] = "iccld."
    methods = (
        MethodSpec(
            "self_training",
            "ICCLD step 1",
            "source images and unlabelled target images (ICCLD, step 1)",
            build_self_training,
            target=True,
            network="iccld",
            paper=PAPER,
        ),
        MethodSpec(
            "adversarial_diffusion",
            "ICCLD step 2",
            "the same, from a run of self_training (ICCLD, step 2)",
            build_adversarial_diffusion,
            target=True,
            from_run="self_training",
            network="iccld",
            paper=PAPER,
        ),
    )

    diffused: Literal["label", "image"] = "image"
    """The diffused variable: the latent of the label, given the image's; or the latent of the image, given
    that of a strongly augmented view."""
    threshold: Share = 0.968
    """Step 1: confidence from which a pixel of a pseudo-label counts whatever its class, in [0, 1] (DACS)."""
    sure_share: Share = 0.5
    """Step 1: this share of each class's pseudo-label counts too, its surest pixels of a confidence of at
    least 0.5, in [0, 1] (CBST): a fixed threshold alone keeps the large classes and loses the small ones."""
    momentum: Momentum = 0.999
    """Largest weight of its own past in the moving average of teacher (step 1) and UNet (step 2), in [0, 1).
    """
    feature_distance: Weight = 0.0
    """Weight of the distance to the features of the encoder as it was at the start (DAFormer); 0 leaves it
    out.
    """
    masked_weight: Weight = 0.0
    """Weight of the loss on target images with masked blocks (MIC); 0 leaves it out."""
    masked_block: Count = 64
    """Side of a masked block in pixels, 1 or more."""
    masked_ratio: Share = 0.7
    """Share of the blocks that are masked, in [0, 1]."""
    augmentation: StrongAugmentation = field(default_factory=StrongAugmentation)
    unet_channels: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=1)] = (
        64,
        128,
        256,
    )
    """Step 2: channels of the denoising UNet's levels."""
    unet_layers: Annotated[int, Field(ge=1, le=16)] = 1
    """Step 2: residual blocks of each level."""
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    """Step 2: what the UNet predicts."""
    estimate_weight: Weight = 1.0
    """Step 2: weight of the one-step estimate's distance to the clean latent (SDSeg)."""
    decoded_weight: Weight = 1.0
    """Step 2: weight of the cross entropy of the one-step estimate's mask."""
    adversarial_weight: Weight = 0.001
    """Step 2: weight of the adversarial loss (ADVENT); 0 trains without an adversary."""
    adversary_warmup: Annotated[int, Field(ge=0)] = 1500
    """Step 2: optimizer steps before the adversarial loss acts; the discriminator learns from the first."""
    spectral_norm: bool = False
    """Step 2: spectral normalisation of the discriminator."""
    unfreeze_decoder: bool = True
    """Step 2: train a copy of the decoder with the UNet, so that it learns how far to trust a denoised
    latent.
    """

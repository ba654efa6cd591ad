"""Configuration of a training: network, method, data, optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field

from segshift.config.common import (
    Count,
    DataText,
    Device,
    FolderText,
    Momentum,
    NameText,
    Rate,
    RunText,
    Seed,
    Select,
    Settings,
    Share,
    Size,
    Steps,
    Weight,
    Workers,
)

Amount = Annotated[float, Field(ge=0, le=1)]
"""Largest change of brightness, contrast or saturation."""


@dataclass(frozen=True)
class NetworkConfig(Settings):
    """The segmentation network."""

    prefix: ClassVar[str] = "network."

    name: NameText = "deeplabv3plus"
    """`deeplabv3plus` or any other segmentation-models-pytorch architecture, `refinenet`,
    `hf:<folder or hub name>` (transformers), `iccld` (the network of ICCLD without its diffusion), or `module:factory`
    called with classes=<int>."""
    encoder: str = "resnet50"
    """Encoder, for segmentation-models-pytorch and refinenet; timm's name of a backbone for iccld."""
    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 8
    """Channels of the latent at an eighth of the image's size, 1 or more (iccld)."""
    inter_coder: bool = True
    """Inter-coder connections carry encoder features to the decoder (iccld)."""
    pretrained: bool = True
    """Published weights to start from (a download): ImageNet's for an encoder, the hub's for `hf:`."""
    weights: FolderText | None = None
    """Local file to start from instead, of the whole network or the encoder: .safetensors, or .pt/.pth read with
    weights_only=True."""
    feature_layer: str | None = None
    """Module of the network, by its dotted name, whose output the similarity loss compares; None takes the last
    encoder stage, in your own network the output of its `encoder`."""


def _foreign(name: str | None = None, encoder: str | None = None) -> NetworkConfig | None:
    """The network that the options describe; None where none is given.

    Args:
        name: Architecture of the network in a file of weights, as in `segshift train`: `deeplabv3plus`, `refinenet`,
            `module:factory`, ...; None takes the run's own network.
        encoder: Its encoder, for segmentation-models-pytorch and refinenet.
    """
    given = {key: value for key, value in (("name", name), ("encoder", encoder)) if value is not None}
    return NetworkConfig(**given) if given else None


ForeignNetwork = Annotated[NetworkConfig | None, tyro.conf.arg(constructor=_foreign)]
"""The network of a weights file that segshift did not train, as plain options; None where none of them is given."""


@dataclass(frozen=True)
class StrongAugmentation(Settings):
    """Colour jitter and Gaussian blur, of one image at a time (DAFormer)."""

    prefix: ClassVar[str] = "iccld.augmentation."

    jitter: Share = 0.2
    """Largest change of brightness, contrast, saturation (factors in [1 - s, 1 + s]) and hue (turns in [-s, s]), 0 to 1."""
    jitter_probability: Share = 0.8
    """Share of the images that are jittered."""
    blur: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] = (0.15, 1.15)
    """Smallest and largest sigma, in pixels."""
    blur_probability: Share = 0.5
    """Share of the images that are blurred."""


@dataclass(frozen=True)
class ICCLDConfig(Settings):
    """Adaptation to unlabelled target images (ICCLD): step 1 is method self_training, step 2 adversarial_diffusion.

    What the paper is not known to state is ours or a relative's; `methods/iccld.py` says which.
    """

    prefix: ClassVar[str] = "iccld."

    diffused: Literal["label", "image"] = "image"
    """The diffused variable: the latent of the label, given the image's; or the latent of the image, given that of a
    strongly augmented view."""
    threshold: Share = 0.968
    """Step 1: confidence from which a pixel of a pseudo-label counts for its quality, in [0, 1] (DACS)."""
    momentum: Momentum = 0.999
    """Largest weight of its own past in the moving average of teacher (step 1) and UNet (step 2), in [0, 1)."""
    head_lr: Rate = 10.0
    """Learning rate of everything but the encoder, as a factor on `lr` (DAFormer); also of source_only with this network.
    Step 2 trains no encoder, and takes `lr` as it is."""
    confidence_weighted: bool = False
    """Weight each pixel of a pseudo-label by its own confidence instead of the image's quality."""
    feature_distance: Weight = 0.0
    """Weight of the distance to the features of the encoder as it was at the start (DAFormer); 0 leaves it out."""
    masked_weight: Weight = 0.0
    """Weight of the loss on target images with masked blocks (MIC); 0 leaves it out."""
    masked_block: Count = 64
    """Side of such a block in pixels, 1 or more."""
    masked_ratio: Share = 0.7
    """Share of the blocks that are masked, in [0, 1]."""
    augmentation: StrongAugmentation = field(default_factory=StrongAugmentation)
    rare_classes: FolderText | None = None
    """Folder that `segshift check` wrote for the source: frames with rare classes are drawn more often (DAFormer)."""
    rare_temperature: Annotated[float, Field(gt=0, le=1000)] = 0.01
    """Temperature of that draw: the lower, the more often the rarest classes are drawn."""
    unet_channels: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=1)] = (64, 128, 256)
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
    """Step 2: train a copy of the decoder with the UNet, so that it learns how far to trust a denoised latent."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them; also of source_only with network iccld."""


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Train a segmentation network (ZoDi, section 3.2; ICCLD, step 1 or 2; or source only)."""

    source: DataText
    """Labelled source data set, layout:path[:subset]."""
    method: Literal["zodi", "source_only", "self_training", "adversarial_diffusion"] = "zodi"
    """`zodi`: pairs of source and transferred image; `source_only`: the source images alone; `self_training` and
    `adversarial_diffusion`: ICCLD's two steps, with unlabelled target images."""
    more_sources: tuple[DataText, ...] = ()
    """Further labelled data sets of the same classes, such as transferred trees, drawn from like the source (not for
    zodi, which pairs them)."""
    target: DataText | None = None
    """Unlabelled target data set, for ICCLD; labels there are not read."""
    from_run: RunText | None = None
    """Run of step 1 that step 2 starts from."""
    iccld: ICCLDConfig = field(default_factory=ICCLDConfig)
    transferred: tuple[DataText, ...] = ()
    """Transferred data sets of the same frames; one is drawn per pair."""
    validation: DataText | None = None
    """Labelled source validation set; the best checkpoint on it is kept."""
    transferred_validation: tuple[DataText, ...] = ()
    """Transferred validation sets; the best checkpoint on their mean is kept."""
    oracle_validation: tuple[DataText, ...] = ()
    """Labelled validation sets of the target, or of several; the best checkpoint on their mean is kept as the oracle's and
    used for nothing else."""
    select: Select = "source"
    """Which checkpoint the run stands for: last, best on source validation, on transferred validation, or on the
    target's labels (oracle: not attainable without them). Those of the other rules that have a set are kept beside it."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    classes: Literal[13, 16, 19] | None = None
    """Class set; None takes every class of the label space. Pixels of other classes count as void, and those classes
    are never predicted."""
    size: Size = (512, 1024)
    """Height and width that images and labels are resized to before cropping, in pixels."""
    target_size: Size | None = None
    """The same of target images; None takes `size`."""
    crop: Size = (384, 768)
    """Height and width of the random crop, shared by the pair, in pixels."""
    jitter: tuple[Amount, Amount, Amount, Annotated[float, Field(ge=0, le=0.5)]] = (0.5, 0.5, 0.5, 0.3)
    """Colour jitter: brightness, contrast, saturation, hue; drawn separately for x and x'."""
    batch_size: Count = 4
    """Pairs (zodi) or source images per optimizer step, over all processes; ICCLD takes as many target images besides."""
    accumulate: Count = 1
    """Micro-batches per optimizer step; batch_size is a multiple of them times the processes."""
    steps: Steps = 74_375
    """Optimizer steps (the published 100 epochs of Cityscapes at batch 4)."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: Annotated[float, Field(ge=0, le=1000)] = 1e-3
    """Learning rate at the start."""
    momentum: Momentum = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 1e-4
    """Weight decay."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up of the learning rate."""
    poly_power: Annotated[float, Field(ge=0, le=100)] = 0.9
    """The learning rate falls as (1 - step / steps) to this power, every step (published: every epoch)."""
    similarity: Literal["cosine", "simsiam", "byol", "none"] = "cosine"
    """Form of L_sim."""
    similarity_weight: Weight = 0.1
    """lambda of the paper."""
    joint_pass: bool = True
    """x and x' go through the network as one batch; False: two passes, each with its own batch-norm statistics."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision; fp16 on a GPU only."""
    seed: Seed = 0
    """Seed of initialisation, order, crops and jitter."""
    workers: Workers = 2
    """Data loading processes. The batches do not depend on it."""
    checkpoint_every: Steps = 500
    """Steps between checkpoints."""
    validate_every: Steps = 500
    """Steps between validations."""
    device: Device = "auto"
    """Where it runs; auto takes CUDA, then MPS, then the CPU. Several GPUs: start under torchrun."""

"""The configuration of every stage: frozen dataclasses, one field a decision, a docstring under each.

The command line is made from these (`tyro`), a run saves its own as `config.json`, and that file alone repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
Select = Literal["last", "source", "transferred", "oracle"]


@dataclass(frozen=True)
class TownConfig:
    """Write the embedded town: street scenes with labels, in the published layouts."""

    seed: int = 0
    """Base seed; the same seed gives the same bytes."""
    height: int = 128
    """Image height in pixels."""
    width: int = 256
    """Image width in pixels."""
    source_train: int = 160
    """Frames of clear day in cityscapes/.../train (and in synthia)."""
    source_val: int = 40
    """Frames of clear day in cityscapes/.../val."""
    target_train: int = 160
    """Frames per target domain to train the oracle or an unsupervised method on."""
    target_val: int = 40
    """Frames per target domain to evaluate on."""
    workers: int = 0
    """Processes; 0 takes every core. The bytes do not depend on it."""


@dataclass(frozen=True)
class PriorConfig:
    """Train the embedded diffusion prior on scenes of a town that is not the benchmark's (ours)."""

    seed: int = 0
    """Seed of everything."""
    scenes: int = 6000
    """Scenes drawn, each under one weather."""
    height: int = 128
    """Image height in pixels."""
    width: int = 256
    """Image width in pixels."""
    vae_steps: int = 6000
    """Optimizer steps of the VAE, on 64x96 crops."""
    vae_batch: int = 8
    """Crops per step of the VAE."""
    vae_lr: float = 1e-3
    """Peak learning rate of the VAE (AdamW, cosine)."""
    steps: int = 4000
    """Optimizer steps of UNet, ControlNet and text encoder."""
    batch: int = 16
    """Latents per step."""
    lr: float = 1e-3
    """Peak learning rate (AdamW, cosine)."""
    narrow_share: float = 0.7
    """Share of the steps that see half-width latents."""
    checkpoint_every: int = 200
    """Steps between resumable states."""
    workers: int = 0
    """Processes that draw scenes; 0 takes every core."""
    threads: int = 0
    """torch threads; 0 leaves torch's choice."""
    start: str | None = None
    """Model folder of an earlier training whose weights are taken on; None starts from random weights."""
    bf16: bool = False
    """Compute in bfloat16 and keep the weights in float32: faster on a GPU and on CPUs with AVX512-BF16, several times
    slower on other CPUs."""
    device: Device = "cpu"
    """Where it runs."""


@dataclass(frozen=True)
class CheckConfig:
    """Walk a data set and report what is missing, broken or unknown, and how often each class occurs."""

    data: str
    """Data set as layout:path[:subset], for example cityscapes:/data/cityscapes:train."""
    workers: int = 0
    """Processes; 0 takes every core."""


@dataclass(frozen=True)
class DiffusionConfig:
    """Which diffusion model transfers the images."""

    model: str = "town"
    """`town` (the embedded prior), a local diffusers folder, or a hub name such as
    stable-diffusion-v1-5/stable-diffusion-v1-5."""
    controlnet: str | None = None
    """Local folder or hub name of the ControlNet; None takes the one in the model's own folder, or
    lllyasviel/control_v11p_sd15_seg for a hub model."""
    revision: str | None = None
    """Commit of the model on the hub; None takes the pinned one where segshift knows it."""
    controlnet_revision: str | None = None
    """Commit of the ControlNet on the hub; None takes the pinned one where segshift knows it."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic of UNet, ControlNet and VAE."""
    device: Device = "auto"
    """Where it runs; auto takes CUDA, then MPS, then the CPU."""


@dataclass(frozen=True)
class TransferConfig:
    """Turn labelled source images into target-like images with the same layout (ZoDi, section 3.1)."""

    source: str
    """Labelled data set as layout:path[:subset]."""
    to: tuple[str, ...] = ("night",)
    """Target domains: known names (night, snow, rain, fog, game) or sentences ("driving through a sandstorm")."""
    strength: float | None = None
    """Noise strength s in (0, 1]; None takes the published one of a known domain, 0.75 for a sentence."""
    mode: Literal["default", "reference"] = "default"
    """`reference`: as the authors' code. `default`: layout in the ControlNet's own palette, nearest-neighbour
    resize, noise drawn per image."""
    inversion: Literal["stochastic", "none", "ddim"] = "stochastic"
    """Start of the walk: stochastic inversion, plain noise (SDEdit), or DDIM inversion."""
    control: bool = True
    """Condition on the layout through the ControlNet."""
    steps: int | None = None
    """DDIM steps N over the whole schedule; None takes the model's default (20 for Stable Diffusion)."""
    guidance: float | None = None
    """Classifier-free guidance scale; None takes the model's default (9 for Stable Diffusion)."""
    eta: float | None = None
    """DDIM eta in [0, 1]; None takes the model's default (1 for Stable Diffusion)."""
    control_strength: float = 1.0
    """Factor on the ControlNet's residuals."""
    short_side: int | None = None
    """Short side of the working size in pixels; None takes the model's default (512 for Stable Diffusion)."""
    output_size: Literal["working", "source"] = "working"
    """Save at the working size, or resized back to the source image's size."""
    seed: int = 42
    """A frame's result depends on (seed, frame id, domain, settings) alone."""
    batch_size: int = 8
    """Images per batch; halved when the device runs out of memory. Changes no result by more than a grey level."""
    shard: str = "0/1"
    """i/n: this process takes every n-th frame starting at i (job arrays); torchrun's ranks divide it further."""
    labels: Literal["link", "copy"] = "link"
    """Labels in the output tree: symbolic links to the source's, or copies."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)


@dataclass(frozen=True)
class NetworkConfig:
    """The segmentation network."""

    name: str = "deeplabv3plus"
    """`deeplabv3plus` or any other segmentation-models-pytorch architecture, `refinenet`,
    `hf:<folder or hub name>` (transformers), or `module:factory` called with classes=<int>."""
    encoder: str = "resnet50"
    """Encoder, for segmentation-models-pytorch and refinenet."""
    pretrained: bool = True
    """Published weights to start from (a download): ImageNet's for an encoder, the hub's for `hf:`."""
    weights: str | None = None
    """Local file to start from instead, of the whole network or the encoder: .safetensors, or .pt/.pth read with
    weights_only=True."""
    feature_layer: str | None = None
    """Module of the network, by its dotted name, whose output the similarity loss compares; None takes the last
    encoder stage, in your own network the output of its `encoder`."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a segmentation network (ZoDi, section 3.2, or source only)."""

    source: str
    """Labelled source data set, layout:path[:subset]."""
    method: Literal["zodi", "source_only"] = "zodi"
    """`zodi`: pairs of source and transferred image; `source_only`: the source images alone."""
    transferred: tuple[str, ...] = ()
    """Transferred data sets of the same frames; one is drawn per pair."""
    validation: str | None = None
    """Labelled source validation set."""
    transferred_validation: tuple[str, ...] = ()
    """Transferred validation sets, for select = transferred."""
    oracle_validation: str | None = None
    """Labelled target validation set, for select = oracle only."""
    select: Select = "source"
    """Which checkpoint is kept as best: last, best on source validation, on transferred validation, or on the
    target's labels (oracle: not attainable without them)."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    classes: Literal[13, 16, 19] | None = None
    """Class set; None takes every class of the label space. Pixels of other classes count as void, and those classes
    are never predicted."""
    size: tuple[int, int] = (512, 1024)
    """Height and width that images and labels are resized to before cropping, in pixels."""
    crop: tuple[int, int] = (384, 768)
    """Height and width of the random crop, shared by the pair, in pixels."""
    jitter: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.3)
    """Colour jitter: brightness, contrast, saturation, hue; drawn separately for x and x'."""
    batch_size: int = 4
    """Pairs (zodi) or images (source_only) per optimizer step, over all processes."""
    accumulate: int = 1
    """Micro-batches per optimizer step; batch_size is a multiple of them times the processes."""
    steps: int = 74_375
    """Optimizer steps (the published 100 epochs of Cityscapes at batch 4)."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 1e-3
    """Learning rate at the start."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup: int = 0
    """Steps of linear warm-up of the learning rate."""
    poly_power: float = 0.9
    """The learning rate falls as (1 - step / steps) to this power, every step (published: every epoch)."""
    similarity: Literal["cosine", "simsiam", "byol", "none"] = "cosine"
    """Form of L_sim."""
    similarity_weight: float = 0.1
    """lambda of the paper."""
    joint_pass: bool = True
    """x and x' go through the network as one batch; False: two passes, each with its own batch-norm statistics."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision; fp16 on a GPU only."""
    seed: int = 0
    """Seed of initialisation, order, crops and jitter."""
    workers: int = 2
    """Data loading processes. The batches do not depend on it."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    validate_every: int = 500
    """Steps between validations."""
    device: Device = "auto"
    """Where it runs; auto takes CUDA, then MPS, then the CPU. Several GPUs: start under torchrun."""


@dataclass(frozen=True)
class PredictConfig:
    """Write a network's predictions as label PNGs in the data set's official ids, at the label's size."""

    run: str
    """Run folder of `segshift train`, or a file of weights together with `network`."""
    data: str
    """Data set as layout:path[:subset]."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint of the run."""
    network: NetworkConfig | None = None
    """The network of a weights file that segshift did not train; None takes the run's own."""
    size: tuple[int, int] | None = None
    """Height and width the network sees; None takes the run's training size, for a weights file the image's own."""
    batch_size: int = 8
    """Images per batch."""
    device: Device = "auto"
    """Where it runs; auto takes CUDA, then MPS, then the CPU."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare prediction PNGs with the ground truth: per-class IoU, mIoU, pixel accuracy."""

    predictions: str
    """Folder that `segshift predict` wrote."""
    data: str
    """Labelled data set as layout:path[:subset]."""
    classes: Literal[13, 16, 19] | None = None
    """Class set of Cityscapes; None takes every class that the data set labels. A label outside the set is ignored, a
    prediction outside it is an error."""
    protocol: Literal["native", "as-published"] = "native"
    """`native`: at the label's own size. `as-published`: at 512x1024, as ZoDi's authors do."""
    workers: int = 0
    """Threads; 0 takes every core."""


@dataclass(frozen=True)
class ReportConfig:
    """Write one self-contained page over runs."""

    runs: tuple[str, ...]
    """Folders to show, in order: of train, evaluate, transfer, and of predict for data without labels. Gains are
    counted from the first run that was evaluated."""
    title: str = "segshift"
    """Heading of the page."""

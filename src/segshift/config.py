"""The configuration of every stage: frozen dataclasses, one field a decision, a docstring under each.

The command line is made from these (`tyro`), a run saves its own as `config.json`, and that file alone repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from segshift.runs import InputError

Device = Literal["auto", "cpu", "cuda", "mps"]
Select = Literal["last", "source", "transferred", "oracle"]
"""Rules to select a checkpoint by: the last step, the best mIoU on source validation, on transferred validation, or on
the target's labels (oracle: not attainable without them)."""


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
class GateConfig:
    """Judge every transferred frame by a network trained on the source, and draw what fails again (ours)."""

    reference: str
    """Run folder of `segshift train --method source_only` on the same classes; with colour jitter it is the better
    judge of strange domains."""
    tries: int = 3
    """Draws of a frame at most, the first included; 1 judges and never redraws. The best one is kept."""
    strength_factor: float = 0.9
    """Noise strength of each further draw as a factor on the one before, in (0, 1]; 1 changes the seed alone."""
    quantile: float = 0.05
    """The thresholds start from this quantile, in [0, 1], of the scores of source frames that went through the
    autoencoder alone."""
    fraction: float = 0.5
    """The thresholds are this fraction of it, in (0, 1]: what a strange domain may cost the reference network."""
    sample: int = 200
    """Source frames to measure the thresholds on; all where there are fewer."""
    least_region: float = 0.001
    """Regions smaller than this share of the picture are not judged, in [0, 1]."""
    require_movement: bool = False
    """A draw that is no nearer to the prompt than its source fails, too."""
    on_failure: Literal["ignore", "drop"] = "ignore"
    """`ignore`: the failing regions of every frame become void in its label. `drop`: a frame that still fails after
    all tries is left out."""


def _gate(gate: Annotated[GateConfig, tyro.conf.arg(name="")] = GateConfig("")) -> GateConfig | None:
    if gate != GateConfig("") and not gate.reference:
        raise InputError("options of a gate, but no reference network: add --gate.reference RUN, or leave them out")
    return gate if gate.reference else None


OptionalGate = Annotated[GateConfig | None, tyro.conf.arg(constructor=_gate)]
"""A gate as plain options; None where no reference network is given."""


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
    gate: OptionalGate = None
    """Judge the transferred frames and draw failures again; None takes every frame as it comes."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)


@dataclass(frozen=True)
class NetworkConfig:
    """The segmentation network."""

    name: str = "deeplabv3plus"
    """`deeplabv3plus` or any other segmentation-models-pytorch architecture, `refinenet`,
    `hf:<folder or hub name>` (transformers), `iccld` (the network of ICCLD without its diffusion), or `module:factory`
    called with classes=<int>."""
    encoder: str = "resnet50"
    """Encoder, for segmentation-models-pytorch and refinenet; timm's name of a backbone for iccld."""
    latent_channels: int = 8
    """Channels of the latent at an eighth of the image's size, 1 or more (iccld)."""
    inter_coder: bool = True
    """Inter-coder connections carry encoder features to the decoder (iccld)."""
    pretrained: bool = True
    """Published weights to start from (a download): ImageNet's for an encoder, the hub's for `hf:`."""
    weights: str | None = None
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
class ICCLDConfig:
    """Adaptation to unlabelled target images (ICCLD): step 1 is method self_training, step 2 adversarial_diffusion.

    What the paper is not known to state is ours or a relative's; `methods/iccld.py` says which.
    """

    diffused: Literal["label", "image"] = "label"
    """The diffused variable: the latent of the label, given the image's; or the latent of the image, given that of a
    strongly augmented view."""
    threshold: float = 0.968
    """Step 1: confidence from which a pixel of a pseudo-label counts for its quality, in [0, 1] (DACS)."""
    momentum: float = 0.999
    """Largest weight of its own past in the moving average of teacher (step 1) and UNet (step 2), in [0, 1)."""
    head_lr: float = 10.0
    """Learning rate of everything but the encoder, as a factor on `lr` (DAFormer)."""
    confidence_weighted: bool = False
    """Weight each pixel of a pseudo-label by its own confidence instead of the image's quality."""
    feature_distance: float = 0.0
    """Weight of the distance to the features of the encoder as it was at the start (DAFormer); 0 leaves it out."""
    masked_weight: float = 0.0
    """Weight of the loss on target images with masked blocks (MIC); 0 leaves it out."""
    rare_classes: str | None = None
    """Folder that `segshift check` wrote for the source: frames with rare classes are drawn more often (DAFormer)."""
    rare_temperature: float = 0.01
    """Temperature of that draw: the lower, the more often the rarest classes are drawn."""
    unet_channels: tuple[int, ...] = (64, 128, 256)
    """Step 2: channels of the denoising UNet's levels."""
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    """Step 2: what the UNet predicts."""
    estimate_weight: float = 1.0
    """Step 2: weight of the one-step estimate's distance to the clean latent (SDSeg)."""
    adversarial_weight: float = 0.001
    """Step 2: weight of the adversarial loss (ADVENT); 0 trains without an adversary."""
    adversary_warmup: int = 1500
    """Step 2: optimizer steps before the adversarial loss acts; the discriminator learns from the first."""
    unfreeze_decoder: bool = False
    """Step 2: train the decoder with the UNet."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a segmentation network (ZoDi, section 3.2; ICCLD, step 1 or 2; or source only)."""

    source: str
    """Labelled source data set, layout:path[:subset]."""
    method: Literal["zodi", "source_only", "self_training", "adversarial_diffusion"] = "zodi"
    """`zodi`: pairs of source and transferred image; `source_only`: the source images alone; `self_training` and
    `adversarial_diffusion`: ICCLD's two steps, with unlabelled target images."""
    more_sources: tuple[str, ...] = ()
    """Further labelled data sets of the same classes, such as transferred trees, drawn from like the source (not for
    zodi, which pairs them)."""
    target: str | None = None
    """Unlabelled target data set, for ICCLD; labels there are not read."""
    from_run: str | None = None
    """Run of step 1 that step 2 starts from."""
    iccld: ICCLDConfig = field(default_factory=ICCLDConfig)
    transferred: tuple[str, ...] = ()
    """Transferred data sets of the same frames; one is drawn per pair."""
    validation: str | None = None
    """Labelled source validation set; the best checkpoint on it is kept."""
    transferred_validation: tuple[str, ...] = ()
    """Transferred validation sets; the best checkpoint on their mean is kept."""
    oracle_validation: str | None = None
    """Labelled target validation set; the best checkpoint on it is kept as the oracle's and used for nothing else."""
    select: Select = "source"
    """Which checkpoint the run stands for: last, best on source validation, on transferred validation, or on the
    target's labels (oracle: not attainable without them). Those of the other rules that have a set are kept beside it."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    classes: Literal[13, 16, 19] | None = None
    """Class set; None takes every class of the label space. Pixels of other classes count as void, and those classes
    are never predicted."""
    size: tuple[int, int] = (512, 1024)
    """Height and width that images and labels are resized to before cropping, in pixels."""
    target_size: tuple[int, int] | None = None
    """The same of target images; None takes `size`."""
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
    checkpoint: Literal["best"] | Select = "best"
    """Which checkpoint of the run: that of its own rule `select` (best), or of another rule it had a set for."""
    network: ForeignNetwork = None
    """The network of a weights file that segshift did not train; None takes the run's own."""
    size: tuple[int, int] | None = None
    """Height and width the network sees; None takes the run's training size (of the target where it has
    one), for a weights file the image's own."""
    window: tuple[int, int] | None = None
    """Height and width of a window that slides over the image at that size, half overlapping, logits averaged; None
    takes the whole image."""
    sampling_steps: int | None = None
    """DDIM steps of a network that samples its prediction (ICCLD, step 2); None takes the method's default."""
    draws: int | None = None
    """Draws of the starting noise that the prediction is the mean of (ICCLD, step 2); None takes the method's default."""
    seed: int = 0
    """Seed of the starting noise; a frame's prediction depends on (seed, frame id) alone."""
    uncertainty: bool = False
    """Also write maps beside the labels: OUT/uncertainty/{confidence,entropy,spread}/<file>, 16-bit PNG of [0, 1]."""
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
class EstimateConfig:
    """Predict a network's mIoU in domains of which there is no image, from labelled source frames and a sentence."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder of `segshift train`, or a file of weights together with `network`."""
    source: str
    """Labelled validation set of the source domain, layout:path[:subset], at least 10 frames; no training may have
    seen it."""
    to: tuple[str, ...] = ("night",)
    """Target domains: known names (night, snow, rain, fog, game) or sentences ("driving through a sandstorm")."""
    own_prompt: str = "driving in daylight"
    """Sentence for the source's own domain: transferred there, the frames show what the transfer alone costs."""
    strength: float | None = None
    """Noise strength in (0, 1]; None takes the published one of a known domain, 0.75 for a sentence."""
    draws: int = 2
    """Noise draws per frame and domain, 1 or more; the time it takes grows with them."""
    seed: int = 42
    """Seed of the first draw and of the bootstrap; the further draws take seed + 1, seed + 2, ..."""
    resamples: int = 1000
    """Resamples of the bootstrap, 100 or more."""
    transferred: str | None = None
    """Folder of the transferred frames, which do not depend on the network: estimates that name the same one share
    them. None takes OUT/transferred."""
    checkpoint: Literal["best"] | Select = "best"
    """Which checkpoint of the run: that of its own rule `select` (best), or of another rule it had a set for."""
    network: ForeignNetwork = None
    """The network of a weights file that segshift did not train; None takes the run's own."""
    size: tuple[int, int] | None = None
    """Height and width the network sees; None takes the run's training size, for a weights file the image's own, which
    for transferred frames is the size they were made at: give it where the network was trained at another."""
    classes: Literal[13, 16, 19] | None = None
    """Class set of Cityscapes to score; None takes the run's own, for a weights file every class of the data set."""
    mode: Literal["default", "reference"] = "default"
    """Mode of the transfer, as for `segshift transfer`; so are the fields that follow."""
    control: bool = True
    """Condition on the layout through the ControlNet."""
    steps: int | None = None
    """DDIM steps over the whole schedule; None takes the model's default."""
    guidance: float | None = None
    """Classifier-free guidance scale; None takes the model's default."""
    short_side: int | None = None
    """Short side of the working size in pixels; None takes the model's default."""
    batch_size: int = 8
    """Images per batch."""
    device: Device = "auto"
    """Where the network runs; auto takes CUDA, then MPS, then the CPU."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)


@dataclass(frozen=True)
class ReportConfig:
    """Write one self-contained page over runs."""

    runs: tuple[str, ...]
    """Folders to show, in order: of train, evaluate, estimate, transfer, and of predict for data without labels. Gains
    are counted from the first run that was evaluated."""
    title: str = "segshift"
    """Heading of the page."""

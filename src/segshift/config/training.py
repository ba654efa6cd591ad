"""Configuration of a training: network, method, data, optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import AfterValidator, Field

from segshift.methods import METHODS, MethodTable
from segshift.networks.options import ICCLDNetworkConfig
from segshift.runs import InputError
from segshift.settings import (
    Count,
    DataText,
    Device,
    FolderText,
    Momentum,
    NetworkText,
    Rate,
    RunText,
    Seed,
    Select,
    Settings,
    Size,
    Steps,
    Weight,
    Workers,
    option,
)

Amount = Annotated[float, Field(ge=0, le=1)]
"""Largest change of brightness, contrast or saturation."""


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"one of {', '.join(METHODS)}")
    return name


MethodName = Annotated[
    str,
    AfterValidator(_known),
    tyro.conf.arg(
        metavar="{" + ",".join(METHODS) + "}",
        help="What trains the network, and on what. "
        + "; ".join(f"{spec.name}: {spec.summary}" for spec in METHODS.values())
        + ".",
    ),
]
"""A name in the table of methods."""


@dataclass(frozen=True)
class NetworkConfig(Settings):
    """The segmentation network."""

    prefix: ClassVar[str] = "network."

    name: NetworkText = "deeplabv3plus"
    """`deeplabv3plus` or any other segmentation-models-pytorch architecture, `refinenet`, `vit`,
    `hf:<folder or hub name>` (transformers), `iccld` (the network of ICCLD without its diffusion), or
    `module:factory` called with `classes=<int>`."""
    encoder: str = "resnet50"
    """Encoder, for segmentation-models-pytorch and refinenet; timm's name of a backbone for iccld and vit."""
    head: Literal["linear", "dpt"] = "linear"
    """Head on a vision transformer (vit)."""
    adapter: Literal["none", "lora", "mica"] = "none"
    """Freeze the encoder, a transformer, and train low-rank adapters in it: LoRA's, or MiCA's, which train
    the smallest singular components."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapters."""
    pretrained: bool = True
    """Published weights to start from (a download): ImageNet's for an encoder, the hub's for `hf:`."""
    weights: FolderText | None = None
    """Local file to start from instead, of the whole network or the encoder: .safetensors, or .pt/.pth read
    with weights_only=True."""
    feature_layer: str | None = None
    """Module of the network, by its dotted name, whose output the similarity loss compares; None takes the
    last encoder stage, in your own network the output of its `encoder`."""
    iccld: ICCLDNetworkConfig = field(default_factory=ICCLDNetworkConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default, network in (("head", "linear", "vit"), ("iccld", ICCLDNetworkConfig(), "iccld")):
            if getattr(self, name) != default and self.name != network:
                raise InputError(
                    f"{option(f'network.{name}')} is for --network.name {network}, and {self.name} is given: "
                    "leave one of them out"
                )


def _foreign(
    name: str | None = None, encoder: str | None = None, head: Literal["linear", "dpt"] | None = None
) -> NetworkConfig | None:
    """The network that the options describe; None where none is given.

    Args:
        name: Network that the file's weights are of, as `segshift train` takes it.
        encoder: Its encoder, as `segshift train` takes it.
        head: Its head, of a vision transformer (vit).
    """
    options = {"name": name, "encoder": encoder, "head": head}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    return NetworkConfig(**given) if given else None


ForeignNetwork = Annotated[NetworkConfig | None, tyro.conf.arg(constructor=_foreign)]
"""The network of a weights file that segshift did not train, as plain options; None where none of them is
given.
"""


@dataclass(frozen=True)
class TrainConfig(MethodTable, Settings):
    """Train a segmentation network. The settings of each method are in `segshift.methods`."""

    source: DataText
    """Labelled source data set as layout:path[:subset], for example folder:photos:train."""
    method: MethodName = "zodi"
    more_sources: tuple[DataText, ...] = ()
    """Further labelled data sets of the same classes, such as transferred trees, drawn from like the source
    (not for a method that pairs frames)."""
    target: DataText | None = None
    """Unlabelled target data set; labels there are not read."""
    from_run: RunText | None = None
    """Finished run of another method that this one starts from."""
    transferred: tuple[DataText, ...] = ()
    """Data sets that `segshift transfer` made of the source's frames; of several, every pair draws one."""
    validation: DataText | None = None
    """Labelled source validation set; the best checkpoint on it is kept."""
    transferred_validation: tuple[DataText, ...] = ()
    """Transferred validation sets; the best checkpoint on their mean is kept."""
    oracle_validation: tuple[DataText, ...] = ()
    """Labelled validation sets of the target; the best checkpoint on their mean is kept as the oracle's.
    Nothing else uses them."""
    select: Select = "source"
    """Which checkpoint the run stands for. last: the last step. source, transferred: best on that validation
    set. target: the last step at which no class was lost on the unlabelled target. oracle: best on the
    target's labels, so not attainable without them. The other rules' checkpoints are kept beside it."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    classes: Literal[13, 16, 19] | None = None
    """Class set; None takes every class of the label space. Pixels of other classes count as void, and those
    classes are never predicted."""
    size: Size | None = None
    """Height and width that images and labels are resized to before cropping, in pixels; None takes the
    source frames' own, made smaller where the short side is over 512."""
    target_size: Size | None = None
    """Height and width of target images, in pixels; None takes that of --size."""
    crop: Size | None = None
    """Height and width of the random crop, shared by the pair, in pixels; None takes three quarters of the
    size.
    """
    jitter: tuple[Amount, Amount, Amount, Annotated[float, Field(ge=0, le=0.5)]] = (0.5, 0.5, 0.5, 0.3)
    """Colour jitter: largest change of brightness, contrast, saturation and hue. Every image has its own
    draw, those of a pair too."""
    batch_size: Count = 4
    """Source images, or pairs, per optimizer step, over all processes; a method with a target takes as many
    target images too."""
    accumulate: Count = 1
    """Parts that a batch is computed in, one after the other, which saves memory. Parts times processes must
    divide --batch-size."""
    steps: Steps | None = None
    """Optimizer steps; None takes 100 epochs, but 2,000 steps at least and 74,375 at most (the published
    ones).
    """
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: Annotated[float, Field(ge=0, le=1000)] = 1e-3
    """Learning rate at the start."""
    head_lr: Rate | None = None
    """Learning rate of everything but the encoder, as a factor on `lr`; None takes 10 for network iccld and 1
    for others, unless the method has a default of its own. Where no encoder is trained, `lr` holds for all.
    """
    momentum: Momentum = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 1e-4
    """Weight decay."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up of the learning rate."""
    poly_power: Annotated[float, Field(ge=0, le=100)] = 0.9
    """The learning rate falls as (1 - step / steps) to this power, every step (published: every epoch)."""
    rare_classes: FolderText | None = None
    """Folder that `segshift check` wrote for the source: frames with rare classes are drawn more often
    (DAFormer).
    """
    rare_temperature: Annotated[float, Field(gt=0, le=1000)] = 0.01
    """Temperature of that draw: the lower, the more often the rarest classes are drawn."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice (networks iccld and vit)."""
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
    log: Literal["tensorboard", "wandb", "mlflow", "trackio"] | None = None
    """Tracker for losses, validations and a few pictures; its package must be installed. TensorBoard's files
    lie in the run folder."""
    device: Device = "auto"
    """Where it runs; auto takes CUDA, then MPS, then the CPU. Several GPUs: start under torchrun."""

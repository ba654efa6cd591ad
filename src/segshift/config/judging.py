"""Configuration of what is read, predicted, scored, estimated, reported and shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from pydantic import Field
from tyro.conf import Positional

from segshift.config.running import EngineConfig, Where
from segshift.config.training import ForeignNetwork
from segshift.config.transfer import DiffusionConfig
from segshift.runs import InputError
from segshift.settings import (
    Count,
    DataText,
    Device,
    FactoryText,
    FolderText,
    ImagesText,
    PathText,
    PositiveShare,
    PredictorsText,
    PredictorText,
    RepositoryText,
    RunText,
    Seed,
    Select,
    Settings,
    Size,
    Steps,
    Workers,
)


@dataclass(frozen=True)
class CheckConfig(Settings):
    """Read a data set and report what is missing, broken or unknown, and how often each class occurs."""

    data: DataText
    """Data set as layout:path[:subset], for example cityscapes:/data/cityscapes:train."""
    workers: Workers = 0
    """Processes; 0 takes every core."""


@dataclass(frozen=True)
class PredictConfig(Settings):
    """Write a network's predictions as label PNGs in the data set's official ids, at the label's size."""

    run: PredictorText
    """Run folder of `segshift train`, `hf:user/name[@revision]` of a run on the hub, a file of weights
    together with --network.name, or `module:factory`: a network of yours that brings its weights, or a black
    box, which only predicts."""
    data: DataText | None = None
    """Data set as layout:path[:subset]."""
    images: FolderText | None = None
    """Pictures without a data set instead: a picture, a folder, a glob in quotes, or a video. Overlays in the
    classes' colours are written beside the label PNGs; for a video, an annotated video."""
    checkpoint: Literal["best"] | Select = "best"
    """Which checkpoint of the run: `best` is the one that its --select chose; each other rule needs the data
    that it goes by."""
    network: ForeignNetwork = None
    """The network of a weights file that segshift did not train; None takes the run's own."""
    size: Size | None = None
    """Height and width the network sees; None takes the run's training size (of the target where it has
    one), for other networks the image's own."""
    window: Size | None = None
    """Height and width of a window that slides over the image at that size, half overlapping, logits
    averaged; None takes the whole image."""
    sampling_steps: Steps | None = None
    """DDIM steps of a network that samples its prediction (ICCLD, step 2); None takes the method's default.
    """
    draws: Count | None = None
    """Draws of the starting noise that the prediction is the mean of (ICCLD, step 2); None takes the method's
    default.
    """
    seed: Seed = 0
    """Seed of the starting noise; a frame's prediction depends on (seed, frame id) alone."""
    uncertainty: bool = False
    """Also write maps of confidence and entropy, and with several draws of their spread, as 16-bit PNGs of
    [0, 1] in OUT/uncertainty."""
    batch_size: Count = 8
    """Images per batch."""
    device: Device = "auto"
    """Where it runs; auto takes CUDA, then MPS, then the CPU."""
    where: Where = field(default_factory=EngineConfig)


@dataclass(frozen=True)
class ExportConfig(Settings):
    """Write a trained network as one file that runs without segshift, and compare it with the run."""

    run: PredictorText
    """Run folder of `segshift train`, `hf:user/name[@revision]` of a run on the hub, a file of weights
    together with --network.name, or `module:factory` of a network of yours that brings its weights."""
    checkpoint: Literal["best"] | Select = "best"
    """Which checkpoint of the run: `best` is the one that its --select chose; each other rule needs the data
    that it goes by."""
    network: ForeignNetwork = None
    """The network of a weights file that segshift did not train; None takes the run's own."""
    size: Size | None = None
    """Height and width of the images; None takes the run's training size (of the target where it has one),
    for other networks that of the first picture."""
    dynamic: bool = False
    """Take any number of images, of any size in multiples of the network's stride (mostly 32), instead of one
    image of that size."""
    argmax: bool = False
    """Give train ids [B, H, W] uint8 instead of logits [B, C, H, W]."""
    opset: Annotated[int, Field(ge=18, le=23)] = 18
    """ONNX opset, 18 to 23."""
    images: FolderText | None = None
    """Pictures to compare on: a picture, a folder or a glob in quotes; None takes the run's validation
    frames, or its source frames. Other networks than a run's need them."""
    frames: Count = 30
    """Frames to compare on at most."""


@dataclass(frozen=True)
class PushConfig(Settings):
    """Upload a training run to the Hugging Face hub, with a model card."""

    run: Annotated[Positional[RunText], tyro.conf.arg(metavar="RUN")]
    """Run folder of `segshift train`."""
    name: Annotated[Positional[RepositoryText], tyro.conf.arg(metavar="USER/NAME")]
    """Repository as user/name; it is made where there is none."""
    evaluations: tuple[FolderText, ...] = ()
    """Folders that `segshift evaluate` wrote of this run: the model card shows their scores."""
    license: str | None = None
    """Licence of the weights, as the hub calls it, such as apache-2.0; without it the card says that none is
    given."""
    public: bool = False
    """Everybody may read a new repository; without it only you. One that is there stays as it is."""


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Compare prediction PNGs with the ground truth: per-class IoU, mIoU, pixel accuracy."""

    predictions: FolderText
    """Folder that `segshift predict` wrote."""
    data: DataText
    """Labelled data set as layout:path[:subset]."""
    classes: Literal[13, 16, 19] | None = None
    """Class set of Cityscapes; None takes every class that the data set labels. A label outside the set is
    ignored, a prediction outside it is an error."""
    protocol: Literal["native", "as-published"] = "native"
    """`native`: at the label's own size. `as-published`: at 512x1024, as ZoDi's authors do."""
    workers: Workers = 0
    """Threads; 0 takes every core."""


@dataclass(frozen=True)
class EstimateConfig(Settings):
    """Predict a network's mIoU in domains of which there is no image, from labelled source frames and a
    sentence; rank several networks.
    """

    run: PredictorsText
    """Run folder of `segshift train`, `hf:user/name[@revision]` of a run on the hub, a file of weights
    together with --network.name, or `module:factory`: a network of yours that brings its weights, or a black
    box, which only predicts. Several are ranked."""
    source: DataText
    """Labelled validation set of the source domain, layout:path[:subset], at least 10 frames; no training may
    have seen it."""
    to: tuple[str, ...] = ("night",)
    """Target domains: known names (night, snow, rain, fog, game) or sentences ("driving through a
    sandstorm").
    """
    target_images: ImagesText | None = None
    """Unlabelled images of the target, 20 or more (50 to 200 do): a data set as layout:path[:subset], or a
    folder or glob of pictures. What the network is sure of there and on the generated frames shows the
    generator's error. They are of one domain, so --to names one."""
    own_prompt: str = "driving in daylight"
    """Sentence for the source's own domain: transferred there, the frames show what the transfer alone costs.
    """
    strength: PositiveShare | None = None
    """Noise strength in (0, 1]; None takes the published one of a known domain, 0.75 for a sentence."""
    draws: Count = 2
    """Noise draws per frame and domain, 1 or more; the time it takes grows with them."""
    seed: Seed = 42
    """Seed of the first draw and of the bootstrap; the further draws take seed + 1, seed + 2, ..."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Resamples of the bootstrap, 100 to 100,000."""
    transferred: PathText | None = None
    """Folder of the transferred frames, which do not depend on the network: estimates that name the same one
    share them (in `<domain>-<strength>-<seed>`, one transfer each). None takes OUT/transferred."""
    checkpoint: Literal["best"] | Select = "best"
    """Which checkpoint of the run: `best` is the one that its --select chose; each other rule needs the data
    that it goes by."""
    network: ForeignNetwork = None
    """The network of the weights files that segshift did not train; None takes the runs' own."""
    size: Size | None = None
    """Height and width the network sees; None takes the run's training size (of its target, where it has
    one), for other networks that of the source frames, where they have one in common."""
    classes: Literal[13, 16, 19] | None = None
    """Class set of Cityscapes to score; None takes the run's own, for other networks every class of the data
    set.
    """
    mode: Literal["default", "reference"] = "default"
    """Mode of the transfer, as for `segshift transfer`; so are the fields that follow."""
    control: bool = True
    """Condition on the layout through the ControlNet."""
    steps: Steps | None = None
    """DDIM steps over the whole schedule; None takes the model's default."""
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Classifier-free guidance scale; None takes the model's default."""
    short_side: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Short side of the working size in pixels; None takes the model's default."""
    batch_size: Count = 8
    """Images per batch."""
    device: Device = "auto"
    """Where the network runs; auto takes CUDA, then MPS, then the CPU."""
    generator: FactoryText | None = None
    """What makes the images. `editor`: the editing model of --generator.model. `module:factory`: your own,
    a function in a Python file of the current folder. None takes the model of --diffusion.model."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    where: Where = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed + self.draws > 2**32:
            raise InputError(
                f"--seed {self.seed} leaves no room for --draws {self.draws}, which take the seeds that "
                "follow: give a smaller one"
            )


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Write one self-contained page over runs."""

    runs: tuple[RunText, ...]
    """Folders to show, in order: of train, evaluate, estimate, transfer, and of predict for data without
    labels. Gains are counted from the first run that was evaluated."""
    title: str = "segshift"
    """Heading of the page."""


@dataclass(frozen=True)
class StudioConfig(Settings):
    """Open a page on this machine that transfers one photograph at a time and shows what is lost."""

    run: PredictorText | None = None
    """Run folder of `segshift train`, a file of weights together with --network.name, or `module:factory`:
    the network that is shown at work. None shows the pictures alone."""
    network: ForeignNetwork = None
    """The network of a weights file that segshift did not train; None takes the run's own."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 7860
    """Where the page is: http://127.0.0.1:PORT, for this machine alone."""
    device: Device = "auto"
    """Where the network runs; auto takes CUDA, then MPS, then the CPU."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

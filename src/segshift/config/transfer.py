"""Configuration of the image transfer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field

from segshift.config.running import EngineConfig, Where
from segshift.runs import InputError
from segshift.settings import (
    Count,
    DataText,
    Device,
    FactoryText,
    ModelText,
    PositiveShare,
    RunText,
    Seed,
    Settings,
    Share,
    Steps,
    option,
)


@dataclass(frozen=True)
class DiffusionConfig(Settings):
    """Which diffusion model transfers the images."""

    prefix: ClassVar[str] = "diffusion."

    model: Annotated[ModelText, tyro.conf.arg(aliases=("--generator.model", "--model"))] = "town"
    """`town` (the embedded prior), a local diffusers folder, or a hub name such as
    stable-diffusion-v1-5/stable-diffusion-v1-5; `segshift models` lists the families."""
    controlnet: ModelText | None = None
    """Local folder or hub name of the ControlNet; None takes the one in the model's own folder, or its
    family's usual one for a hub model."""
    revision: str | None = None
    """Commit of the model on the hub; None takes the pinned one where segshift knows it."""
    controlnet_revision: str | None = None
    """Commit of the ControlNet on the hub; None takes the pinned one where segshift knows it."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic of the networks."""
    device: Device = "auto"
    """Where it runs; auto takes CUDA, then MPS, then the CPU."""
    offload: Literal["none", "parts", "layers"] = "none"
    """For models larger than the GPU, what waits on the CPU: nothing; `parts` that are not in use (text
    encoders, once the prompts are read); `layers` that do not compute at the moment (slow). Changes no
    result."""


@dataclass(frozen=True)
class GateConfig(Settings):
    """Judge every transferred frame by a network trained on the source, and draw what fails again (ours)."""

    prefix: ClassVar[str] = "gate."

    reference: RunText | None = None
    """Run folder of `segshift train --method source_only` on the same classes; one trained with colour jitter
    judges strange domains better."""
    tries: Annotated[int, Field(ge=1, le=100)] = 3
    """Draws of a frame at most, the first included; 1 judges and never redraws. The best one is kept."""
    strength_factor: PositiveShare = 0.9
    """Noise strength of each further draw as a factor on the one before, in (0, 1]; 1 changes the seed
    alone."""
    quantile: Share = 0.05
    """The thresholds start from this quantile, in [0, 1], of the scores of source frames that went through
    the autoencoder alone, and of their worst regions' scores."""
    fraction: PositiveShare = 0.9
    """The thresholds are this fraction of it, in (0, 1]: room for chance. What the domain costs the reference
    network on average is measured, and is in the scores."""
    sample: Count = 200
    """Source frames to measure the thresholds on; all where there are fewer."""
    least_region: Share = 0.001
    """Regions smaller than this share of the picture are not judged, in [0, 1]."""
    require_movement: bool = False
    """Also fail a draw that is no nearer to the prompt than its source."""
    on_failure: Literal["ignore", "drop"] = "ignore"
    """What becomes of a frame that fails every try. `ignore`: its failing regions become void in its label,
    and a frame that fails as a whole is left out. `drop`: it is left out."""


def _gate(gate: Annotated[GateConfig, tyro.conf.arg(name="")] = GateConfig()) -> GateConfig | None:
    if gate != GateConfig() and not gate.reference:
        raise InputError(
            "options of a gate, but no reference network: add --gate.reference RUN, or leave them out"
        )
    return gate if gate.reference else None


OptionalGate = Annotated[GateConfig | None, tyro.conf.arg(constructor=_gate)]
"""A gate as plain options; None where no reference network is given."""


@dataclass(frozen=True)
class TransferConfig(Settings):
    """Turn labelled source images into target-like images with the same layout (ZoDi, section 3.1)."""

    source: DataText
    """Labelled data set as layout:path[:subset]."""
    to: tuple[str, ...] = ("night",)
    """Target domains: known names (night, snow, rain, fog, game) or sentences ("driving through a
    sandstorm")."""
    strength: PositiveShare | None = None
    """Noise strength s in (0, 1]; None takes the published one of a known domain, 0.75 for a sentence."""
    mode: Literal["default", "reference"] = "default"
    """`reference`: as the authors' code. `default`: layout in the ControlNet's own palette, nearest-neighbour
    resize, noise drawn per image."""
    inversion: Literal["stochastic", "none", "ddim"] = "stochastic"
    """What the denoising starts from: stochastic inversion, plain noise (SDEdit), or DDIM inversion."""
    control: bool = True
    """Condition on the layout through the ControlNet."""
    steps: Steps | None = None
    """DDIM steps N over the whole schedule; None takes the model's default (20 for Stable Diffusion)."""
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Classifier-free guidance scale; None takes the model's default (9 for Stable Diffusion)."""
    eta: Share | None = None
    """DDIM eta in [0, 1]; None takes the model's default (1 for Stable Diffusion)."""
    control_strength: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How strongly the ControlNet acts: a factor on its output."""
    speed: Literal["exact", "fast"] = "exact"
    """`exact`: guidance at every step, as published. `fast`: only at noise-to-signal ratios of 0.28 to 5.42,
    which makes the other steps cost half; its effect on a trained network is not measured."""
    short_side: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Short side of the working size in pixels; None takes the model's default (512 for Stable Diffusion)."""
    output_size: Literal["working", "source"] = "working"
    """Save at the working size, or resized back to the source image's size."""
    seed: Seed = 42
    """Seed of the noise. A frame's result depends on (seed, frame id, domain, settings) alone."""
    batch_size: Count = 8
    """Images per batch; halved when the device runs out of memory. Changes no result by more than a grey
    level."""
    shard: str = "0/1"
    """i/n: this process takes every n-th frame starting at i (job arrays); torchrun's ranks divide it
    further."""
    output: Literal["files", "tar"] = "files"
    """`files`: a tree in the source's own layout. `tar`: tar files of 1,000 frames as WebDataset reads them
    (image, train ids, a line of metadata), for millions of frames; `tar:OUT/night` names them."""
    labels: Literal["link", "copy"] = "link"
    """Labels in the output tree: symbolic links to the source's, or copies."""
    gate: OptionalGate = None
    """Judge the transferred frames and draw failures again; None takes every frame as it comes."""
    generator: FactoryText | None = None
    """What makes the images. `editor`: the editing model of --generator.model (the same option as
    --diffusion.model). `module:factory`: your own, a function in a Python file of the current folder.
    None, or `diffusion`: ZoDi with the model of --diffusion.model."""
    ungated: bool = False
    """Take an editor's pictures as they come. An editor is given no layout, so without this it needs a
    gate."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    where: Where = field(default_factory=EngineConfig)

    _OF_THE_WALK: ClassVar[tuple[str, ...]] = (
        "mode",
        "inversion",
        "control",
        "eta",
        "control_strength",
        "speed",
    )
    _OF_DIFFUSION: ClassVar[tuple[str, ...]] = (*_OF_THE_WALK, "steps", "guidance", "diffusion")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.walks:
            return
        default = TransferConfig(source=self.source)
        for name in self._OF_DIFFUSION if self.custom_generator else self._OF_THE_WALK:
            if getattr(self, name) != getattr(default, name):
                whose = "your own" if self.custom_generator else "another kind"
                raise InputError(
                    f"{option(name)} is for a diffusion model, and --generator {self.generator} is {whose}: "
                    "leave one of them out"
                )
        if self.generator == "editor" and self.gate is None and not self.ungated:
            raise InputError(
                "an editor is given no layout, so a gate judges its pictures: add --gate.reference RUN (a "
                "network trained on the source), or --ungated to take them as they come"
            )

    @property
    def walks(self) -> bool:
        """Whether it is ZoDi's walk over a diffusion model that makes the images."""
        return self.generator in (None, "diffusion")

    @property
    def custom_generator(self) -> bool:
        """Whether the generator is the user's own, module:factory."""
        return self.generator is not None and ":" in self.generator

"""Configuration of the training of a ControlNet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from segshift.config.transfer import DiffusionConfig
from segshift.settings import Count, DataText, Rate, Seed, Settings, Size, Steps, Weight, Workers


@dataclass(frozen=True)
class ControlConfig(Settings):
    """Train a ControlNet that draws your own images from their label maps, in your own classes."""

    source: DataText
    """Labelled source data set, layout:path[:subset]."""
    prompt: str | None = None
    """What the source's images show ("a field of beans from above"); None takes "driving by day" where the
    classes are Cityscapes'."""
    validation: DataText | None = None
    """Labelled data set whose first frames are drawn as it learns; None draws the source's."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The model. Training starts from its `controlnet` where one is named, and from the model's own encoder
    where none is."""
    lora: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank of low-rank adapters in the ControlNet's attention layers (extra `adapters`). They and what is new
    in the ControlNet learn, the rest stays; None trains all of it."""
    short_side: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Short side in pixels that images are brought to; None takes the model's default (512 for Stable
    Diffusion). The ControlNet's transfers take it, too."""
    crop: Size | None = None
    """Height and width of the random crop, multiples of 64 pixels; None takes whole images."""
    batch_size: Count = 4
    """Images per optimizer step, over all processes."""
    accumulate: Count = 1
    """Parts that a batch is computed in, one after the other, which saves memory. Parts times processes must
    divide --batch-size."""
    steps: Steps = 10_000
    """Optimizer steps."""
    lr: Rate = 1e-5
    """Learning rate of AdamW after the warm-up; it falls to zero at the last step."""
    weight_decay: Weight = 1e-2
    """Weight decay."""
    warmup: Annotated[int, Field(ge=0)] = 100
    """Steps of linear warm-up of the learning rate."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision; fp16 on a GPU only. What does not learn is held in --diffusion.dtype."""
    seed: Seed = 0
    """Seed of initialisation, order, crops and noise."""
    workers: Workers = 2
    """Data loading processes. The batches do not depend on it."""
    checkpoint_every: Steps = 500
    """Steps between checkpoints."""
    draw_every: Steps = 500
    """Steps between drawings of the fixed frames."""

"""Sizes and length of a training that the user leaves open: chosen from the source's own frames (ours).

The rules give ZoDi's published settings for Cityscapes: 1024x2048 frames are trained on at 512x1024 with
crops of 384x768, for 100 epochs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from segshift.config import TrainConfig
from segshift.data import frames
from segshift.data.frames import Dataset

SHORT_SIDE = 512
"""Frames with a longer short side, in pixels, are made smaller."""
CROP = 0.75
"""Sides of the crop as a share of the size's."""
EPOCHS = 100
FEWEST_STEPS, MOST_STEPS = 2_000, 74_375
LOOKED_AT = 100
"""Frames whose size is read."""


def chosen(config: TrainConfig, source: Dataset) -> tuple[TrainConfig, str | None]:
    """The configuration with size, crop and steps, and a sentence about those that are chosen; None where all
    were given.

    source: of `config`. Raises: InputError when no frame of it can be read.
    """
    if None not in (config.size, config.crop, config.steps):
        return config, None
    size = config.size or size_of(source)
    crop = config.crop or (crop_side(size[0]), crop_side(size[1]))
    steps = config.steps or steps_for(len(source.frames), config.batch_size)
    options = [
        f"--size {size[0]} {size[1]}" if config.size is None else "",
        f"--crop {crop[0]} {crop[1]}" if config.crop is None else "",
        f"--steps {steps}" if config.steps is None else "",
    ]
    sentence = (
        f"chosen for the {len(source.frames)} frames of {source.name}: {', '.join(filter(None, options))}"
    )
    return replace(config, size=size, crop=crop, steps=steps), sentence


def size_of(source: Dataset) -> tuple[int, int]:
    """Height and width to train at: the frames' most frequent size, with a short side of SHORT_SIDE at most.

    Raises: InputError when no frame can be read.
    """
    every = -(-len(source.frames) // LOOKED_AT)
    counts = Counter(frames.image_size(frame.image) for frame in source.frames[::every])
    (height, width), _ = max(counts.items(), key=lambda item: (item[1], item[0]))
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return round(height * scale), round(width * scale)


def crop_side(side: int) -> int:
    """A side of the crop: CROP of the size's, to the nearest multiple of 32 where it is larger than that."""
    return min(side, max(32, round(side * CROP / 32) * 32))


def steps_for(count: int, batch_size: int) -> int:
    """EPOCHS epochs of `count` frames, within FEWEST_STEPS and MOST_STEPS."""
    return min(MOST_STEPS, max(FEWEST_STEPS, EPOCHS * count // batch_size))

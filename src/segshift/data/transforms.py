"""Joint transforms of images and label: resize, shared crop and flip, colour jitter.

    image   [3, H, W], uint8 on reading, float in [0, 1] after `augment`
    label   [H, W] uint8 train ids, 255 ignored

Every random number comes from a generator keyed by what it is for, never from a global state: a sample is the
same whichever process draws it, and whenever.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

Size = tuple[int, int]
"""Height and width in pixels."""
Jitter = tuple[float, float, float, float]
"""Largest change of brightness, contrast, saturation (factors in [1 - s, 1 + s]) and hue (turns in [-s, s]).
"""


def key_seed(*key: int | str) -> int:
    """63 bits that depend on `key` alone, on every machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A generator seeded by `key` alone."""
    return torch.Generator().manual_seed(key_seed(*key))


def resize_image(image: Tensor, size: Size) -> Tensor:
    """Image [3, H, W], uint8 or float, to `size`: bilinear, antialiased when shrinking."""
    return F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def resize_label(label: Tensor, size: Size) -> Tensor:
    """Label [H, W] to `size`: nearest neighbour, sampled at pixel centres."""
    return F.resize(label[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


def augment(
    images: list[Tensor], label: Tensor, crop: Size, jitter: Jitter, rng: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Crop and flip shared by all images and the label; jitter drawn for each image.

    images: each [3, H, W] uint8; label: [H, W] uint8; crop: at most (H, W).
    Returns images [3, h, w] float in [0, 1] and the label [h, w] uint8, (h, w) = crop.
    """
    *cut, label = crop_and_flip([*images, label], crop, rng)
    return [colour_jitter(image.float() / 255, jitter, rng) for image in cut], label.contiguous()


def crop_and_flip(pictures: list[Tensor], crop: Size, rng: torch.Generator) -> list[Tensor]:
    """The same random crop and flip of all pictures, each [..., H, W] of one size and at least as large as
    `crop`.
    """
    height, width = pictures[0].shape[-2:]
    top = _integer(height - crop[0], rng)
    left = _integer(width - crop[1], rng)
    flip = _integer(1, rng) == 1
    cut = [picture[..., top : top + crop[0], left : left + crop[1]] for picture in pictures]
    return [picture.flip(-1) for picture in cut] if flip else cut


def colour_jitter(image: Tensor, jitter: Jitter, rng: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue changed by random amounts in random order.

    image: [3, H, W] float in [0, 1]; the result too. As torchvision's `ColorJitter`, whose numbers come from
    the global generator.
    """
    changes = (F.adjust_brightness, turn_contrast, F.adjust_saturation, turn_hue)
    amounts = torch.rand(4, generator=rng).mul(2).sub(1).mul(torch.tensor(jitter)).tolist()
    for index in torch.randperm(4, generator=rng).tolist():
        if jitter[index]:
            image = changes[index](image, amounts[index] if index == 3 else max(0.0, 1 + amounts[index]))
    return image


def turn_contrast(image: Tensor, factor: float) -> Tensor:
    """Contrast of an image [3, H, W] float in [0, 1] times a factor of 0 or more, around its mean grey.

    torchvision's `adjust_contrast`, whose mean of a large image is summed in another order for every number
    of threads.
    """
    grey = F.rgb_to_grayscale(image).flatten()
    # Parts that torch sums on one thread
    mean = torch.stack([part.sum() for part in grey.split(2**14)]).sum() / len(grey)
    return image.mul(factor).add_(mean, alpha=1 - factor).clamp_(0, 1)


def turn_hue(image: Tensor, turns: float) -> Tensor:
    """Hue of an image [3, H, W] float in [0, 1] turned round the colour circle.

    torchvision's `adjust_hue` to 1e-5 in a tenth of its time, which was nine tenths of a sample's.
    """
    hsv: np.ndarray = cv2.cvtColor(image.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2HSV)
    hsv[..., 0] += 360 * (turns % 1)  # from 0 to 720 degrees: OpenCV takes off a full turn, but adds none
    return torch.from_numpy(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).permute(2, 0, 1)


def _integer(largest: int, rng: torch.Generator) -> int:
    return int(torch.randint(largest + 1, (), generator=rng))

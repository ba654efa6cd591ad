"""ClassMix, and the strong augmentation of what it mixed.

Olsson et al., "ClassMix: Segmentation-based data augmentation for semi-supervised learning", WACV 2021;
thresholds by class: Zou et al., "CBST", ECCV 2018; strengths of the augmentation: Hoyer et al.,
"DAFormer", CVPR 2022.

    x^s, y^s   source image [B, 3, H, W] in [0, 1] and label [B, H, W] train ids, 255 void
    x^t, p     target image, and the teacher's probabilities on it [B, C, H, W]
    y^t        pseudo-label argmax p [B, H, W]
    q          its pixels that count [B, H, W]: max p over the threshold of their class (`pseudo_label`)
    M          pixels of half the classes of y^s [B, H, W]

    x^mix = M x^s + (1 - M) x^t, y^mix = M y^s + (1 - M) y^t, weight of pixels M + (1 - M) q

All on the batch's device, for all images of the batch at once; each image has its own draws, from torch's
global generator of that device. Deviations: thresholds follow the training, in CBST they are taken from the
whole target set between two rounds; hue is turned around the grey axis of RGB, not in HSV; brightness,
contrast, saturation and hue change in this order.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segshift.data.labels import IGNORE
from segshift.methods.iccld import StrongAugmentation


def class_mask(label: Tensor) -> Tensor:
    """M [B, H, W] bool: the pixels of half (rounded up) of the classes present in each label, chosen at
    random.

    label [B, H, W] uint8. Void is no class and never in M; where there is nothing but void, M is empty.
    """
    index = label.flatten(1).long()
    present = torch.zeros(len(label), IGNORE + 1, dtype=torch.bool, device=label.device).scatter_(
        1, index, True
    )
    present[:, IGNORE] = False
    scores = torch.rand(present.shape, device=label.device).masked_fill(~present, -1)  # absent ones come last
    rank = scores.argsort(1, descending=True).argsort(1)
    chosen = present & (rank < (present.sum(1, keepdim=True) + 1) // 2)
    return chosen.gather(1, index).view_as(label)


def pseudo_label(probabilities: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p [B, C, H, W] and a threshold for each class [C] to y^t [B, H, W] uint8, max p [B, H, W], and q
    [B, H, W]: 1 where max p reaches the threshold of its class, or else 0.
    """
    confidence, label = probabilities.max(1)
    return label.byte(), confidence, (confidence >= thresholds[label]).float()


def class_thresholds(label: Tensor, confidence: Tensor, share: float, before: Tensor) -> Tensor:
    """The confidence [C] that the surest `share` of each class's pixels reach (CBST, eq. 6); `before` [C] for
    a class without a pixel. label, confidence: as `pseudo_label` returns them.
    """
    found = before.clone()
    for index in label.unique().tolist():
        values = confidence[label == index]
        found[index] = values.kthvalue(len(values) - int(share * (len(values) - 1)))[0]
    return found


def mix(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """M source + (1 - M) target, of images [B, 3, H, W] or labels and weights [B, H, W]."""
    return torch.where(mask[:, None] if source.ndim == 4 else mask, source, target)


def mixed(
    source: Tensor, label: Tensor, target: Tensor, pseudo: Tensor, trust: Tensor, strength: StrongAugmentation
) -> tuple[Tensor, Tensor, Tensor]:
    """x^mix [B, 3, H, W], strongly augmented, y^mix [B, H, W] and its pixel weights [B, H, W].

    pseudo: y^t [B, H, W]. trust: the weight of its pixels, q [B, H, W].
    """
    mask = class_mask(label)
    images = strong_view(mix(mask, source, target), strength)
    return images, mix(mask, label, pseudo), torch.where(mask, 1.0, trust)


def strong_view(images: Tensor, strength: StrongAugmentation) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], jittered and blurred, the result in [0, 1] too."""
    count, device = len(images), images.device
    jittered = torch.rand(count, device=device) < strength.jitter_probability
    amounts = (2 * torch.rand(4, count, device=device) - 1) * strength.jitter * jittered
    low, high = strength.blur
    blurred = torch.rand(count, device=device) < strength.blur_probability
    sigma = torch.rand(count, device=device) * (high - low) + low
    return blur(jitter(images, amounts), sigma * blurred, math.ceil(3 * high))


def jitter(images: Tensor, amounts: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] with brightness, contrast, saturation and hue changed by amounts [4, B];
    0: not.
    """
    brightness, contrast, saturation, hue = amounts[..., None, None, None]
    x = (images * (1 + brightness)).clamp(0, 1)
    x = torch.lerp(_grey(x).mean((2, 3), keepdim=True), x, 1 + contrast).clamp(0, 1)
    x = torch.lerp(_grey(x), x, 1 + saturation).clamp(0, 1)
    return turn_hue(x, hue).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Colours [B, 3, H, W] turned around the grey axis by `turns` [B, 1, 1, 1] (Rodrigues' rotation)."""
    cosine, sine = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    across = (images.roll(1, 1) - images.roll(-1, 1)) / math.sqrt(3)
    return cosine * images + (1 - cosine) * images.mean(1, keepdim=True) + sine * across


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Images [B, 3, H, W] blurred by each one's sigma [B] in pixels, cut off at `radius`; sigma 0: not."""
    steps = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[..., None, None, None]  # [B, taps, 1, 1, 1]
    height, width = images.shape[-2:]
    rows = F.pad(images, (0, 0, radius, radius), mode="replicate")
    x = sum((kernel[:, i] * rows[:, :, i : i + height] for i in range(len(steps))), torch.zeros(()))
    columns = F.pad(x, (radius, radius, 0, 0), mode="replicate")
    return sum((kernel[:, i] * columns[..., i : i + width] for i in range(len(steps))), torch.zeros(()))

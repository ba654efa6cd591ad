"""Networks of a few hundred parameters, for tests, named as a user names their own: networks:two_convs."""

import numpy
import torch
from torch import nn


class TwoConvs(nn.Module):
    """An encoder of stride 2 with batch norm, dropout, and a classifier; `encoder` is the layer to
    compare."""

    def __init__(self, classes: int, dropout: float = 0.0, norm: bool = True):
        super().__init__()
        bn = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), bn, nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(8, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.encoder(images)))


def two_convs(classes: int) -> nn.Module:
    return TwoConvs(classes)


def dropping(classes: int) -> nn.Module:
    return TwoConvs(classes, dropout=0.5)


def without_norm(classes: int) -> nn.Module:
    return TwoConvs(classes, norm=False)


def one_class_too_many(classes: int) -> nn.Module:
    return TwoConvs(classes + 1)


def anonymous(classes: int) -> nn.Module:
    """No layer that segshift knows by name; returns a dict as torchvision's networks do."""

    class Anonymous(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3, padding=1)
            self.last = nn.Conv2d(4, classes, 1)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.last(self.body(images))}

    return Anonymous()


def of_one_size(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))


def no_network(classes: int) -> int:
    return classes


def of_another_name(num_classes):
    return nn.Conv2d(3, num_classes, 1)


def tied(classes: int) -> nn.Module:
    """Two convolutions that share one weight, and a module under two names."""
    network = TwoConvs(classes)
    network.same = network.encoder
    network.again = nn.Conv2d(8, classes, 1)
    network.again.weight = network.classifier.weight
    return network


def partly_frozen(classes: int) -> nn.Module:
    network = TwoConvs(classes)
    network.encoder.requires_grad_(False)
    return network


def frozen(classes: int) -> nn.Module:
    return TwoConvs(classes).requires_grad_(False)


class Changed(nn.Module):
    """TwoConvs with its logits changed."""

    def __init__(self, classes: int, change):
        super().__init__()
        self.inner, self.change = TwoConvs(classes), change

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.change(self.inner(images))


def detached(classes: int) -> nn.Module:
    return Changed(classes, torch.Tensor.detach)


def of_whole_numbers(classes: int) -> nn.Module:
    return Changed(classes, torch.Tensor.int)


def of_three_dimensions(classes: int) -> nn.Module:
    return Changed(classes, lambda logits: logits[0])


def swapped(classes: int) -> nn.Module:
    return Changed(classes, lambda logits: logits.mT)


def of_one_pixel(classes: int) -> nn.Module:
    return Changed(classes, lambda logits: logits.mean((2, 3), keepdim=True))


def overflowing(classes: int) -> nn.Module:
    return Changed(classes, lambda logits: logits * float("inf"))


def failing(classes: int) -> nn.Module:
    raise LookupError("no\nluck")


def leaving(classes: int) -> nn.Module:
    raise SystemExit(0)


def failing_later(classes: int) -> nn.Module:
    return Changed(classes, lambda logits: logits.no_such_thing)


def seeing(classes: int):
    """A black box: train ids [H/2, W/2] by brightness."""
    return lambda image: (image[::2, ::2].mean(2) * classes / 256).astype("int64")


def scoring(classes: int):
    """The same black box with scores: the negative distance to each class's brightness."""

    def scores(image):
        level = image[::2, ::2].mean(2) * classes / 256
        return -abs(level - 0.5 - numpy.arange(classes)[:, None, None])

    return scores


def seeing_one_too_many(classes: int):
    return lambda image: seeing(classes + 1)(255 * (image >= 0).astype("uint8"))


def seeing_nothing(classes: int):
    return lambda image: image


def seeing_badly(classes: int):
    return lambda image: image.no_such_thing


class Branching(nn.Module):
    """Looks at the values of the image."""

    def __init__(self, classes: int):
        super().__init__()
        self.inner = TwoConvs(classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        return logits + 1 if images.mean() > 0.5 else logits


def branching(classes: int) -> nn.Module:
    return Branching(classes)


def of_bessel(classes: int) -> nn.Module:
    return Changed(classes, torch.special.bessel_j0)

"""Networks of a few hundred parameters, for tests, named as a user names their own: networks:two_convs."""

import torch
from torch import nn


class TwoConvs(nn.Module):
    """An encoder of stride 2 with batch norm, dropout, and a classifier; `encoder` is the layer to compare."""

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

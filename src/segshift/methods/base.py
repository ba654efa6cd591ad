"""What the training loop asks of a method.

A method is a `torch.nn.Module` that holds every network it needs, trained or not: its `state_dict` is what a
checkpoint keeps. The loop has the method prepare each micro-batch once, then asks each player in turn for its
losses, backpropagates their sum and steps the player's optimizer; gradients that a player's losses leave in
another's networks are thrown away. So an adversary is a second player, and a teacher is a module of the
method that is no player and follows in `after_step`.

    player  name of a group of networks that is trained by one optimizer
    batch   named tensors: images [B, 3, H, W] in [0, 1], labels [B, H, W] uint8 train ids, 255 ignored
    terms   scalars by name, each weighted already
    step    optimizer steps done before this one
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segshift.data.labels import IGNORE
from segshift.data.samples import Batch
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError


class Method(nn.Module):
    """A method of adaptation; each overrides what it needs."""

    prediction_options: tuple[str, ...] = ()
    """Options of `segshift predict` that the method takes: `sampling_steps` and `draws`, of a network that
    samples its prediction."""

    def __init__(self, excluded: Sequence[int] = ()):
        """`excluded`: train ids outside the class set (16 or 13 classes), which are never predicted."""
        super().__init__()
        self.excluded = list(excluded)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What is trained, by player."""
        raise NotImplementedError

    def parameter_groups(self, player: str) -> list[tuple[list[nn.Parameter], float]]:
        """The player's parameters that are trained, each once, with the factor on their learning rate."""
        return [(trainable(self.networks[player]), 1.0)]

    def encoder_and_heads(
        self, segmenter: Segmenter, player: str, factor: float
    ) -> list[tuple[list[nn.Parameter], float]]:
        """`parameter_groups` where the segmenter's encoder learns at the rate itself and everything else at a
        factor of it.

        Raises: InputError when the factor is not 1 and the network has no encoder.
        """
        if factor == 1:
            return [(trainable(self.networks[player]), 1.0)]
        if segmenter.encoder is None:
            raise InputError(
                f"--head-lr is {factor:g}, and {type(segmenter.network).__name__} has no part called "
                f"'{segmenter.encoder_name}' to tell heads from: leave it out"
            )
        encoder = trainable(segmenter.encoder)
        known = {id(parameter) for parameter in encoder}
        heads = [parameter for parameter in trainable(self.networks[player]) if id(parameter) not in known]
        return [(encoder, 1.0), (heads, factor)]

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of keeping them. Raises: InputError where it
        cannot.
        """
        raise InputError(
            f"{type(self).__name__} cannot recompute activations: leave out --gradient-checkpointing"
        )

    def prepare(self, batch: Batch) -> Any:
        """What `losses` of every player are given, made once of each micro-batch before the first player's: a
        place for what the players share. The batch itself where a method does not say otherwise."""
        return batch

    def losses(self, player: str, prepared: Any, step: int) -> dict[str, Tensor]:
        """The player's terms on what `prepare` made of one batch; their sum is backpropagated."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called when all players have stepped: the place of a teacher's average."""

    def observed(self) -> dict[str, Tensor]:
        """Figures of the step just taken that are no losses, scalars by name, for the log."""
        return {}

    def advice(self, means: Mapping[str, float]) -> str | None:
        """What to warn the user of after the last step, given the mean of every observed figure."""
        return None

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to logits [B, C, H, W]; -inf for classes outside the class set.

        `seeds`: of what is drawn for each image, where a method draws something; None stands for zeros.
        """
        raise NotImplementedError

    def predict_with_uncertainty(
        self, images: Tensor, seeds: Sequence[int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`predict`, and maps [B, H, W] in [0, 1] by name: the entropy of the softmax, 1 where all classes
        are alike.
        """
        logits = self.predict(images, seeds)
        return logits, {"entropy": self.entropy(logits.float().softmax(1))}

    def set_prediction(self, **options: int) -> None:
        """Predict with these values of `prediction_options`. Raises: InputError for one out of range."""

    def freeze_draws(self, images: Tensor) -> None:
        """Make the prediction of images of this shape [B, 3, H, W] a function of the images alone, as seeds
        of 0 give it: what an export computes."""

    @property
    def sampling(self) -> str | None:
        """How the prediction is sampled, as tables say it; None where nothing is drawn."""
        return None

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Probabilities [B, C, H, W] to their entropy [B, H, W] over its largest value, in [0, 1]."""
        classes = probabilities.shape[1] - len(self.excluded)
        return torch.special.entr(probabilities).sum(1) / math.log(max(classes, 2))

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits [B, C, H, W] with the excluded classes at -inf."""
        index = torch.tensor(self.excluded, dtype=torch.long, device=logits.device)
        return logits.index_fill(1, index, float("-inf"))


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The module's parameters, without frozen ones: an optimizer keeps nothing for those."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """CE(f(x), y), the mean over labelled pixels; 0 where all are void.

    logits: [B, C, H, W]; label: [B, H, W] uint8 train ids, 255 void.
    """
    total = F.cross_entropy(logits, label.long(), ignore_index=IGNORE, reduction="sum")
    return total / (label != IGNORE).sum().clamp(min=1)


def weighted_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """CE of every labelled pixel times its weight [B, H, W], summed and divided by their number; 0 where all
    are void.
    """
    pixels = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE, reduction="none")
    return (weight * pixels).sum() / (label != IGNORE).sum().clamp(min=1)

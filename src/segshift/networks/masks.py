"""Mask classifiers of transformers, which predict masks and a class of each: MaskFormer, Mask2Former,
OneFormer, EoMT. They only predict.

    q        query                       Q, C    queries, classes
    p        class probabilities         [B, Q, C], the softmax over C + 1 without "no object"
    m        mask probabilities          [B, Q, h, w], the sigmoid
    s        score of a class in a pixel [B, C, h, w], the sum over q of p m (Cheng et al., "MaskFormer",
             NeurIPS 2021, section 3.4)

The logits are log s, at the masks' own size. Their loss matches masks to queries, and the training loop has
losses on pixels alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer

from segshift.networks.segmenter import Segmenter
from segshift.networks.weights import EncoderTensors, Tensors
from segshift.runs import InputError

FAMILIES = ("maskformer", "mask2former", "oneformer", "eomt", "eomt_dinov3")
"""Model types of transformers."""
SQUARE = ("eomt", "eomt_dinov3")
"""Those that take squares of one size."""
TASK = "the task is semantic"
"""What OneFormer is told."""
LEAST = 1e-6
"""Score that no class falls below, so that logits are finite."""


class MaskSegmenter(Segmenter):
    """A mask classifier behind the interface."""

    def __init__(self, name: str, model: Any, classes: int, names: EncoderTensors):
        """name: hub name or folder, which OneFormer's tokenizer is read from. names: finds the model's
        tensors in a file. Raises: InputError, as `Segmenter`; OSError without a tokenizer.
        """
        family = model.config.model_type
        task = _task(name, model) if family == "oneformer" else None
        side = model.config.image_size if family in SQUARE else None
        super().__init__(PerPixel(model, side, task), classes, None)
        self.called, self.names = name, names

    def from_file(self, tensors: Tensors) -> Tensors:
        found = self.names(self.network.model, tensors)  # type: ignore[arg-type]
        return tensors if found is None else {f"model.{name}": tensor for name, tensor in found.items()}

    def require_gradients(self) -> None:
        raise InputError(
            f"network 'hf:{self.called}' predicts masks and cannot be trained here, for its loss matches "
            "masks to queries: give its file of weights to predict and estimate as --run, or train another "
            "network"
        )


class PerPixel(nn.Module):
    """Images [B, 3, H, W], normalised, to logits [B, C, h, w]."""

    def __init__(self, model: nn.Module, side: int | None, task: Tensor | None):
        """side: of the squares that the model takes; None where it takes any size. task: token ids [1, T]."""
        super().__init__()
        self.model: Any = model
        self.side = side
        self.task: Tensor | None
        self.register_buffer("task", task, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._scores(x) if self.side is None else self._squares(x, self.side)

    def _scores(self, x: Tensor) -> Tensor:
        more = {} if self.task is None else {"task_inputs": self.task.expand(len(x), -1)}
        found = self.model(pixel_values=x, **more)
        p = found.class_queries_logits.float().softmax(-1)[..., :-1]
        m = found.masks_queries_logits.float().sigmoid()
        return torch.einsum("bqc,bqhw->bchw", p, m).clamp(min=LEAST).log()

    def _squares(self, x: Tensor, side: int) -> Tensor:
        """As EoMT's authors predict: the short side becomes `side`, squares cover the long one evenly, and
        overlaps are averaged.
        """
        scale = side / min(x.shape[2:])
        size = [max(side, round(full * scale)) for full in x.shape[2:]]
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        total, count = x.new_zeros(1), x.new_zeros(1, 1, *size)
        for top in _starts(size[0], side):
            for left in _starts(size[1], side):
                found = self._scores(x[..., top : top + side, left : left + side])
                found = F.interpolate(found, (side, side), mode="bilinear", align_corners=False)
                margins = (left, size[1] - side - left, top, size[0] - side - top)
                total = total + F.pad(found, margins)
                count = count + F.pad(torch.ones_like(found[:1, :1]), margins)
        return total / count


def _starts(full: int, side: int) -> list[int]:
    """Where squares begin that cover `full` pixels, as few and as evenly as can be."""
    count = math.ceil(full / side)
    return [round(i * (full - side) / max(count - 1, 1)) for i in range(count)]


def _task(name: str, model: Any) -> Tensor:
    """Token ids [1, T] of what OneFormer is told, with zeros behind."""
    tokens = AutoTokenizer.from_pretrained(name)(
        TASK,
        padding="max_length",
        max_length=model.config.task_seq_len,
        truncation=True,
        return_tensors="pt",
    )
    return (tokens["input_ids"] * tokens["attention_mask"]).float()

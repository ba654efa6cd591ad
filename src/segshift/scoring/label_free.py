"""Scores of a network's predictions that need no label, and what they say of a generator.

    p            softmax of a pixel, [C]; its confidence is max_c p_c
    conf         mean confidence of the pixels of a set: Hendrycks and Gimpel, "A Baseline for Detecting
                 Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR 2017
    DoC          conf(source) - conf(target), the difference of confidences: Guillory et al., "Predicting with
                 Confidence on Unseen Distributions", ICCV 2021
    ATC          share of the pixels whose confidence is t or more, with t such that on the source the share
                 below it is the error rate there, the average thresholded confidence: Garg et al.,
                 "Leveraging Unlabeled Data to Predict Out-of-Distribution Performance", ICLR 2022
    nuclear norm ||P||_* / sqrt(min(N, C) N) of the matrix P [N, C] of the softmaxes of N pixels, in (0, 1]:
                 Deng et al., "Confidence and Dispersity Speak: Characterizing Prediction Matrix for
                 Unsupervised Accuracy Estimation", ICML 2023; there of a data set of N images, here of a
                 frame's N pixels, and then the mean over frames

They predict an accuracy; `baselines` takes the share that they fall by off a mIoU, and `generator_error`
shows what a generator is off by (both ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BINS = 64
"""Counts that a frame's confidences are kept as, of equal width in -log2(1 - confidence): there those of a
network that is sure lie apart."""
WIDTH = 24 / BINS
"""Of a bin; float32 has no confidence above 1 - 2^-24 but 1."""
FEWEST = 20
"""Of fewer target images, whichever they happen to be decides on their scores."""
SURE = 0.9999
"""A network whose mean confidence on the source is above it gives classes, not scores."""
RIDGE = 1e-4
"""Of the slopes of `generator_error`: sets whose scores differ by less than a point say nothing."""

SCORES = ("confidence", "ATC", "nuclear norm")
"""What `scores` gives, in order."""


def of_frame(logits: Tensor, confidence: Tensor) -> dict[str, Any]:
    """What predictions.jsonl holds of a frame, from logits [C, h, w] and confidences [h, w]: mean confidence,
    counts of the confidences (BINS), nuclear norm."""
    p = logits.float().softmax(0).flatten(1)  # [C, N]
    p = p.double() if p.device.type != "mps" else p  # which has no double
    squares = torch.linalg.eigvalsh((p @ p.T).cpu().double()).clamp(min=0)  # P's singular values, squared
    classes, pixels = p.shape
    norm = squares.sqrt().sum().item() / (min(pixels, classes) * pixels) ** 0.5
    surprise = -torch.log2((1 - confidence).clamp(min=2.0**-24))
    counts = torch.bincount((surprise / WIDTH).long().flatten().clamp(0, BINS - 1).cpu(), minlength=BINS)
    return {
        "confidence": round(confidence.mean().item(), 6),
        "confidences": counts.tolist(),
        "nuclear_norm": round(min(norm, 1.0), 6),
    }


@dataclass(frozen=True)
class Summary:
    """What a network's predictions of a set of F frames look like; of several draws of a frame, the mean."""

    confidence: np.ndarray
    """[F]."""
    confidences: np.ndarray
    """[F, BINS]: shares of the pixels."""
    nuclear_norm: np.ndarray
    """[F]."""


def summarise(draws: Sequence[Sequence[Any]]) -> Summary:
    """From lines of predictions.jsonl (`records.Prediction`) of the same frames, one list a draw."""
    counts = np.array([[line["confidences"] for line in lines] for lines in draws], np.float64)
    confidence, norm = (
        np.array([[line[name] for line in lines] for lines in draws]).mean(0)
        for name in ("confidence", "nuclear_norm")
    )
    return Summary(confidence, (counts / counts.sum(-1, keepdims=True)).mean(0), norm)


def scores(
    of: Summary, weights: np.ndarray, source: Summary, on_source: np.ndarray, error: np.ndarray
) -> np.ndarray:
    """SCORES of a set in R resamples, [R, 3], each in [0, 1].

    weights: of its frames, [R, F]. on_source: those of the source's. error: the share of the source's
    labelled pixels that are wrong, [R], which ATC's threshold is chosen by.
    """
    edges = np.arange(BINS + 1)

    def below(one: Summary, weighted: np.ndarray) -> np.ndarray:
        """Share of the pixels below each edge, [R, BINS + 1]."""
        return np.pad(np.cumsum(weighted @ one.confidences, 1), ((0, 0), (1, 0)))

    kept = []
    for home, here, wrong in zip(below(source, on_source), below(of, weights), error, strict=True):
        kept.append(1 - np.interp(np.interp(wrong, home, edges), edges, here))
    return np.stack([weights @ of.confidence, np.array(kept), weights @ of.nuclear_norm], 1)


def baselines(miou: float, source: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """What each score alone predicts for the target's mIoU, from the source's mIoU and SCORES on both, [3]
    each."""
    left = target / np.maximum(source, 1e-9)
    return {
        "average confidence": float(miou * left[0]),
        "difference of confidences": float(miou - (source[0] - target[0])),
        "ATC": float(miou * left[1]),
        "nuclear norm": float(miou * left[2]),
    }


def generator_error(
    miou: np.ndarray, labelled: np.ndarray, generated: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """mIoU on real target frames less that on generated ones, as their label-free scores tell it, [R].

    miou [R, S], labelled [R, S, 3]: mIoU and SCORES of one network on S sets that have labels, the source
    frames and those that were transferred. generated, real [R, 3]: SCORES on the frames that were transferred
    to the target, and on its unlabelled images.

    For each score, b is the slope of mIoU on it over the S sets by least squares, not below 0; the error is
    b (real - generated), and the middle one of the three counts. Nothing is fitted on another network or on
    labels of a target.
    """
    x, y = labelled - labelled.mean(1, keepdims=True), miou - miou.mean(1, keepdims=True)
    slope = np.maximum(0, (x * y[..., None]).sum(1) / ((x**2).sum(1) + RIDGE))
    return np.median(slope * (real - generated), axis=1)

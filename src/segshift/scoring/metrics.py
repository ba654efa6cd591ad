"""Confusion matrices and the numbers of the benchmarks: per-class IoU, mIoU, pixel accuracy.

One matrix is summed over all frames of a data set before any ratio is taken, as in the PASCAL VOC and
Cityscapes benchmarks. A mean of per-image ratios is another number.

    C       number of classes
    M       int64 [C, C + 1]: rows truth, columns prediction; the last column counts labelled pixels whose
            prediction is none of the classes (void)
    IoU_c   TP / (TP + FP + FN)

As in cityscapesScripts, an unlabelled pixel counts nowhere whatever was predicted there, and a void
prediction on a labelled pixel is a miss (FN) of the pixel's class and a false alarm of no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from statistics import mean, stdev

import cv2
import numpy as np


def joint_counts(label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """How often each pair of values occurs, int64 [256, 256]: rows label, columns prediction, both [H, W]
    uint8.
    """
    if pred.shape != label.shape or pred.dtype != np.uint8 or label.dtype != np.uint8:
        raise ValueError(
            f"prediction {pred.shape} {pred.dtype}, label {label.shape} {label.dtype}: both uint8 [H, W]"
        )
    counts = np.zeros((256, 256), np.int64)
    # calcHist returns float32, exact up to 2^24: no strip has more pixels than that. It counts about twice as
    # fast as numpy's bincount and leaves the interpreter to other threads.
    rows = max(1, 2**24 // label.shape[1])
    for top in range(0, len(label), rows):
        pair = [np.ascontiguousarray(label[top : top + rows]), np.ascontiguousarray(pred[top : top + rows])]
        counts += cv2.calcHist(pair, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    return counts


def confusion_matrix(pred: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """M of one frame, int64 [C, C + 1], from train ids [H, W] uint8.

    Label values of C and above (255: ignored) count nowhere; prediction values of C and above fall into the
    last column.
    """
    return from_counts(joint_counts(label, pred), classes)


def from_counts(counts: np.ndarray, classes: int, to_train: np.ndarray | None = None) -> np.ndarray:
    """M [C, C + 1] from the counts of pairs [256, 256]; `to_train` [256]: train ids of the values, where they
    are a data set's own ids."""
    if to_train is not None:
        label, pred = np.nonzero(counts)
        mapped = np.zeros_like(counts)
        np.add.at(mapped, (to_train[label], to_train[pred]), counts[label, pred])
        counts = mapped
    labelled = counts[:classes]
    return np.concatenate([labelled[:, :classes], labelled[:, classes:].sum(1, keepdims=True)], axis=1)


def plain(value: float) -> float | None:
    """As JSON has it, which knows no nan."""
    return None if isnan(value) else float(value)


def restrict(matrix: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """M over a subset of K classes, [K, K + 1], in the order of `classes` (train ids).

    Pixels whose truth is outside the subset are ignored, as where their labels are mapped to void before the
    evaluation (the 16 and 13 class protocols of SYNTHIA). A prediction outside the subset on a pixel of the
    subset is void: a miss of the pixel's class.
    """
    rows, index = matrix[list(classes)], list(classes)
    inside = rows[:, index]
    return np.concatenate([inside, (rows.sum(1) - inside.sum(1))[:, None]], axis=1)


def iou(matrix: np.ndarray) -> np.ndarray:
    """Per-class IoU in [0, 1], float64 [..., C], of M [..., C, C + 1]; nan for a class that is neither in the
    truth nor predicted."""
    true_positive = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    union = matrix.sum(-1) + matrix[..., : matrix.shape[-2]].sum(-2) - true_positive
    return np.divide(true_positive, union, out=np.full(union.shape, np.nan), where=union > 0)


def miou(matrix: np.ndarray) -> float:
    """Mean IoU in [0, 1] over the classes that have one; nan when none has."""
    scores = iou(matrix)
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if len(present) else float("nan")


def pixel_accuracy(matrix: np.ndarray) -> float:
    """Fraction of labelled pixels predicted right, in [0, 1]; nan when nothing is labelled."""
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else float("nan")


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± standard deviation; the value alone where there is one, nothing where there is none."""
    if len(values) < 2:
        return "".join(f"{value:{sign}.1f}" for value in values)
    return f"{mean(values):{sign}.1f} ± {stdev(values):.1f}"

"""Calibration, and what an uncertainty is worth: exact counts over all labelled pixels.

    v      value of a map at a pixel, 16 bits read as v / 65535 in [0, 1]: a confidence, or an uncertainty
    K      65,536, the values that a map can hold
    H      int64 [2, K]: wrong pixels and right pixels, by value
    N      labelled pixels

A pixel is right when its predicted class is its label. Histograms of frames are added up before any ratio is
taken, as confusion matrices are. Only pixels of the same value count as equally certain, for a map may use
few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 20
"""Equal bins of the reliability diagram."""
COVERAGES = np.arange(1, 101) / 100
"""Coverages at which the curve of the risk is written."""
_VALUES = np.arange(2**16)


def histogram(values: np.ndarray, label: np.ndarray, pred: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """H of one frame. values: [H, W] uint16. label, pred: train ids [H, W] uint8; pixels whose label is none
    of
    `classes` count nowhere."""
    labelled = np.isin(np.arange(256), classes)[label]
    right = (pred == label)[labelled]
    return np.bincount(values[labelled] + len(_VALUES) * right, minlength=2 * len(_VALUES)).reshape(2, -1)


def reliability(counts: np.ndarray) -> dict[str, Any] | None:
    """Accuracy against confidence in 20 equal bins, from the H [2, K] of a confidence; None without a
    labelled pixel.

    accuracy_b = right_b / n_b,  confidence_b = mean of v in b (both null where n_b = 0), and the
    expected calibration error  ECE = sum_b n_b / N |accuracy_b - confidence_b|  (Guo et al.,
    ICML 2017, eq. 3; there with 15 bins).
    """
    starts = np.flatnonzero(np.diff(_VALUES * BINS // len(_VALUES), prepend=-1))
    count, right, sums = (
        np.add.reduceat(each, starts).astype(np.float64)
        for each in (counts.sum(0), counts[1], counts.sum(0) * _VALUES)
    )
    sums /= _VALUES[-1]
    if not count.any():
        return None
    return {
        "bins": BINS,
        "count": count.astype(int).tolist(),
        "accuracy": [r / n if n else None for r, n in zip(right.tolist(), count.tolist(), strict=True)],
        "confidence": [s / n if n else None for s, n in zip(sums.tolist(), count.tolist(), strict=True)],
        "ece": float(np.abs(right - sums).sum() / count.sum()),
    }


def risk_coverage(counts: np.ndarray, *, confidence: bool = False) -> dict[str, Any] | None:
    """How the share of wrong pixels falls when only the most certain ones are kept, from the H [2, K] of an
    uncertainty (`confidence`: of a confidence, high where an uncertainty is low); None without a labelled
    pixel.

    risk(k) = E(k) / k, with E(k) the wrong pixels among the share k of most certain ones, in shares of N;
    linear within a value, as the errors of equally certain pixels are spread evenly. risk(1) is the error
    rate r. area = integral of risk over k from 0 to 1 (Geifman and El-Yaniv, NeurIPS 2017), in closed form:
    in a value  E(k) = a + b k, so it adds  b (k1 - k0) + a ln(k1 / k0). The least possible is
    r + (1 - r) ln(1 - r), that of an uncertainty without information r.
    """
    wrong, right = (counts[:, ::-1] if confidence else counts).astype(np.float64)
    count = wrong + right
    wrong, count = wrong[count > 0], count[count > 0]
    if not len(count):
        return None
    kept = np.concatenate([[0.0], np.cumsum(count)]) / count.sum()
    missed = np.concatenate([[0.0], np.cumsum(wrong)]) / count.sum()
    start, end = kept[1:-1], kept[2:]  # of every value but the first, where a = 0
    slope = (missed[2:] - missed[1:-1]) / (end - start)
    area = missed[-1] + ((missed[1:-1] - slope * start) * np.log(end / start)).sum()
    risk = np.interp(COVERAGES, kept, missed) / COVERAGES
    return {"coverage": COVERAGES.tolist(), "risk": risk.round(6).tolist(), "area": float(area)}

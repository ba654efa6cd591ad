"""Calibration, and what an uncertainty is worth: exact counts over all labelled pixels.

    v      value of a map at a pixel, 16 bits read as v / 65535 in [0, 1]: a confidence, or an uncertainty
    K      1,000 equal bins of v
    H      int64 [3, K]: wrong pixels, right pixels, and the sum of the 16-bit values of both, by bin of v
    N      labelled pixels

A pixel is right when its predicted class is its label. Histograms of frames are added up before any ratio is taken,
as confusion matrices are. All pixels of one of the K bins count as equally certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FINE = 1000
"""K."""
BINS = 20
"""Bins of the reliability diagram, each of K / 20 fine ones."""
COVERAGES = np.arange(1, 101) / 100
"""Coverages at which the curve of the risk is written."""
_FULL = 65535


def histogram(values: np.ndarray, label: np.ndarray, pred: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """H of one frame. values: [H, W] uint16. label, pred: train ids [H, W] uint8; pixels whose label is none of
    `classes` count nowhere."""
    labelled = np.isin(np.arange(256), classes)[label]
    values = values[labelled].astype(np.int64)
    right = (pred == label)[labelled]
    place = values * FINE // (_FULL + 1)
    counts = np.bincount(place + FINE * right, minlength=2 * FINE).reshape(2, FINE)
    sums = np.bincount(place, weights=values, minlength=FINE)  # float64, exact up to 2^53
    return np.concatenate([counts, sums[None].astype(np.int64)])


def reliability(counts: np.ndarray) -> dict[str, Any] | None:
    """Accuracy against confidence in 20 equal bins, from the H [3, K] of a confidence; None without a labelled pixel.

    accuracy_b = right_b / n_b,  confidence_b = mean of v in b (both null where n_b = 0), and the expected calibration
    error  ECE = sum_b n_b / N |accuracy_b - confidence_b|  (Guo et al., ICML 2017, eq. 3; there with 15 bins).
    """
    wrong, right, sums = counts.reshape(3, BINS, -1).sum(2).astype(np.float64)
    count, sums = wrong + right, sums / _FULL
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
    """How the share of wrong pixels falls when only the most certain ones are kept, from the H [3, K] of an
    uncertainty (`confidence`: of a confidence, high where an uncertainty is low); None without a labelled pixel.

    risk(k) = E(k) / k, with E(k) the wrong pixels among the share k of most certain ones, in shares of N; linear
    within a bin, as the errors of equally certain pixels are spread evenly. risk(1) is the error rate r.
    area = integral of risk over k from 0 to 1 (Geifman and El-Yaniv, NeurIPS 2017), in closed form: in a bin
    E(k) = a + b k, so it adds  b (k1 - k0) + a ln(k1 / k0). The least possible is r + (1 - r) ln(1 - r), that of an
    uncertainty without information r.
    """
    wrong, right = (counts[:2, ::-1] if confidence else counts[:2]).astype(np.float64)
    count = wrong + right
    wrong, count = wrong[count > 0], count[count > 0]
    if not len(count):
        return None
    kept = np.concatenate([[0.0], np.cumsum(count)]) / count.sum()
    missed = np.concatenate([[0.0], np.cumsum(wrong)]) / count.sum()
    start, end = kept[1:-1], kept[2:]  # of every bin but the first, where a = 0
    slope = (missed[2:] - missed[1:-1]) / (end - start)
    area = missed[-1] + ((missed[1:-1] - slope * start) * np.log(end / start)).sum()
    risk = np.interp(COVERAGES, kept, missed) / COVERAGES
    return {"coverage": COVERAGES.tolist(), "risk": risk.round(6).tolist(), "area": float(area)}

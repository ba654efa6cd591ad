"""The statistics of an estimate: scores of one network with intervals, from confusion matrices of frames
(ours).

    F, D, C, R   frames, noise draws, classes, resamples
    M            confusion matrices of a set of frames, [F, D, C, C + 1] (`metrics`); D = 1 for frames
                 not generated
    S, O, T      IoU of a class, in [0, 1], on the labelled source frames, on the same frames transferred to
                 their own domain, and on the same frames transferred to the target
    W            T with the whole cost of the transfer taken off (`correct`)
    u            share of that cost to take off
    P            what is predicted for the target, (1 - u) T + u W, within [0, 1]

Matrices are summed before any ratio is taken, in a resample as over the whole set: a mean of per-image ratios
is another number. A class that no labelled pixel shows has no score (nan), also where it is predicted:
nothing can be said about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from statistics import NormalDist

import numpy as np

from segshift.data import transforms
from segshift.scoring import metrics

LEVEL = 0.9
"""Share of the resamples that an interval holds, between its outer quantiles."""
FEWEST_FRAMES = 10
"""Of fewer frames too few different resamples exist for quantiles as far out as 5 % to mean anything."""
FAILS_BELOW = 0.5
"""A class fails in a domain where its predicted IoU is below this share of its IoU on the source."""
SHRINKAGE = 0.05
"""epsilon of `correct`, in IoU. Not fitted to anything."""

SHARE, UNSURE = 0.5, 1.0
"""u of the value that is predicted, and its standard deviation in the interval. Not known: what the generator
spoils may cost as much again in a strange domain (u = 1), may be what the domain spoils anyway (u = 0), and a
generator may as well flatter (u < 0). The one error of it that can be measured without target images is its
whole cost at home: so one deviation of u is the whole cost, either way."""

FEWEST_OF_CLASS = 5
"""Where fewer frames show a class, no resample tells how much its IoU would vary, and it has no interval."""
GENERATOR, GENERATOR_CLASS, CLASS_FLOOR = 0.14, 0.20, 0.04
"""Standard deviation of what the generator's idea of a domain is off by: as a share of the predicted mIoU; as
a share of the predicted IoU of a class, and besides that in IoU, for it may also draw too well what is
predicted to be lost. Without target images they can only be taken from elsewhere: from the embedded town,
where about 90 % of the true scores of 24 networks lie inside the intervals with them
(`benchmarks/estimate.py`, which also judges each domain by what the others give)."""
GENERATOR_NETWORK = 0.08
"""The part of it that is not the same for all networks, as a share of the predicted mIoU: with it the first
of three networks is the best about as often as `best` says, on the same town (LOG.md)."""
TRAINED_ON = 0.09
"""By how much the mIoU is overestimated, on the town, of networks that were trained on transferred frames of
the domain: they know the generator. Told in a warning, and not taken off: how much it is depends on the
generator."""

SEEN_SHARE, SEEN_UNSURE = 0.5, 0.5
"""How much of the generator's error that `label_free` sees is taken off, and its standard deviation in the
interval. Not fitted to anything: a network may be as sure where it is wrong (0), and the scores may tell all
of it (1)."""

SCORES = ("source", "own", "raw", "corrected")
"""S, O, T and P, in the order of `scores`."""


def correct(source: np.ndarray, own: np.ndarray, transferred: np.ndarray) -> np.ndarray:
    """W_c = min(1, S_c (T_c + epsilon k) / (O_c + epsilon)),  k = mean_c T_c / mean_c O_c

    All [..., C]. The transfer costs the network something even where the domain stays the same: O / S of the
    score is left. Transferred to the target, T / S is left. If the two losses multiply, T / O is what the
    domain alone leaves. Of a class that the transfer destroys (O_c near 0) that ratio is noise: epsilon draws
    it towards k, the same ratio over all classes, and a class with O_c well above epsilon is hardly touched.
    Where the transfer costs nothing (O = S), W is T up to epsilon. Where it leaves nothing at all (every O_c
    = 0), it says nothing: k = 1, and W = S.
    """
    both = np.where(np.isnan(own + transferred), np.nan, np.stack((transferred, own)))
    left, whole = mean(both)
    overall = np.divide(left, whole, out=np.ones_like(whole), where=whole > 0)[..., None]
    return np.minimum(1, source * (transferred + SHRINKAGE * overall) / (own + SHRINKAGE))


def mean(values: np.ndarray) -> np.ndarray:
    """mIoU of per-class values [..., C]: over the classes that have one; nan where none has."""
    count = (~np.isnan(values)).sum(-1)
    return np.divide(np.nansum(values, -1), count, out=np.full(values.shape[:-1], np.nan), where=count > 0)


def shown(matrix: np.ndarray) -> np.ndarray:
    """IoU [..., C] of the classes that a labelled pixel shows, of M [..., C, C + 1]; nan for the others, also
    where one is predicted.
    """
    return np.where(matrix.sum(-1) > 0, metrics.iou(matrix), np.nan)


def scores(
    source: np.ndarray, own: np.ndarray, transferred: np.ndarray, share: float | np.ndarray = SHARE
) -> np.ndarray:
    """S, O, T and P per class, [..., 4, C], from summed matrices [..., C, C + 1] each; `share`: u, a number
    or [..., 1]."""
    measured = [shown(m) for m in (source, own, transferred)]
    predicted = np.clip((1 - share) * measured[2] + share * correct(*measured), 0, 1)
    return np.stack([*measured, predicted], axis=-2)


def resampled(
    sets: Sequence[np.ndarray], resamples: int, seed: int, *, common_noise: bool = False
) -> np.ndarray:
    """`scores` of R resamples, [R, 4, C], from M of source, own domain and target.

    A resample weighs the F frames by a draw from the flat Dirichlet distribution, the same weights in all
    three sets (Rubin, "The Bayesian Bootstrap", 1981). With replacement, a class that few frames show would
    be missing from many resamples, and their mIoU a mean over other classes. The spread holds that of the
    frames and that of the noise, which is each frame's own, also of one draw. With `common_noise` (the
    transfer's reference mode) all frames of a draw share it and frames do not show it: then the draws of a
    set are weighed likewise, and of one draw it is missing. The spread of P also holds u, drawn from N(SHARE,
    UNSURE^2). What they do not show is left to `widened`.
    """
    rng = np.random.default_rng(transforms.key_seed(seed, "bootstrap"))
    weights = rng.dirichlet(np.ones(len(sets[0])), size=resamples)  # [R, F], those of `weights`
    summed = []
    for matrices in sets:
        count = matrices.shape[1]
        draws = (
            rng.dirichlet(np.ones(count), size=(resamples, 1))
            if common_noise
            else np.full((1, 1, count), 1 / count)
        )
        summed.append(np.tensordot(weights[..., None] * draws, matrices.astype(np.float64), 2))
    shares = rng.normal(SHARE, UNSURE, resamples)
    source, own, transferred = summed
    return scores(source, own, transferred, shares[:, None])


def weights(frames: int, resamples: int, seed: int, what: str = "bootstrap") -> np.ndarray:
    """Weights of F frames in R resamples, [R, F]: those of `resampled`, or of frames of another kind."""
    rng = np.random.default_rng(transforms.key_seed(seed, what))
    return rng.dirichlet(np.ones(frames), size=resamples)


def best(predicted: np.ndarray, seed: int) -> np.ndarray:
    """The probability that each network is the best, [K], from the mIoU of the same R resamples of frames
    (`resampled` with one seed), [K, R]: the share of resamples in which it is.

    In each resample every network is also off by an error of its own, N(0, (GENERATOR_NETWORK P)^2). What the
    generator is off by for all networks alike does not change their order.
    """
    rng = np.random.default_rng(transforms.key_seed(seed, "best"))
    drawn = predicted * (1 + GENERATOR_NETWORK * rng.standard_normal(predicted.shape))
    return np.bincount(drawn.argmax(0), minlength=len(drawn)) / drawn.shape[1]


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the LEVEL interval over the first axis; nan where every value is nan."""
    some = ~np.isnan(values).all(0)
    ends = np.full((2, *values.shape[1:]), np.nan)
    ends[:, some] = np.nanquantile(values[:, some], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return ends[0], ends[1]


def widened(value: float, low: float, high: float, deviation: float) -> tuple[float, float]:
    """The ends of an interval with a further independent error of that standard deviation, normal at its
    quantile:

    value -+ sqrt((value - end)^2 + (q deviation)^2),  q = Phi^-1((1 + LEVEL) / 2)
    """
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * deviation
    return value - hypot(max(0.0, value - low), reach), value + hypot(max(0.0, high - value), reach)


def class_error(predicted: float) -> float:
    """Standard deviation of the generator's error in a class's predicted IoU."""
    return hypot(GENERATOR_CLASS * predicted, CLASS_FLOOR)


def failing(source: np.ndarray, predicted: np.ndarray) -> list[int]:
    """Classes whose predicted IoU is below FAILS_BELOW of the source's, both [C]; the smallest share kept
    comes first.

    A class that has no score, or none above 0 on the source, cannot fail by the domain.
    """
    share = np.divide(predicted, source, out=np.full(len(source), np.nan), where=source > 0)
    return [int(c) for c in np.argsort(share, kind="stable") if share[c] < FAILS_BELOW]

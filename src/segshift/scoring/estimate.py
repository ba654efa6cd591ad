"""What an estimate says of a domain: scores with intervals, from confusion matrices of frames (ours).

`bootstrap` has the statistics and their symbols. A value with its interval is `records.Interval`: JSON has no
nan, so null stands for what is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np

from segshift.records import Interval
from segshift.scoring import bootstrap


def of_domain(
    counted: Sequence[np.ndarray],
    names: Sequence[str],
    resamples: int,
    seed: int,
    *,
    common_noise: bool = False,
) -> tuple[dict[str, Any], np.ndarray]:
    """What estimate.json says of the scores in one domain, and the predicted mIoU of the resamples, [R].

    counted: M [F, D, C, C + 1] of source, own domain and target. names: of the C classes. The other arguments
    are those of `bootstrap.resampled`.
    """
    known = (counted[0].sum((1, 3)) > 0).sum(0) >= bootstrap.FEWEST_OF_CLASS  # [C]
    values = bootstrap.scores(*(m.sum((0, 1)) for m in counted))
    spread = bootstrap.resampled(counted, resamples, seed, common_noise=common_noise)
    told = dict(zip(bootstrap.SCORES, _with_intervals(values, spread, names, known), strict=True))
    means, mean_spread = bootstrap.mean(values), bootstrap.mean(spread)
    predicted, drop = (
        told["corrected"],
        _between(means[0] - means[3], mean_spread[:, 0] - mean_spread[:, 3]),
    )
    deviation = bootstrap.GENERATOR * (predicted["miou"]["value"] or 0.0)
    found = {
        **told,
        "corrected": {
            "miou": _widened(predicted["miou"], deviation),
            "iou": {
                c: _widened(one, bootstrap.class_error(one["value"] or 0.0))
                for c, one in predicted["iou"].items()
            },
        },
        "without_generator": predicted,
        "drop": _widened(drop, deviation, at_least=-1),
        "transfer_cost": _between(means[0] - means[1], mean_spread[:, 0] - mean_spread[:, 1]),
        "failing": [names[c] for c in bootstrap.failing(values[0], values[3])],
    }
    return found, mean_spread[:, 3]


def ranking(
    candidates: Mapping[str, tuple[Mapping[str, Any], np.ndarray]], seed: int
) -> list[dict[str, Any]]:
    """Networks in one domain, best first, by what `of_domain` says of each with the same seed.

    Returns: name, predicted mIoU with its interval, and the probability that it is the best, in [0, 1].
    """
    shares = bootstrap.best(np.stack([spread for _, spread in candidates.values()]), seed)
    lines = [
        {"candidate": name, "miou": told["corrected"]["miou"], "best": float(share)}
        for (name, (told, _)), share in zip(candidates.items(), shares, strict=True)
    ]
    return sorted(lines, key=lambda line: -(line["miou"]["value"] or 0.0))


def _with_intervals(
    values: np.ndarray, spread: np.ndarray, names: Sequence[str], known: np.ndarray
) -> list[dict[str, Any]]:
    """mIoU and per-class IoU with their intervals, of values [K, C] and their resamples [R, K, C]; one dict
    for each K.
    `known` [C]: classes that enough frames show to have an interval."""
    means, mean_spread = bootstrap.mean(values), bootstrap.mean(spread)
    return [
        {
            "miou": _between(means[k], mean_spread[:, k]),
            "iou": {
                name: _between(values[k, c], spread[:, k, c] if known[c] else np.array([np.nan]))
                for c, name in enumerate(names)
            },
        }
        for k in range(len(values))
    ]


def _between(value: float, spread: np.ndarray) -> Interval:
    """A value and the interval of its resamples [R]; JSON has no nan."""
    ends = bootstrap.interval(spread[:, None])
    found, low, high = (None if isnan(v) else float(v) for v in (value, ends[0].item(), ends[1].item()))
    return {"value": found, "low": low, "high": high}


def _widened(told: Interval, deviation: float, at_least: float = 0.0) -> Interval:
    """A value with its interval, and in it the generator's error."""
    value, low, high = told["value"], told["low"], told["high"]
    if value is None or low is None or high is None:
        return told
    low, high = bootstrap.widened(value, low, high, deviation)
    return {"value": value, "low": max(at_least, low), "high": min(1.0, high)}

"""What an estimate says of a domain: scores with intervals, from confusion matrices of frames (ours).

`bootstrap` has the statistics and their symbols. A value with its interval is `records.Interval`: JSON has no
nan, so null stands for what is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from segshift.data import transforms
from segshift.records import Interval
from segshift.scoring import bootstrap, label_free
from segshift.scoring.label_free import Seen


@dataclass(frozen=True)
class TargetImages:
    """A network's predictions of the frames of source, own domain and target, and of real target images."""

    labelled: tuple[Seen, Seen, Seen]
    real: Seen


def of_domain(
    counted: Sequence[np.ndarray],
    names: Sequence[str],
    resamples: int,
    seed: int,
    *,
    common_noise: bool = False,
    images: TargetImages | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """What estimate.json says of the scores in one domain, and the predicted mIoU of the resamples, [R].

    counted: M [F, D, C, C + 1] of source, own domain and target. names: of the C classes. images: what the
    network makes of the same frames, and of the target's. The others are those of `bootstrap.resampled`.
    """
    known = (counted[0].sum((1, 3)) > 0).sum(0) >= bootstrap.FEWEST_OF_CLASS  # [C]
    values = bootstrap.scores(*(m.sum((0, 1)) for m in counted))
    spread = bootstrap.resampled(counted, resamples, seed, common_noise=common_noise)
    seen: dict[str, Any] = {}
    plain, plain_spread = bootstrap.mean(values)[3], bootstrap.mean(spread)[:, 3]
    if images is not None:
        errors, seen = _seen(images, counted[0], values, spread, seed)
        shares = np.random.default_rng(transforms.key_seed(seed, "target images")).normal(
            bootstrap.SEEN_SHARE, bootstrap.SEEN_UNSURE, resamples
        )
        values[3] = _moved(values[None, 3], bootstrap.SEEN_SHARE * errors[:1])[0]
        spread[:, 3] = _moved(spread[:, 3], shares * errors[1:])
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
    if images is not None:
        without = _widened(_between(plain, plain_spread), bootstrap.GENERATOR * plain)
        found["target_images"] = seen | {"without": without}
    return found, mean_spread[:, 3]


def _seen(
    images: TargetImages, source: np.ndarray, values: np.ndarray, spread: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """The generator's error that target images show, [1 + R], of all frames and of the resamples, and what is
    told of it. source: M of the source frames. values, spread: `bootstrap.scores` [4, C], [R, 4, C]."""

    def weights(frames: int, what: str) -> np.ndarray:
        even = np.full((1, frames), 1 / frames)
        return np.concatenate([even, bootstrap.weights(frames, len(spread), seed, what)])

    on_frames = weights(len(source), "bootstrap")  # [1 + R, F]
    labelled = source.sum((1, 2, 3)).astype(np.float64)
    right = np.trace(source[..., :-1], axis1=2, axis2=3).sum(1)
    wrong = 1 - (on_frames @ right) / (on_frames @ labelled)
    home = images.labelled[0]
    sets = np.stack([label_free.scores(s, on_frames, home, on_frames, wrong) for s in images.labelled], 1)
    real = label_free.scores(
        images.real, weights(len(images.real.confidence), "target frames"), home, on_frames, wrong
    )
    miou = bootstrap.mean(np.concatenate([values[None, :3], spread[:, :3]]))
    errors = label_free.generator_error(miou, sets, sets[:, 2], real)
    places = np.concatenate([sets[0], real[:1]])  # [4, 3]
    return errors, {
        "count": len(images.real.confidence),
        "generator_error": _between(errors[0], errors[1:]),
        "scores": {
            name: dict(zip(("source", "own", "generated", "real"), column.tolist(), strict=True))
            for name, column in zip(label_free.SCORES, places.T, strict=True)
        },
        "baselines": label_free.baselines(float(miou[0, 0]), places[0], places[3]),
    }


def _moved(predicted: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Per-class IoU [R, C] of which the mean moves by [R], all classes by the same factor, within [0, 1]."""
    miou = bootstrap.mean(predicted)
    wanted = np.clip(miou + by, 0, 1)
    factor = np.divide(wanted, miou, out=np.ones_like(miou), where=miou > 0)
    return np.minimum(1, predicted * factor[:, None])


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


def judge(result: Mapping[str, Any]) -> str:
    """Of estimate.json: the name of the generator that judged; of a folder, its own name."""
    return result["generator"]["model"].rstrip("/").rpartition("/")[2]


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

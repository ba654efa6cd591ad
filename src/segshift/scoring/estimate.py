"""What an estimate says of a network, of a domain, and of several networks: scores with intervals, from
confusion matrices of frames (ours).

`bootstrap` has the statistics and their symbols. A value with its interval is `records.Interval`: JSON has no
nan, so null stands for what is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from segshift.config import EstimateConfig
from segshift.data import transforms
from segshift.data.frames import Dataset
from segshift.generators.base import Domain
from segshift.records import Interval, Judge, Metrics, Prediction
from segshift.runs import InputError
from segshift.scoring import bootstrap, label_free
from segshift.scoring.label_free import Summary


@dataclass(frozen=True)
class Scored:
    """A network on one set of frames."""

    confusion: Mapping[str, np.ndarray]
    """[C, C + 1] int64 by frame id."""
    metrics: Metrics
    lines: Mapping[str, Prediction]
    """Of predictions.jsonl, by frame id."""
    record: Mapping[str, Any]
    """Where the set lies and what made it, for estimate.json."""


@dataclass(frozen=True)
class TargetImages:
    """A network's predictions of the frames of source, own domain and target, and of real target images."""

    labelled: tuple[Summary, Summary, Summary]
    real: Summary


def require_frames(name: str, count: int) -> None:
    """Raises: InputError where `name` has fewer frames than an interval needs."""
    if count < bootstrap.FEWEST_FRAMES:
        raise InputError(
            f"{name} has {count} frames for the estimate, expected {bootstrap.FEWEST_FRAMES} or more, for "
            "an interval over fewer means nothing: name a larger labelled split"
        )


def of_network(
    config: EstimateConfig,
    data: Dataset,
    domains: Sequence[Domain],
    source: Scored,
    sets: Mapping[tuple[str, float], Sequence[Scored]],
    real: Sequence[Prediction] | None,
    judge: Judge,
    trained_on: Set[str],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What estimate.json says of a network, and the predicted mIoU of the resamples [R] by domain. Scores are
    fractions in [0, 1]; null where a class has none.

    domains: in the order of `config.to`. sets: every draw by prompt and strength. real: predictions of the
    target images. judge: the generator. trained_on: slugs and prompts of the domains whose frames of that
    generator the network was trained on. Raises: InputError where too few frames are in every set.
    """
    scored = source.metrics
    everywhere = [source, *(draw for draws in sets.values() for draw in draws)]
    ids = [frame.id for frame in data.frames if all(frame.id in one.confusion for one in everywhere)]
    require_frames(f"what was transferred of {data.name}", len(ids))
    names = scored["classes"]

    def matrices(draws: Sequence[Scored]) -> np.ndarray:
        """[F, D, C, C + 1]."""
        return np.stack([[draw.confusion[id] for draw in draws] for id in ids])

    def confidence(draws: Sequence[Scored]) -> float:
        return float(np.mean([draw.lines[id]["confidence"] for draw in draws for id in ids]))

    def seen(draws: Sequence[Scored]) -> label_free.Summary:
        return label_free.summarise([[draw.lines[id] for id in ids] for draw in draws])

    by_domain, spreads, plain = {}, {}, matrices([source])
    for name, domain in zip(config.to, domains, strict=True):
        own, target = sets[config.own_prompt, domain.strength], sets[name, domain.strength]
        found, spreads[domain.slug] = of_domain(
            (plain, matrices(own), matrices(target)),
            names,
            config.resamples,
            config.seed,
            common_noise=config.mode == "reference",
            images=TargetImages((seen([source]), seen(own), seen(target)), label_free.summarise([real]))
            if real
            else None,
        )
        by_domain[domain.slug] = {
            "name": name,
            "prompt": domain.prompt,
            "strength": domain.strength,
            **found,
            "trained_on": bool(trained_on & {domain.slug, domain.prompt}),
            "changed": float(np.mean([draw.record["changed"] for draw in target])),
            "confidence": {
                "source": confidence([source]),
                "own": confidence(own),
                "target": confidence(target),
            },
            "own_draws": [draw.record for draw in own],
            "target_draws": [draw.record for draw in target],
        }
    seeds = ", ".join(str(config.seed + i) for i in range(config.draws))
    how = (
        f"{len(ids)} frames transferred with {judge['model']}, seeds {seeds}; own domain "
        f"'{config.own_prompt}'; {bootstrap.LEVEL:.0%} intervals over frames, noise draws, what the transfer "
        f"costs, and an error of the generator of {bootstrap.GENERATOR:.0%} (classes "
        f"{bootstrap.GENERATOR_CLASS:.0%} and {100 * bootstrap.CLASS_FLOOR:.0f} points) as on the embedded "
        "town; classes without a labelled pixel are left out"
    )
    images = f"with {len(real)} unlabelled" if real else "without"
    result = {
        "protocol": f"estimate {images} target images from {scored['protocol']}; {how}",
        "images": images,
        "how": how,
        "setting": scored["setting"],
        "model": scored["model"],
        "generator": judge,
        "classes": names,
        "colours": scored["colours"],
        "frames": len(ids),
        "draws": config.draws,
        "resamples": config.resamples,
        "level": bootstrap.LEVEL,
        "fails_below": bootstrap.FAILS_BELOW,
        "own_prompt": config.own_prompt,
        "source": source.record,
        "domains": by_domain,
    }
    return result, spreads


def of_networks(
    results: Mapping[str, dict[str, Any]], predicted: Mapping[str, Mapping[str, np.ndarray]], seed: int
) -> dict[str, Any]:
    """What ranking.json says: every network's estimate, and their order in each domain. By network: what
    `of_network` returns."""
    first = next(iter(results.values()))
    return {
        "protocol": f"ranking {first['images']} target images from {first['setting']}; {first['how']}; "
        f"paired bootstrap over frames, and an error of the generator of {bootstrap.GENERATOR_NETWORK:.0%} "
        "that is each network's own",
        "level": bootstrap.LEVEL,
        "candidates": results,
        "domains": {
            slug: {
                "name": domain["name"],
                "ranking": ranking(
                    {
                        name: (result["domains"][slug], predicted[name][slug])
                        for name, result in results.items()
                    },
                    seed,
                ),
            }
            for slug, domain in first["domains"].items()
        },
    }


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
    scores = dict(zip(bootstrap.SCORES, _with_intervals(values, spread, names, known), strict=True))
    means, mean_spread = bootstrap.mean(values), bootstrap.mean(spread)
    predicted = scores["corrected"]
    drop = _between(means[0] - means[3], mean_spread[:, 0] - mean_spread[:, 3])
    deviation = bootstrap.GENERATOR * (predicted["miou"]["value"] or 0.0)
    found = {
        **scores,
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
    said of it. source: M of the source frames. values, spread: `bootstrap.scores` [4, C], [R, 4, C]."""

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
    moved = np.clip(miou + by, 0, 1)
    factor = np.divide(moved, miou, out=np.ones_like(miou), where=miou > 0)
    return np.minimum(1, predicted * factor[:, None])


def ranking(
    candidates: Mapping[str, tuple[Mapping[str, Any], np.ndarray]], seed: int
) -> list[dict[str, Any]]:
    """Networks in one domain, best first, by what `of_domain` says of each with the same seed.

    Returns: name, predicted mIoU with its interval, and the probability that it is the best, in [0, 1].
    """
    shares = bootstrap.best(np.stack([spread for _, spread in candidates.values()]), seed)
    lines = [
        {"candidate": name, "miou": found["corrected"]["miou"], "best": float(share)}
        for (name, (found, _)), share in zip(candidates.items(), shares, strict=True)
    ]
    return sorted(lines, key=lambda line: -(line["miou"]["value"] or 0.0))


def judge_name(result: Mapping[str, Any]) -> str:
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


def _widened(found: Interval, deviation: float, at_least: float = 0.0) -> Interval:
    """A value with its interval, and in it the generator's error."""
    value, low, high = found["value"], found["low"], found["high"]
    if value is None or low is None or high is None:
        return found
    low, high = bootstrap.widened(value, low, high, deviation)
    return {"value": value, "low": max(at_least, low), "high": min(1.0, high)}

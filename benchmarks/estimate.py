"""How good the estimate is: predicted against true mIoU on the town, and what else one could do.

    python benchmarks/zodi.py runs/zodi
    python benchmarks/estimate.py runs/zodi

Takes every network of the ZoDi benchmark but the oracles, and further runs that are named
(`benchmarks/town.py` names two of ICCLD and one of another encoder); a domain whose labels a run was trained
on is left out of its table. Writes OUT/<name of OUT>.md (tables of docs/results.md) and .json (every figure,
machine, versions, date). The clear validation split is transferred once per domain, strength and draw, for
all networks. Running it again continues.

The protocol is that of GenVal (Loiseau et al., "Reliability in Semantic Segmentation: Can We Use Synthetic
Data?", ECCV 2024, arXiv 2312.09231): many networks, their mIoU on generated and on real frames, and Pearson's
and Spearman's correlations of the two. Absolute errors, intervals and classes are ours.

What it is compared with. All but the last four rows are from the same frames, and need no target image:
    uncorrected      mIoU on the frames transferred to the target (u = 0 of `bootstrap`), as GenVal has it
    whole cost ...   the same with all of what the transfer costs taken off (u = 1); segshift takes off half
    additive         source + (transferred to the target - transferred to its own domain), in mIoU
    source score     the mIoU on the untouched validation frames: no drop at all
    confidence       source score * mean confidence on the target's transferred frames / mean confidence on
                     the source frames; a frame's confidence is the largest softmax probability, averaged over
                     its pixels
    regression       source score - (a + b * difference of those two confidences), a and b fitted by least
                     squares to the true drops of all other networks in all domains: it needs labelled target
                     frames, as no other row
    judged by ...    the estimate by another generator (--judge), of networks that know the first one, and of
                     those that do not
    target images    the estimate with the unlabelled training frames of the target, with half and with all of
                     the generator's error that they show taken off
    average confidence, difference of confidences, ATC, nuclear norm (`scoring.label_free`)
                     on the same target images, without any generator
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import combinations
from math import hypot, isnan
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import tyro
from scipy.stats import pearsonr, spearmanr
from settings import write_results

from segshift.config import EstimateConfig, EvaluateConfig, PredictConfig, TrainConfig
from segshift.recipes.runner import fill
from segshift.recipes.town import TOWN_DOMAINS, town_target
from segshift.runs import InputError, read_config, read_json, slug
from segshift.scoring.bootstrap import CLASS_FLOOR, FAILS_BELOW, LEVEL, shown, widened
from segshift.stages import evaluate, predict
from segshift.stages.estimate import estimate

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """What is compared."""

    town: tyro.conf.Positional[Path]
    """Folder of benchmarks/zodi.py."""
    runs: tuple[Path, ...] = ()
    """Further training runs on the same town."""
    out: Path | None = None
    """Folder to write; None takes TOWN/estimate."""
    rows: tuple[str, ...] = ()
    """Rows of the benchmark to take, by name; none takes all."""
    domains: tuple[str, ...] = TOWN_DOMAINS
    draws: int = 2
    """Noise draws per frame and domain."""
    checkpoint: Literal["best", "last"] = "last"
    """Which checkpoint of every run; the ZoDi benchmark's is the last."""
    judge: str | None = f"{HERE}/weather:build"
    """Another generator that judges the networks, `module:factory`; None takes none."""
    target_images: bool = True
    """Also estimate with the target's unlabelled training frames."""


@dataclass(frozen=True)
class Interval:
    """A true score in [0, 1], what was predicted for it, the ends of its interval, and its ends without an
    error of the generator.
    """

    true: float
    value: float
    low: float
    high: float
    narrow_low: float
    narrow_high: float

    def inside(self, generator: float, floor: float = 0.0) -> bool:
        """Whether the truth lies inside with another error of the generator: a share of the predicted score,
        and a floor.
        """
        low, high = widened(
            self.value, self.narrow_low, self.narrow_high, hypot(generator * self.value, floor)
        )
        return low <= self.true <= high


@dataclass(frozen=True)
class Pair:
    """One network in one domain; all scores are mIoU in [0, 1]."""

    network: str
    domain: str
    miou: Interval
    source: float
    own: float
    raw: float
    source_confidence: float
    confidence: float
    """Mean confidences on the source frames and on those transferred to the domain, in [0, 1]."""
    failing: tuple[str, ...]
    """Classes that were predicted to fail."""
    failed: tuple[str, ...]
    """Classes that did: true IoU below FAILS_BELOW of the source's."""
    trained_on: bool
    """Whether the network was trained on transferred frames of the domain."""
    classes: tuple[Interval, ...]
    """The classes' IoU."""
    judged: Interval | None = None
    """The mIoU as another generator judges it."""
    seen: Interval | None = None
    """The mIoU as it is predicted with target images."""
    label_free: dict[str, float] | None = None
    """What each label-free score of the target images predicts."""


def read(told: dict[str, Any]) -> Pair:
    """A pair as its JSON holds it."""
    parts = {name: told.get(name) and Interval(*told[name]) for name in ("miou", "judged", "seen")}
    return Pair(**told | parts | {"classes": tuple(Interval(*one) for one in told["classes"])})


def plain(pair: Pair) -> dict[str, Any]:
    """A pair as `read` takes it."""
    parts = {name: astuple(one) for name in ("miou", "judged", "seen") if (one := getattr(pair, name))}
    return vars(pair) | parts | {"classes": [astuple(one) for one in pair.classes]}


# ------------------------------------------------------------------------------------------ what is compared


def regression(pairs: Sequence[Pair]) -> list[float]:
    """source - (a + b * difference of confidences), a and b fitted to all networks but the pair's own.

    nan where no other network is there.
    """

    def difference(pair: Pair) -> float:
        return pair.source_confidence - pair.confidence

    predicted = []
    for pair in pairs:
        others = [p for p in pairs if p.network != pair.network]
        design = np.array([[1, difference(p)] for p in others]).reshape(-1, 2)
        drops = np.array([p.source - p.miou.true for p in others])
        a, b = np.linalg.lstsq(design, drops, rcond=None)[0] if others else (np.nan, np.nan)
        predicted.append(float(pair.source - a - b * difference(pair)))
    return predicted


ESTIMATES: dict[str, Callable[[Sequence[Pair]], list[float]]] = {
    "segshift estimate": lambda pairs: [p.miou.value for p in pairs],
    "uncorrected": lambda pairs: [p.raw for p in pairs],
    "whole cost taken off": lambda pairs: [2 * p.miou.value - p.raw for p in pairs],
    "additive": lambda pairs: [p.source + p.raw - p.own for p in pairs],
    "source score": lambda pairs: [p.source for p in pairs],
    "confidence": lambda pairs: [p.source * p.confidence / p.source_confidence for p in pairs],
    "regression (needs target labels)": regression,
}

BASELINES = ("average confidence", "difference of confidences", "ATC", "nuclear norm")
WITH_IMAGES: dict[str, Callable[[Sequence[Pair]], list[float]]] = {
    "segshift estimate, with target images": lambda pairs: [p.seen.value for p in pairs if p.seen],
    "the same, all of the error taken off": lambda pairs: [
        2 * p.seen.value - p.miou.value for p in pairs if p.seen
    ],
    **{
        f"{name} (target images)": lambda pairs, name=name: [
            p.label_free[name] for p in pairs if p.label_free
        ]
        for name in BASELINES
    },
}
"""Of pairs with target images."""


def accuracy(pairs: Sequence[Pair], predicted: Sequence[float]) -> dict[str, float | None]:
    """Mean absolute error and bias in points, and mean correlations (None where none is defined).

    pearson, over_networks: Pearson's and Spearman's, of networks within a domain, the mean over domains;
    over_domains: Spearman's of domains within a network, the mean over networks. Fewer than three, and equal
    predictions, have no correlation.
    """
    errors = [100 * (value - pair.miou.true) for value, pair in zip(predicted, pairs, strict=True)]
    return {
        "error": float(np.mean(np.abs(errors))),
        "bias": float(np.mean(errors)),
        "pearson": _correlation(pearsonr, pairs, predicted, lambda pair: pair.domain),
        "over_networks": _correlation(spearmanr, pairs, predicted, lambda pair: pair.domain),
        "over_domains": _correlation(spearmanr, pairs, predicted, lambda pair: pair.network),
    }


def _correlation(
    of: Callable[..., Any], pairs: Sequence[Pair], predicted: Sequence[float], group: Callable[[Pair], str]
) -> float | None:
    """The mean over groups."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for value, pair in zip(predicted, pairs, strict=True):
        groups.setdefault(group(pair), []).append((value, pair.miou.true))
    columns = [tuple(zip(*members, strict=True)) for members in groups.values() if len(members) > 2]
    found = [of(*both).statistic for both in columns if all(len(set(values)) > 1 for values in both)]
    return float(mean(found)) if found else None


def first_of_three(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Of all triples of networks in a domain, the share whose first by the estimate is truly the best; of all
    networks, and of those that were not trained on transferred frames of the domain."""

    def right(chosen: Sequence[Pair]) -> float | None:
        hits = [
            max(three, key=lambda p: p.miou.value) is max(three, key=lambda p: p.miou.true)
            for domain in dict.fromkeys(pair.domain for pair in chosen)
            for three in combinations([pair for pair in chosen if pair.domain == domain], 3)
        ]
        return mean(map(float, hits)) if hits else None

    return {"all": right(pairs), "not trained on": right([pair for pair in pairs if not pair.trained_on])}


def kind(pair: Pair) -> str:
    """What a network is called without its seed and the domain that it was trained for."""
    name = Path(pair.network).name
    return next((name.removesuffix(f"-{d}") for d in TOWN_DOMAINS if name.endswith(f"-{d}")), name)


def failures(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Of the classes named as failing, the share that fail; of those that fail, the share that were named."""
    named, failed, both = (
        sum(len(of(pair)) for pair in pairs)
        for of in (lambda p: p.failing, lambda p: p.failed, lambda p: set(p.failing) & set(p.failed))
    )
    return {"precision": both / named if named else None, "recall": both / failed if failed else None}


def coverage(
    of: Callable[[Pair], Sequence[Interval]], pairs: Sequence[Pair], floor: float = 0.0
) -> dict[str, float | None]:
    """Share of the true scores inside the interval (`all`), without an error of the generator, and with one
    that was fitted on the other domains, as the smallest whole percentage that holds LEVEL of theirs
    (`held_out`, and by domain): so no domain is judged by itself; None where there is no other. `fitted`:
    that percentage on all domains, which
    `bootstrap` has. `of`: the scores of a pair. `floor`: of the error, given."""

    def share(hits: Iterable[bool]) -> float:
        return mean(map(float, hits))

    def fitted(scores: Sequence[Interval]) -> float:
        return next(
            (g / 100 for g in range(100) if share(one.inside(g / 100, floor) for one in scores) >= LEVEL), 1.0
        )

    every = [one for pair in pairs for one in of(pair)]
    found: dict[str, float | None] = {
        "all": share(one.low <= one.true <= one.high for one in every),
        "without_generator": share(one.inside(0) for one in every),
        "fitted": fitted(every),
        "held_out": None,
    }
    held: dict[str, list[bool]] = {}
    for domain in dict.fromkeys(pair.domain for pair in pairs):
        others = [one for pair in pairs if pair.domain != domain for one in of(pair)]
        there = [one for pair in pairs if pair.domain == domain for one in of(pair)]
        if others and there:
            error = fitted(others)
            held[domain] = [one.inside(error, floor) for one in there]
            found["held_out"] = share(hit for hits in held.values() for hit in hits)
    return found | {domain: share(hits) for domain, hits in held.items()}


PREDICTED = {
    "classes predicted under 10 %": lambda value: value < 0.1,
    "10 to 40 %": lambda value: 0.1 <= value < 0.4,
    "over 40 %": lambda value: value >= 0.4,
}
"""Groups of classes by their predicted IoU, whose intervals should hold as well as those of all."""


def findings(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Everything that is told of the pairs, but the networks' own scores."""
    known = {"trained on transferred frames of the domain": True, "not trained on them": False}
    groups = {name: [pair for pair in pairs if pair.trained_on == value] for name, value in known.items()}
    judged = {name: [pair for pair in chosen if pair.judged] for name, chosen in groups.items()}
    seen = [pair for pair in pairs if pair.seen]
    kinds = {name: [pair for pair in pairs if kind(pair) == name] for name in dict.fromkeys(map(kind, pairs))}
    return {
        "results": {name: accuracy(pairs, of(pairs)) for name, of in ESTIMATES.items()},
        "with_target_images": {name: accuracy(seen, of(seen)) for name, of in WITH_IMAGES.items() if seen},
        "judged_by_another": {
            name: accuracy(chosen, [pair.judged.value for pair in chosen if pair.judged])
            for name, chosen in judged.items()
            if chosen
        },
        "kinds": {
            name: accuracy(chosen, [pair.miou.value for pair in chosen]) for name, chosen in kinds.items()
        },
        "first_of_three": first_of_three(pairs),
        "networks": {
            name: accuracy(chosen, [pair.miou.value for pair in chosen])
            for name, chosen in groups.items()
            if chosen
        },
        "failing_classes": failures(pairs),
        "coverage_of_90_percent_intervals": {
            "miou": coverage(lambda pair: (pair.miou,), pairs),
            **{
                f"miou, {name}": coverage(lambda pair, of=of: (getattr(pair, of),), chosen)
                for name, of, chosen in (
                    ("with target images", "seen", seen),
                    ("judged by another generator", "judged", [p for p in pairs if p.judged]),
                )
                if chosen
            },
            **{
                name: coverage(
                    lambda pair, of=of: [c for c in pair.classes if of(c.value)], pairs, CLASS_FLOOR
                )
                for name, of in {"classes": lambda value: True, **PREDICTED}.items()
                if any(of(c.value) for pair in pairs for c in pair.classes)
            },
        },
    }


# ------------------------------------------------------------------------------------------ tables


def predicted_table(pairs: Sequence[Pair], domains: Sequence[str]) -> str:
    """Markdown: predicted against true mIoU % per domain, of the first source-only network and the mean of
    all.
    """

    def row(name: str, cells: Sequence[str]) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    def cell(of: Callable[[Pair], float], chosen: Sequence[Pair], domain: str) -> str:
        return f"{100 * mean(of(p) for p in chosen if p.domain == domain):.1f}"

    networks = list(dict.fromkeys(pair.network for pair in pairs))
    lines = [row("mIoU %", domains), "|---|" + "---|" * len(domains)]
    plain = [name for name in networks if name.endswith("source-only")]
    if plain:
        [*one] = (p for p in pairs if p.network == plain[0])
        there = {p.domain: p for p in one}
        spans = [
            f"{100 * p.miou.value:.1f} ({100 * p.miou.low:.1f} to {100 * p.miou.high:.1f})"
            for p in map(there.get, domains)
        ]
        lines += [
            row("one network (source only): predicted", spans),
            row("one network (source only): true", [cell(lambda p: p.miou.true, one, d) for d in domains]),
        ]
    lines += [
        row(f"mean over networks: {name}", [cell(of, pairs, d) for d in domains])
        for name, of in (
            ("source", lambda p: p.source),
            ("predicted", lambda p: p.miou.value),
            ("true", lambda p: p.miou.true),
            ("error, absolute", lambda p: abs(p.miou.value - p.miou.true)),
        )
    ]
    return "\n".join(lines) + "\n"


def networks_table(pairs: Sequence[Pair]) -> str:
    """Markdown: predicted and true mIoU % by network, the mean over its seeds."""
    domains = list(dict.fromkeys(pair.domain for pair in pairs))
    lines = [f"| predicted / true | {' | '.join(domains)} |", "|---|" + "---|" * len(domains)]
    by_name: dict[str, dict[str, list[Pair]]] = {}
    for pair in pairs:
        by_name.setdefault(Path(pair.network).name, {}).setdefault(pair.domain, []).append(pair)
    for name, there in by_name.items():
        cells = ["-"] * len(domains)
        for i, d in enumerate(domains):
            if d in there:
                predicted, true = (mean(getattr(p.miou, key) for p in there[d]) for key in ("value", "true"))
                cells[i] = f"{100 * predicted:.1f} / {100 * true:.1f}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def kinds_table(kinds: dict[str, dict[str, float | None]]) -> str:
    """Markdown: error and bias by kind of network."""
    lines = ["| network | mean absolute error | bias |", "|---|---|---|"]
    lines += [f"| {name} | {r['error']:.1f} | {r['bias']:+.1f} |" for name, r in kinds.items()]
    return "\n".join(lines) + "\n"


def comparison_table(results: dict[str, dict[str, float | None]]) -> str:
    """Markdown: every way to estimate, with its errors in mIoU points and its correlations."""
    lines = [
        "| estimate | mean absolute error | bias | Pearson over networks | Spearman over networks | Spearman "
        "over domains |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        keys = ("pearson", "over_networks", "over_domains")
        ranks = ("-" if r[key] is None else f"{r[key]:.2f}" for key in keys)
        lines.append(f"| {name} | {r['error']:.1f} | {r['bias']:+.1f} | {' | '.join(ranks)} |")
    return "\n".join(lines) + "\n"


def coverage_table(covered: dict[str, dict[str, float | None]]) -> str:
    """Markdown: shares of true scores inside 90 % intervals, of the mIoU and of the classes' IoU, and the
    fitted error.
    """
    columns = next(iter(covered.values()))
    heads = {
        "all": "inside",
        "without_generator": "without the generator's error",
        "fitted": "error that holds 90 %",
        "held_out": "that error fitted on other domains",
    }
    lines = [
        "| truths in 90 % intervals | " + " | ".join(heads.get(name, name) for name in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    lines += [
        f"| {what} | " + " | ".join(map(percent, shares.values())) + " |" for what, shares in covered.items()
    ]
    return "\n".join(lines) + "\n"


def tables(told: dict[str, Any]) -> str:
    """Markdown of what is told of the pairs."""
    pairs = [read(pair) for pair in told["pairs"]]
    found = findings(pairs)
    by = told.get("judge")
    ways = (
        found["results"]
        | {f"segshift estimate, {name}": of for name, of in found["networks"].items()}
        | {f"judged by {by}, {name}": of for name, of in found["judged_by_another"].items()}
        | found["with_target_images"]
    )
    first = ", ".join(f"{name} {percent(share)}" for name, share in found["first_of_three"].items())
    named = ", ".join(f"{key} {percent(share)}" for key, share in found["failing_classes"].items())
    return "\n".join(
        (
            predicted_table(pairs, list(dict.fromkeys(pair.domain for pair in pairs))),
            comparison_table(ways),
            coverage_table(found["coverage_of_90_percent_intervals"]),
            f"Failing classes: {named}. First of three networks truly the best: {first}.\n",
            kinds_table(found["kinds"]),
            networks_table(pairs),
        )
    )


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


# ------------------------------------------------------------------------------------------ running it


def networks(b: Benchmark) -> dict[str, Path]:
    """Every training run but the oracles, by name. Raises: InputError when there is none."""
    found = {
        str(path.parent.relative_to(b.town)): path.parent
        for path in sorted(b.town.glob("seed-*/*/config.json"))
    }
    rows = {slug(row) for row in b.rows}
    found = {
        name: run
        for name, run in found.items()
        if (run.name in rows if rows else not run.name.startswith("oracle"))
    }
    found |= {str(run): run for run in b.runs}
    if not found:
        raise InputError(
            f"no run {b.town}/seed-*/<row>: run benchmarks/zodi.py {b.town} first, or name runs with --runs"
        )
    return found


def truth(b: Benchmark, run: Path, domain: str) -> dict[str, Any]:
    """metrics.json of a run on the target's validation frames, predicted here where the run has none yet."""
    evaluation, predictions = (run / stage / b.checkpoint / domain for stage in ("evaluation", "predictions"))
    if not (evaluation / "metrics.json").exists():
        data = fill(town_target(domain), {"out": str(b.town)})
        predict.predict(PredictConfig(run=str(run), data=data, checkpoint=b.checkpoint), predictions)
        evaluate.evaluate(EvaluateConfig(predictions=str(predictions), data=data), evaluation)
    return read_json(evaluation / "metrics.json")


def knows(run: Path, domain: str) -> bool:
    """Whether a run was trained on labels of the domain, and so has no say in how well one can do without."""
    config = read_config(run / "config.json", TrainConfig)
    layout, _, subset = town_target(domain).split(":")
    sources = [source.split(":") for source in (config.source, *config.more_sources)]
    return any(s[0] == layout and s[-1].rpartition("/")[0] == subset.rpartition("/")[0] for s in sources)


def pair(
    network: str,
    domain: str,
    estimated: dict[str, Any],
    true: dict[str, Any],
    judged: dict[str, Any] | None = None,
    seen: dict[str, Any] | None = None,
) -> Pair:
    """What estimate.json says of a domain, beside the truth's metrics.json; the truth over the classes that
    the labels of both show. judged, seen: what it says by another generator, and with target images.
    """
    source = {name: told["value"] for name, told in estimated["source"]["iou"].items()}
    labelled = dict(
        zip(true["iou"], shown(np.array(true["confusion"])).tolist(), strict=True)
    )  # as the estimate leaves them out
    there = {
        name: value for name, value in labelled.items() if not isnan(value) and source.get(name) is not None
    }
    failed = (name for name, value in there.items() if source[name] and value < FAILS_BELOW * source[name])
    predicted, narrow, confidence = (
        estimated["corrected"],
        estimated["without_generator"],
        estimated["confidence"],
    )

    def compared(true: float, told: dict[str, float], narrow: dict[str, float]) -> Interval:
        return Interval(true, told["value"], told["low"], told["high"], narrow["low"], narrow["high"])

    classes = (
        compared(there[name], told, narrow["iou"][name])
        for name, told in predicted["iou"].items()
        if told["low"] is not None and name in there
    )
    miou = mean(there.values())
    others = {
        name: compared(miou, told["corrected"]["miou"], told["without_generator"]["miou"])
        for name, told in (("judged", judged), ("seen", seen))
        if told
    }
    return Pair(
        network,
        domain,
        compared(miou, predicted["miou"], narrow["miou"]),
        *(estimated[name]["miou"]["value"] for name in ("source", "own", "raw")),
        confidence["source"],
        confidence["target"],
        tuple(estimated["failing"]),
        tuple(failed),
        estimated["trained_on"],
        tuple(classes),
        **others,
        label_free=seen and seen["target_images"]["baselines"],
    )


def estimates(b: Benchmark, name: str, run: Path, out: Path) -> list[dict[str, Any]]:
    """estimate.json of a run: as it is, by another judge, and with target images; the last two by domain, and
    empty where they are not asked for."""
    folder = out / "networks" / slug(name)
    config = EstimateConfig(
        run=(str(run),),
        source=fill(town_target("clear"), {"out": str(b.town)}),
        to=b.domains,
        draws=b.draws,
        checkpoint=b.checkpoint,
        transferred=str(out / "transferred"),
    )
    seen, judged = {}, {}
    if b.target_images:
        for d in b.domains:
            images = fill(town_target(d, "train"), {"out": str(b.town)})
            one = estimate(replace(config, to=(d,), target_images=images), folder / "own")
            seen |= read_json(one / "estimate.json")["domains"]
    if b.judge:
        other = replace(config, generator=b.judge, transferred=str(out / "transferred-by-the-judge"))
        judged = read_json(estimate(other, folder / "judged") / "estimate.json")["domains"]
    return [read_json(estimate(config, folder / "own") / "estimate.json"), judged, seen]


def main(b: Benchmark) -> None:
    out = b.out or b.town / "estimate"
    pairs, protocols = [], set()
    for name, run in networks(b).items():
        estimated, judged, seen = estimates(b, name, run, out)
        protocols.add(estimated["protocol"])
        for d in b.domains:
            true = truth(b, run, d)
            assert true["model"]["weights"] == estimated["model"]["weights"], (
                f"{run} was trained on since it was evaluated"
            )
            if not knows(run, d):
                found = estimated["domains"][d]
                pairs.append(pair(name, d, found, true, judged.get(d), seen.get(d)))
    told = findings(pairs) | {
        "pairs": [plain(p) for p in pairs],
        "judge": b.judge and b.judge.rpartition("/")[2],
        "draws": b.draws,
        "checkpoint": b.checkpoint,
        "protocol": [
            "embedded town; truth from the labelled validation frames of each target",
            *sorted(protocols),
        ],
    }
    write_results(out, out.name, tables(told), told, "scipy")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

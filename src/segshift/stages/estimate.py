"""Estimate a network's score in a domain of which there is no image (ours).

ZoDi's authors note that generated images "enable to estimate the model's performance without target images by
inspecting" them (arXiv 2403.13652). Here that is a number: labelled source frames are transferred to the
target and keep their labels, so the network can be scored on them; what the transfer itself costs is measured
on the same frames transferred to their own domain with the same noise strength, and half of it is taken off
(`bootstrap.SHARE`).

    OUT/config.json                                     the configuration of the last call
    OUT/estimate.json                                   everything that was found
    OUT/<set>/predictions, OUT/<set>/evaluation         the network on a set of frames: source, or a
                                                        transferred one
    OUT/transferred/<set>                               a transferred set, <domain>-<strength>-<seed>;
                                                        `transferred` puts them elsewhere, for several
                                                        estimates to share

It runs the other stages, each of which skips what is finished. A folder may be asked for other domains, draws
or strengths later: each has its own `<set>`, and what is there is used again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from segshift import execution, generators, outputs, predictor, records, runs
from segshift.config import EstimateConfig, EvaluateConfig, PredictConfig, TrainConfig, TransferConfig
from segshift.data import frames
from segshift.data.frames import Dataset
from segshift.engine.worker import targets
from segshift.generators import Domain
from segshift.predictor import Predictor
from segshift.runs import InputError
from segshift.scoring import bootstrap
from segshift.scoring import estimate as statistics
from segshift.stages import evaluate, predict, transfer

_log = logging.getLogger(__name__)

_FREE = ("to", "own_prompt", "strength", "draws", "seed", "resamples", "batch_size", "device")
"""Fields that may differ when a folder is used again: they name other sets, or change none."""


@dataclass(frozen=True)
class Scored:
    """The network on one set of frames."""

    confusion: dict[str, np.ndarray]
    """[C, C + 1] int64 by frame id."""
    confidence: dict[str, float]
    """The network's own, in [0, 1], by frame id."""
    told: dict[str, Any]
    """Where the set lies and what made it, for estimate.json."""


def estimate(config: EstimateConfig, out: str | Path) -> Path:
    """Write OUT/estimate.json and print the table; returns `out`, which may lie in the run's own folder.

    Raises: InputError on a source without labels or with fewer than 10 frames, an empty prompt, a network of
    other classes than the source's, and whatever transfer, predict and evaluate refuse. The network is tried
    on the source frames first, so a wrong one costs no transfer.
    """
    execution.one_process("estimate", execution.STAGES_FIRST)
    data = frames.load(config.source)
    goals = _check(config, data)
    lasting = replace(config, diffusion=replace(config.diffusion, device="auto"))
    output = outputs.open_output(
        out, "estimate", lasting, free=_FREE, begun=lambda out: (out / "source" / "predictions").exists()
    )
    out = output.path
    _warn_of_training_frames(Path(config.run), data)
    config = replace(config, size=_size(config, data))
    network = predictor.of(_prediction(config, config.source), data)  # a wrong one costs no transfer
    output.claim()
    source = _score(config, network, config.source, out / "source", {})

    seeds = range(config.seed, config.seed + config.draws)
    tree = Path(config.transferred) if config.transferred else out / "transferred"
    sets: dict[tuple[str, float], list[Scored]] = {}
    for name, goal in zip(config.to, goals, strict=True):
        for prompt in (name, config.own_prompt):  # the own domain once for each strength, and kept
            if (prompt, goal.strength) not in sets:
                sets[prompt, goal.strength] = [
                    _transferred(config, network, data, prompt, goal.strength, s, tree, out) for s in seeds
                ]
    scored = runs.read_json(out / "source" / "evaluation" / "metrics.json", records.METRICS)
    result = _result(config, data, goals, source, sets, scored)
    lost = {
        f["id"]: f
        for drawn in sets.values()
        for one in drawn
        for f in runs.failures(Path(one.told["transferred"]))
    }
    runs.write_failures(out, lost.values())  # and the estimate is of the other frames
    runs.write_json(out / "estimate.json", result)
    _print(result)
    return out


def _check(config: EstimateConfig, data: Dataset) -> tuple[Domain, ...]:
    """The target domains, in the order of `to`. Raises: InputError before anything is computed."""
    frames.require_labels(data)
    _require_frames(data.name, len(data.frames))
    if not config.own_prompt.strip():
        raise InputError(
            'the prompt of the own domain is empty: describe the source, as in --own-prompt "driving in '
            'daylight"'
        )
    plain = _transfer_config(config)
    strengths = generators.strengths(plain)
    goals = targets(replace(plain, to=config.to), strengths)
    own = targets(replace(plain, to=(config.own_prompt,)), strengths)[0]
    for name, goal in zip(config.to, goals, strict=True):
        if goal.slug == own.slug and name != config.own_prompt:
            raise InputError(
                f"'{name}' is the own domain, written otherwise: name it as --own-prompt does, "
                f"'{config.own_prompt}'"
            )
    return goals


def _size(config: EstimateConfig, data: Dataset) -> tuple[int, int] | None:
    """What the network sees, transferred frames too, which are smaller than their sources; None for a run's
    own size.

    Raises: InputError for a weights file where the source frames have several sizes.
    """
    if config.size is not None or Path(config.run).is_dir():
        return config.size
    sizes = {frames.image_size(frame.image) for frame in data.frames}
    if len(sizes) > 1:
        raise InputError(
            f"{data.name} has frames of {len(sizes)} sizes: give the one that the network sees, as in "
            "--size 512 1024"
        )
    return sizes.pop()


def _require_frames(name: str, count: int) -> None:
    if count < bootstrap.FEWEST_FRAMES:
        raise InputError(
            f"{name} has {count} frames for the estimate, expected {bootstrap.FEWEST_FRAMES} or more, of "
            "fewer the bootstrap's interval means nothing: name a larger labelled split"
        )


def _transfer_config(config: EstimateConfig) -> TransferConfig:
    """What every transfer of the estimate has in common. Raises: InputError."""
    return TransferConfig(
        source=config.source,
        strength=config.strength,
        mode=config.mode,
        control=config.control,
        steps=config.steps,
        guidance=config.guidance,
        short_side=config.short_side,
        batch_size=config.batch_size,
        generator=config.generator,
        ungated=config.generator == "editor",  # it is the network that is judged
        diffusion=config.diffusion,
    )


def _transferred(
    config: EstimateConfig,
    network: Predictor,
    data: Dataset,
    prompt: str,
    strength: float,
    seed: int,
    tree: Path,
    out: Path,
) -> Scored:
    """Transfer the source frames to one domain with one seed, or find that done, and score the network on
    them.

    Raises: InputError where no frame could be transferred.
    """
    told = replace(_transfer_config(config), to=(prompt,), strength=strength, seed=seed)
    [goal] = targets(told)
    name = f"{goal.slug}-{strength:g}-{seed}"
    folder = transfer.transfer(told, tree / name) / goal.slug
    lines = runs.read_lines(folder / "manifest.jsonl", records.Transferred)
    if not lines:
        raise InputError(
            f"no frame of {data.name} could be transferred to '{prompt}'; the first: "
            f"{runs.failures(tree / name)[0]['error']}"
        )
    digest = hashlib.sha256(
        "".join(f"{line['id']} {line['sha256']}\n" for line in lines).encode()
    ).hexdigest()
    what = {
        "seed": seed,
        "transferred": str(folder),
        "model": lines[0]["model"],
        "weights": lines[0]["weights"],
        "images_sha256": digest,
    }
    made = ":".join(filter(None, (data.layout, str(folder), data.subset)))
    return _score(config, network, made, out / name, what)


def _prediction(config: EstimateConfig, data: str) -> PredictConfig:
    return PredictConfig(
        run=config.run,
        data=data,
        checkpoint=config.checkpoint,
        network=config.network,
        size=config.size,
        batch_size=config.batch_size,
        device=config.device,
    )


def _score(
    config: EstimateConfig, network: Predictor, data: str, folder: Path, told: dict[str, Any]
) -> Scored:
    """Predict and evaluate one set of frames. Raises: InputError, also when a frame cannot be read."""
    predictions, evaluation = folder / "predictions", folder / "evaluation"
    predict.predict(_prediction(config, data), predictions, network)
    if failed := runs.failures(predictions):
        raise InputError(failed[0]["error"])
    classes = config.classes
    if classes is None and Path(config.run).is_dir():
        classes = runs.read_config(Path(config.run) / "config.json", TrainConfig).classes
    evaluate.evaluate(EvaluateConfig(predictions=str(predictions), data=data, classes=classes), evaluation)
    scored = runs.read_json(evaluation / "metrics.json", records.METRICS)
    confusion = records.read_matrices(evaluation, scored)
    predicted = runs.read_lines(predictions / "predictions.jsonl", records.Prediction)
    confidence = {line["id"]: line["confidence"] for line in predicted}
    return Scored(
        confusion, confidence, told | {"predictions": str(predictions), "evaluation": str(evaluation)}
    )


def _result(
    config: EstimateConfig,
    data: Dataset,
    goals: Sequence[Domain],
    source: Scored,
    sets: dict[tuple[str, float], list[Scored]],
    scored: records.Metrics,
) -> dict[str, Any]:
    """estimate.json. Scores are fractions in [0, 1]; null where a class has none."""
    everywhere = [source, *(draw for draws in sets.values() for draw in draws)]
    ids = [frame.id for frame in data.frames if all(frame.id in one.confusion for one in everywhere)]
    _require_frames(f"what was transferred of {data.name}", len(ids))
    names, trained_on = scored["classes"], _trained_on(Path(config.run))

    def matrices(draws: list[Scored]) -> np.ndarray:
        """[F, D, C, C + 1]."""
        return np.stack([[draw.confusion[id] for draw in draws] for id in ids])

    def confidence(draws: list[Scored]) -> float:
        return float(np.mean([draw.confidence[id] for draw in draws for id in ids]))

    domains, plain = {}, matrices([source])
    for name, goal in zip(config.to, goals, strict=True):
        own, target = sets[config.own_prompt, goal.strength], sets[name, goal.strength]
        domains[goal.slug] = {
            "name": name,
            "prompt": goal.prompt,
            "strength": goal.strength,
            **statistics.of_domain(
                (plain, matrices(own), matrices(target)),
                names,
                config.resamples,
                config.seed,
                common_noise=config.mode == "reference",
            ),
            "trained_on": bool(trained_on & {goal.slug, goal.prompt}),
            "confidence": {
                "source": confidence([source]),
                "own": confidence(own),
                "target": confidence(target),
            },
            "own_draws": [draw.told for draw in own],
            "target_draws": [draw.told for draw in target],
        }
    seeds = ", ".join(str(config.seed + i) for i in range(config.draws))
    model = everywhere[-1].told["model"]
    return {
        "protocol": f"estimate without target images from {scored['protocol']}; {len(ids)} frames "
        f"transferred with {model}, "
        f"seeds {seeds}; own domain '{config.own_prompt}'; {bootstrap.LEVEL:.0%} intervals over frames, "
        f"noise draws, what the transfer costs, and an error of the generator of {bootstrap.GENERATOR:.0%} "
        f"(classes {bootstrap.GENERATOR_CLASS:.0%} and {100 * bootstrap.CLASS_FLOOR:.0f} points) as on the "
        "embedded town; classes without a labelled pixel are left out",
        "setting": scored["setting"],
        "model": scored["model"],
        "classes": names,
        "colours": scored["colours"],
        "frames": len(ids),
        "draws": config.draws,
        "resamples": config.resamples,
        "level": bootstrap.LEVEL,
        "fails_below": bootstrap.FAILS_BELOW,
        "own_prompt": config.own_prompt,
        "source": source.told,
        "domains": domains,
    }


def _trainings(run: Path) -> list[TrainConfig]:
    """Of a run and of those that it started from; none for a file of weights. Raises: InputError where they
    go round in a circle."""
    found: dict[Path, TrainConfig] = {}
    while run.is_dir():
        if run.resolve() in found:
            raise InputError(
                f"{run}/config.json names as from_run a run that started from it: restore that file"
            )
        config = found[run.resolve()] = runs.read_config(run / "config.json", TrainConfig)
        if config.from_run is None:
            break
        run = Path(config.from_run)
    return list(found.values())


def _trained_on(run: Path) -> set[str]:
    """Domains whose transferred frames a network was trained on, by the names of their folders and by the
    prompts in their manifests; as far as these are still there."""
    found = set()
    for config in _trainings(run):
        for name in (config.source, *config.more_sources, *config.transferred):
            tree = frames.split(name)[1]
            lines = runs.read_lines(tree / "manifest.jsonl", records.Line)
            if lines or name in config.transferred:
                found |= {tree.name, *(line["prompt"] for line in lines[:1] if "prompt" in line)}
    return found


def _warn_of_training_frames(run: Path, data: Dataset) -> None:
    """A score on frames that were trained on is none."""
    seen: set[Path] = set()
    for name in dict.fromkeys(
        name for config in _trainings(run) for name in (config.source, *config.more_sources)
    ):
        try:
            seen |= frames.images_of((frames.load(name),))
        except InputError:
            continue  # not there any more
    if known := len(frames.images_of((data,)) & seen):
        _log.warning(
            "%d of %d frames of %s were trained on by this network: its scores there, and what follows "
            "from them, are far too high; name a split that no training has seen",
            known,
            len(data.frames),
            data.name,
        )


def _print(result: dict[str, Any]) -> None:
    def percent(told: dict[str, float | None], sign: str = "") -> str:
        if told["value"] is None:
            return "-"
        value = f"{100 * told['value']:{sign}.1f}"
        return (
            value
            if told["low"] is None or told["high"] is None
            else f"{value} ({100 * told['low']:{sign}.1f} to {100 * told['high']:{sign}.1f})"
        )

    domains = result["domains"].values()
    detail = Table(
        "class",
        "source",
        *(domain["name"] for domain in domains),
        title=f"predicted IoU %, with {result['level']:.0%} intervals",
    )
    for name in result["classes"]:
        on_source = next(iter(domains))["source"]["iou"][name]
        if on_source["value"] is not None:
            detail.add_row(
                name, percent(on_source), *(percent(domain["corrected"]["iou"][name]) for domain in domains)
            )
    Console().print(detail)
    view = Table(title=f"predicted mIoU %, with {result['level']:.0%} intervals", caption=result["protocol"])
    for heading in (
        "domain",
        "predicted",
        "drop from source",
        "transfer alone costs",
        "uncorrected",
        "fail, worst first",
    ):
        view.add_column(heading)
    for domain in domains:
        loss = domain["transfer_cost"]
        view.add_row(
            domain["name"],
            percent(domain["corrected"]["miou"]),
            percent(domain["drop"]),
            percent(loss),
            percent(domain["raw"]["miou"]),
            ", ".join(domain["failing"]) or "none",
        )
        if domain["trained_on"]:
            _log.warning(
                "%s: this network was trained on transferred frames of the domain, and is examined on more "
                "of them: on the embedded town such estimates were %.0f points too high",
                domain["name"],
                100 * bootstrap.TRAINED_ON,
            )
        source = domain["source"]["miou"]["value"]
        if source and loss["value"] > source / 2:
            _log.warning(
                "%s: the transfer alone costs %.1f of %.1f points: do not rely on this estimate, use a "
                "better generator or a lower strength",
                domain["name"],
                100 * loss["value"],
                100 * source,
            )
    Console().print(view)

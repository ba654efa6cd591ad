"""Estimate a network's score in a domain without labels, and mostly without an image (ours).

ZoDi's authors note that generated images "enable to estimate the model's performance without target images by
inspecting" them (arXiv 2403.13652). Here that is a number: labelled source frames are transferred to the
target and keep their labels, so the network can be scored on them; what the transfer itself costs is measured
on the same frames transferred to their own domain with the same noise strength, and half of it is taken off
(`bootstrap.SHARE`).

    OUT/config.json                                     the configuration of the last call
    OUT/estimate.json                                   everything that was found of one network
    OUT/<set>/predictions, OUT/<set>/evaluation         the network on a set of frames: source, or a
                                                        transferred one
    OUT/ranking.json                                    of several networks: the estimate of each, and their
                                                        order in every domain
    OUT/candidates/<network>/<set>                      of several networks, in place of OUT/<set>
    OUT/target-images-<name>                            the network's predictions of target images
    OUT/transferred/<set>                               a transferred set, <domain>-<strength>-<seed>;
                                                        `transferred` puts them elsewhere, for several
                                                        estimates to share

It runs the other stages, each of which skips what is finished. A folder may be asked for other domains, draws
or strengths later: each has its own `<set>`, and what is there is used again.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from segshift import execution, generators, outputs, predictor, records, runs
from segshift.config import (
    EstimateConfig,
    EvaluateConfig,
    NetworkConfig,
    PredictConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.data import frames, pictures
from segshift.data.frames import Dataset
from segshift.engine.worker import targets
from segshift.generators import Domain
from segshift.generators.base import resize
from segshift.predictor import Predictor
from segshift.runs import InputError
from segshift.scoring import bootstrap, label_free
from segshift.scoring import estimate as statistics
from segshift.settings import Data
from segshift.stages import evaluate, predict, transfer

_log = logging.getLogger(__name__)

UNCHANGED = 0.5
"""Grey levels on average below which a generator has changed nothing."""
_FREE = (
    "to",
    "target_images",
    "own_prompt",
    "strength",
    "draws",
    "seed",
    "resamples",
    "batch_size",
    "device",
)
"""Fields that may differ when a folder is used again: they name other sets, or change none."""


@dataclass(frozen=True)
class Candidate:
    """A network that is judged."""

    name: str
    run: str
    network: NetworkConfig | None
    """Of a file of weights."""
    size: tuple[int, int] | None
    """What it sees; None for a run's own size."""
    classes: Literal[13, 16, 19] | None
    """The class set that it is scored on."""
    folder: Path
    predictor: Predictor


@dataclass(frozen=True)
class Scored:
    """A network on one set of frames."""

    confusion: dict[str, np.ndarray]
    """[C, C + 1] int64 by frame id."""
    lines: dict[str, records.Prediction]
    """Of predictions.jsonl, by frame id."""
    told: dict[str, Any]
    """Where the set lies and what made it, for estimate.json."""


@dataclass(frozen=True)
class Moved:
    """The source frames, transferred to a domain with one seed."""

    name: str
    data: str
    """layout:path[:subset]."""
    tree: Path
    told: dict[str, Any]
    """What made them, for estimate.json."""


def estimate(config: EstimateConfig, out: str | Path) -> Path:
    """Write OUT/estimate.json, of several networks OUT/ranking.json, and print the table; returns `out`,
    which may lie in a run's own folder.

    Raises: InputError on a source without labels or with fewer than 10 frames, an empty prompt, a network of
    other classes than the source's or the other networks', and whatever transfer, predict and evaluate
    refuse. The networks are tried on the source frames first, so a wrong one costs no transfer.
    """
    execution.one_process("estimate", execution.STAGES_FIRST)
    data = frames.load(config.source)
    goals = _check(config, data)
    lasting = replace(config, diffusion=replace(config.diffusion, device="auto", offload="none"))
    output = outputs.open_output(out, "estimate", lasting, free=_FREE, begun=_begun)
    out = output.path
    candidates = _candidates(config, data, out)
    images = _target_images(config, data)
    output.claim()
    sources = {one.name: _score(config, one, config.source, "source", {}) for one in candidates}
    reals = {one.name: _real(config, one, images, sources[one.name]) for one in candidates} if images else {}

    tree = Path(config.transferred) if config.transferred else out / "transferred"
    sets: dict[tuple[str, float], list[Moved]] = {}
    for name, goal in zip(config.to, goals, strict=True):
        for prompt in (name, config.own_prompt):  # the own domain once for each strength, and kept
            if (prompt, goal.strength) not in sets:
                sets[prompt, goal.strength] = [
                    _transferred(config, data, prompt, goal.strength, config.seed + i, tree)
                    for i in range(config.draws)
                ]
    results: dict[str, dict[str, Any]] = {}
    predicted: dict[str, dict[str, np.ndarray]] = {}
    for one in candidates:
        scored = {
            key: [_score(config, one, draw.data, draw.name, draw.told) for draw in draws]
            for key, draws in sets.items()
        }
        results[one.name], predicted[one.name] = _result(
            config, one, data, goals, sources[one.name], scored, reals.get(one.name)
        )
    lost = {f["id"]: f for draws in sets.values() for draw in draws for f in runs.failures(draw.tree)}
    runs.write_failures(out, lost.values())  # and the estimate is of the other frames
    if len(candidates) == 1:
        [result] = results.values()
        runs.write_json(out / "estimate.json", result)
        _print(result, "this network")
        return out
    for name, result in results.items():
        _print_warnings(result, name)
    ranked = _ranking(config, results, predicted)
    runs.write_json(out / "ranking.json", ranked)
    _print_ranking(ranked)
    return out


def _begun(out: Path) -> bool:
    """Whether there is a result, or a transferred frame: predictions of the source are used again."""
    results = any((out / name).exists() for name in ("estimate.json", "ranking.json"))
    return results or any(transfer.begun(path) for path in (out / "transferred").glob("*"))


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


def _candidates(config: EstimateConfig, data: Dataset, out: Path) -> list[Candidate]:
    """The networks, ready to predict. Raises: InputError for one that is given twice, and for networks that
    are not scored on the same classes."""
    if twice := [run for run, count in Counter(config.run).items() if count > 1]:
        raise InputError(f"--run names {twice[0]} twice: name each network once")
    foreign = [run for run in config.run if Path(run).is_file()] or config.run  # a run has its own network
    names = runs.short_names(config.run)
    found = []
    for i, (run, name) in enumerate(zip(config.run, names, strict=True)):
        trained = Path(run).is_dir()
        classes = config.classes
        if classes is None and trained:
            classes = runs.read_config(Path(run) / "config.json", TrainConfig).classes
        network = config.network if run in foreign else None
        size = config.size if config.size is not None or trained else _size(data)
        several = len(names) > 1
        _warn_of_training_frames(Path(run), data, name if several else "this network")
        predicting = _prediction(config, run, network, size, config.source)
        found.append(
            Candidate(
                name,
                run,
                network,
                size,
                classes,
                out / "candidates" / f"{i + 1}-{runs.slug(name)}" if several else out,
                predictor.of(predicting, data),  # a wrong one costs no transfer
            )
        )
    first = found[0]
    for other in found[1:]:
        if other.classes != first.classes:
            raise InputError(
                f"{first.run} is scored on {_classes(first)} and {other.run} on {_classes(other)}, whose "
                "scores cannot be ranked: add --classes with one set for all"
            )
    return found


def _classes(one: Candidate) -> str:
    return "every class of the data set" if one.classes is None else f"{one.classes} classes"


def _target_images(config: EstimateConfig, data: Dataset) -> Dataset | None:
    """The unlabelled images of the target, None where none are named.

    Raises: InputError for fewer than `label_free.FEWEST`, for several domains, for a video, and for images
    that are labelled source frames in truth, pixel for pixel.
    """
    if config.target_images is None:
        return None
    if len(config.to) > 1:
        raise InputError(
            f"--target-images are of one domain, and --to names {len(config.to)}: estimate the domains one "
            "after the other into the same folder, which transfers nothing again"
        )
    if isinstance(config.target_images, Data):
        found, video = frames.load(config.target_images), None
    else:
        found, video = pictures.find(config.target_images, data.space)
    if video is not None:
        raise InputError(
            f"{config.target_images} is a video, whose frames are nearly alike: give pictures of different "
            "places as --target-images"
        )
    if found.space.names != data.space.names:
        raise InputError(
            f"{found.name} has the classes of '{found.space.name}', {data.name} of '{data.space.name}': "
            "give the folder of its pictures as --target-images, for labels are not read"
        )
    if len(found.frames) < label_free.FEWEST:
        raise InputError(
            f"{config.target_images} has {len(found.frames)} target images, expected {label_free.FEWEST} or "
            "more, of fewer the label-free scores mean nothing: add some, or leave --target-images out"
        )
    with ThreadPoolExecutor(runs.cpus()) as pool:
        labelled = set(pool.map(_pixels, (frame.image for frame in data.frames)))
        same = sum(pool.map(lambda frame: _pixels(frame.image) in labelled, found.frames))
    if same:
        raise InputError(
            f"{same} of the {len(found.frames)} images of {config.target_images} are labelled frames of "
            f"{data.name}: name images of the target domain as --target-images"
        )
    return found


def _pixels(image: Path) -> bytes:
    """A hash of a picture's pixels, whatever its file's format. Raises: InputError."""
    pixels = frames.read_image(image)
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()


def _real(
    config: EstimateConfig, one: Candidate, images: Dataset, source: Scored
) -> list[records.Prediction]:
    """A network's predictions of the target images. Raises: InputError where it is sure of every pixel, or
    an image cannot be read."""
    if np.mean([line["confidence"] for line in source.lines.values()]) > label_free.SURE:
        raise InputError(
            f"{one.run} is sure of every pixel, as a black box that returns train ids, so label-free scores "
            "say nothing of it: leave --target-images out, or return scores"
        )
    out = one.folder / f"target-images-{runs.slug(images.name)}"
    predicting = _prediction(config, one.run, one.network, one.size, images.name)
    if images.layout == "pictures":
        predicting = replace(predicting, data=None, images=images.name)
    predict.predict(predicting, out, one.predictor)
    if failed := runs.failures(out):
        raise InputError(failed[0]["error"])
    return list(_lines(out).values())


def _size(data: Dataset) -> tuple[int, int]:
    """What a network from elsewhere sees, transferred frames too, which are smaller than their sources.

    Raises: InputError where the source frames have several sizes.
    """
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
    config: EstimateConfig, data: Dataset, prompt: str, strength: float, seed: int, tree: Path
) -> Moved:
    """Transfer the source frames to one domain with one seed, or find that done.

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
    return Moved(name, made, folder, what | {"changed": _changed(data, frames.load(made))})


def _changed(data: Dataset, made: Dataset) -> float:
    """By how many grey levels transferred frames differ from their sources, the mean over some of them."""
    differences = []
    for before, after in frames.pair(data, made)[: bootstrap.FEWEST_FRAMES]:
        picture = frames.read_image(after.image)
        source = frames.read_image(before.image)
        if source.shape != picture.shape:
            source = resize(source, picture.shape[:2])
        differences.append(np.abs(picture.astype(np.int16) - source).mean())
    return round(float(np.mean(differences)), 3)


def _prediction(
    config: EstimateConfig, run: str, network: NetworkConfig | None, size: tuple[int, int] | None, data: str
) -> PredictConfig:
    return PredictConfig(
        run=run,
        data=data,
        checkpoint=config.checkpoint,
        network=network,
        size=size,
        batch_size=config.batch_size,
        device=config.device,
    )


def _score(config: EstimateConfig, one: Candidate, data: str, name: str, told: dict[str, Any]) -> Scored:
    """Predict and evaluate one set of frames. Raises: InputError, also when a frame cannot be read."""
    predictions, evaluation = one.folder / name / "predictions", one.folder / name / "evaluation"
    predict.predict(_prediction(config, one.run, one.network, one.size, data), predictions, one.predictor)
    if failed := runs.failures(predictions):
        raise InputError(failed[0]["error"])
    evaluate.evaluate(
        EvaluateConfig(predictions=str(predictions), data=data, classes=one.classes), evaluation
    )
    scored = runs.read_json(evaluation / "metrics.json", records.METRICS)
    confusion = records.read_matrices(evaluation, scored)
    lines = _lines(predictions)
    return Scored(confusion, lines, told | {"predictions": str(predictions), "evaluation": str(evaluation)})


def _lines(predictions: Path) -> dict[str, records.Prediction]:
    found = runs.read_lines(predictions / "predictions.jsonl", records.Prediction)
    return {line["id"]: line for line in found}


def _result(
    config: EstimateConfig,
    network: Candidate,
    data: Dataset,
    goals: Sequence[Domain],
    source: Scored,
    sets: dict[tuple[str, float], list[Scored]],
    real: list[records.Prediction] | None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What estimate.json says of a network, and the predicted mIoU of the resamples [R] by domain. Scores are
    fractions in [0, 1]; null where a class has none. real: predictions of the target images."""
    scored = runs.read_json(Path(source.told["evaluation"]) / "metrics.json", records.METRICS)
    everywhere = [source, *(draw for draws in sets.values() for draw in draws)]
    ids = [frame.id for frame in data.frames if all(frame.id in one.confusion for one in everywhere)]
    _require_frames(f"what was transferred of {data.name}", len(ids))
    names = scored["classes"]
    last = everywhere[-1].told
    judge: records.Judge = {"model": last["model"], "weights": last["weights"]}
    trained_on = _trained_on(Path(network.run), judge)

    def matrices(draws: list[Scored]) -> np.ndarray:
        """[F, D, C, C + 1]."""
        return np.stack([[draw.confusion[id] for draw in draws] for id in ids])

    def confidence(draws: list[Scored]) -> float:
        return float(np.mean([draw.lines[id]["confidence"] for draw in draws for id in ids]))

    def seen(draws: list[Scored]) -> label_free.Seen:
        return label_free.seen([[draw.lines[id] for id in ids] for draw in draws])

    domains, spreads, plain = {}, {}, matrices([source])
    for name, goal in zip(config.to, goals, strict=True):
        own, target = sets[config.own_prompt, goal.strength], sets[name, goal.strength]
        told, spreads[goal.slug] = statistics.of_domain(
            (plain, matrices(own), matrices(target)),
            names,
            config.resamples,
            config.seed,
            common_noise=config.mode == "reference",
            images=statistics.TargetImages((seen([source]), seen(own), seen(target)), label_free.seen([real]))
            if real
            else None,
        )
        domains[goal.slug] = {
            "name": name,
            "prompt": goal.prompt,
            "strength": goal.strength,
            **told,
            "trained_on": bool(trained_on & {goal.slug, goal.prompt}),
            "changed": float(np.mean([draw.told["changed"] for draw in target])),
            "confidence": {
                "source": confidence([source]),
                "own": confidence(own),
                "target": confidence(target),
            },
            "own_draws": [draw.told for draw in own],
            "target_draws": [draw.told for draw in target],
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
        "source": source.told,
        "domains": domains,
    }
    return result, spreads


def _ranking(
    config: EstimateConfig, results: dict[str, dict[str, Any]], predicted: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    """ranking.json: every network's estimate, and their order in each domain."""
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
                "ranking": statistics.ranking(
                    {
                        name: (result["domains"][slug], predicted[name][slug])
                        for name, result in results.items()
                    },
                    config.seed,
                ),
            }
            for slug, domain in first["domains"].items()
        },
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


def _trained_on(run: Path, judge: records.Judge) -> set[str]:
    """Domains whose transferred frames a network was trained on, by the names of their folders and by the
    prompts in their manifests; as far as these are still there. Only those that the same generator made, or
    nobody says which."""
    found = set()
    for config in _trainings(run):
        for name in (config.source, *config.more_sources, *config.transferred):
            tree = frames.split(name)[1]
            lines = runs.read_lines(tree / "manifest.jsonl", records.Line)
            first: records.Line = lines[0] if lines else {"id": ""}
            if (lines or name in config.transferred) and _identity(first) in (None, _identity(judge)):
                found |= {tree.name, first.get("prompt", tree.name)}
    return found


def _identity(made: records.Line | records.Judge) -> str | None:
    """What tells a generator from others: the weights of a diffusion model's network, and the name of what
    has no weights of its own."""
    weights = made.get("weights", {})
    return weights.get("unet") or weights.get("transformer") or made.get("model")


def _warn_of_training_frames(run: Path, data: Dataset, who: str) -> None:
    """A score on frames that were trained on is none. who: what the network is called."""
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
            "%d of %d frames of %s were trained on by %s: its scores there, and what follows from them, are "
            "far too high; name a split that no training has seen",
            known,
            len(data.frames),
            data.name,
            who,
        )


def _percent(told: records.Interval, sign: str = "") -> str:
    if told["value"] is None:
        return "-"
    value = f"{100 * told['value']:{sign}.1f}"
    return (
        value
        if told["low"] is None or told["high"] is None
        else f"{value} ({100 * told['low']:{sign}.1f} to {100 * told['high']:{sign}.1f})"
    )


def _print(result: dict[str, Any], who: str) -> None:
    """The tables of one network, and its warnings."""
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
                name, _percent(on_source), *(_percent(domain["corrected"]["iou"][name]) for domain in domains)
            )
    Console().print(detail)
    view = Table(
        title=f"predicted mIoU %, with {result['level']:.0%} intervals; judged by {statistics.judge(result)}",
        caption=result["protocol"],
    )
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
        view.add_row(
            domain["name"],
            _percent(domain["corrected"]["miou"]),
            _percent(domain["drop"]),
            _percent(domain["transfer_cost"]),
            _percent(domain["raw"]["miou"]),
            ", ".join(domain["failing"]) or "none",
        )
    _print_warnings(result, who)
    Console().print(view)
    for domain in domains:
        if told := domain.get("target_images"):
            Console(soft_wrap=True, highlight=False).print(
                f"{domain['name']}: {told['count']} target images show an error of the generator of "
                f"{_percent(told['generator_error'], '+')} points, of which half is taken off; without them "
                f"{_percent(told['without'])}"
            )


def _print_ranking(ranked: dict[str, Any]) -> None:
    """The networks of every domain, best first."""
    first = next(iter(ranked["candidates"].values()))
    for domain in ranked["domains"].values():
        view = Table(
            "network",
            "predicted",
            "is the best",
            title=f"{domain['name']}: predicted mIoU %, with {ranked['level']:.0%} intervals; judged by "
            f"{statistics.judge(first)}",
            caption=ranked["protocol"],
        )
        for line in domain["ranking"]:
            view.add_row(line["candidate"], _percent(line["miou"]), f"{line['best']:.0%}")
        Console().print(view)


def _print_warnings(result: dict[str, Any], who: str) -> None:
    """What makes an estimate one not to rely on; `who` is what its network is called."""
    for domain in result["domains"].values():
        if domain["trained_on"]:
            _log.warning(
                "%s: %s was trained on transferred frames of the domain, and is examined on more of the same "
                "generator's: on the embedded town such estimates were %.0f points too high; judge it with "
                "another --generator",
                domain["name"],
                who,
                100 * bootstrap.TRAINED_ON,
            )
        if domain["changed"] < UNCHANGED:
            _log.warning(
                "%s: %s leaves the frames as they are (%.2f grey levels off on average): what was measured "
                "is the score on the source",
                domain["name"],
                statistics.judge(result),
                domain["changed"],
            )
        elif np.mean([draw["changed"] for draw in domain["own_draws"]]) < UNCHANGED:
            _log.warning(
                "%s: %s leaves the frames of the own domain as they are, so what it spoils by itself is not "
                "known, and the interval is too narrow",
                domain["name"],
                statistics.judge(result),
            )
        source, loss = domain["source"]["miou"]["value"], domain["transfer_cost"]["value"]
        if source and loss > source / 2:
            _log.warning(
                "%s: the transfer alone costs %s %.1f of %.1f points: do not rely on this estimate, use a "
                "better generator or a lower strength",
                domain["name"],
                who,
                100 * loss,
                100 * source,
            )

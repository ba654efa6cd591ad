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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segshift import execution, generators, outputs, predictor, records, runs
from segshift.config import (
    EngineConfig,
    EstimateConfig,
    EvaluateConfig,
    NetworkConfig,
    PredictConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.data import frames, pictures
from segshift.data.frames import Dataset
from segshift.engine.worker import target_domains
from segshift.generators import Domain
from segshift.generators.base import resize
from segshift.predictor import Predictor
from segshift.runs import InputError
from segshift.scoring import bootstrap, estimate_tables, label_free
from segshift.scoring import estimate as statistics
from segshift.scoring.estimate import Scored
from segshift.settings import Data
from segshift.stages import evaluate, predict, transfer
from segshift.training import origins, sharing

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
class Moved:
    """The source frames, transferred to a domain with one seed."""

    name: str
    data: str
    """layout:path[:subset]."""
    tree: Path
    record: dict[str, Any]
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
    domains = _check(config, data)
    anywhere = replace(config.diffusion, device="auto", offload="none")
    lasting = replace(config, diffusion=anywhere, where=EngineConfig())
    output = outputs.open_output(out, "estimate", lasting, free=_FREE, begun=_begun)
    candidates = _candidates(config, data, output.path)
    images = _target_images(config, data)
    with outputs.alone(output.path):
        output.claim()
        _estimate(config, data, domains, candidates, images, output.path)
    return output.path


def _estimate(
    config: EstimateConfig,
    data: Dataset,
    domains: tuple[Domain, ...],
    candidates: list[Candidate],
    images: Dataset | None,
    out: Path,
) -> None:
    """Run the stages and write what they show."""
    sources = {one.name: _score(config, one, config.source, "source", {}) for one in candidates}
    reals = {one.name: _real(config, one, images, sources[one.name]) for one in candidates} if images else {}

    tree = Path(config.transferred) if config.transferred else out / "transferred"
    sets: dict[tuple[str, float], list[Moved]] = {}
    for name, domain in zip(config.to, domains, strict=True):
        for prompt in (name, config.own_prompt):  # the own domain once for each strength, and kept
            if (prompt, domain.strength) not in sets:
                sets[prompt, domain.strength] = [
                    _transferred(config, data, prompt, domain.strength, config.seed + i, tree)
                    for i in range(config.draws)
                ]
    last = next(reversed(sets.values()))[-1].record
    judge: records.Judge = {"model": last["model"], "weights": last["weights"]}
    results: dict[str, dict[str, Any]] = {}
    predicted: dict[str, dict[str, np.ndarray]] = {}
    for one in candidates:
        scored = {
            key: [_score(config, one, draw.data, draw.name, draw.record) for draw in draws]
            for key, draws in sets.items()
        }
        results[one.name], predicted[one.name] = statistics.of_network(
            config,
            data,
            domains,
            sources[one.name],
            scored,
            reals.get(one.name),
            judge,
            origins.transferred_domains(sharing.folder(one.run), judge),
        )
    lost = {f["id"]: f for draws in sets.values() for draw in draws for f in runs.failures(draw.tree)}
    runs.write_failures(out, lost.values())  # and the estimate is of the other frames
    if len(candidates) == 1:
        [result] = results.values()
        runs.write_json(out / "estimate.json", result)
        estimate_tables.print_estimate(result, "this network")
        return
    for name, result in results.items():
        estimate_tables.print_warnings(result, name)
    ranked = statistics.of_networks(results, predicted, config.seed)
    runs.write_json(out / "ranking.json", ranked)
    estimate_tables.print_ranking(ranked)


def _begun(out: Path) -> bool:
    """Whether there is a result, or a transferred frame: predictions of the source are used again."""
    results = any((out / name).exists() for name in ("estimate.json", "ranking.json"))
    return results or any(transfer.begun(path) for path in (out / "transferred").glob("*"))


def _check(config: EstimateConfig, data: Dataset) -> tuple[Domain, ...]:
    """The target domains, in the order of `to`. Raises: InputError before anything is computed."""
    frames.require_labels(data)
    statistics.require_frames(data.name, len(data.frames))
    if not config.own_prompt.strip():
        raise InputError(
            'the prompt of the own domain is empty: describe the source, as in --own-prompt "driving in '
            'daylight"'
        )
    plain = _transfer_config(config)
    strengths = generators.strengths(plain)
    domains = target_domains(replace(plain, to=config.to), strengths)
    own = target_domains(replace(plain, to=(config.own_prompt,)), strengths)[0]
    for name, domain in zip(config.to, domains, strict=True):
        if domain.slug == own.slug and name != config.own_prompt:
            raise InputError(
                f"'{name}' is the own domain, written otherwise: name it as --own-prompt does, "
                f"'{config.own_prompt}'"
            )
    return domains


def _candidates(config: EstimateConfig, data: Dataset, out: Path) -> list[Candidate]:
    """The networks, ready to predict. Raises: InputError for one that is given twice, and for networks that
    are not scored on the same classes."""
    if twice := [run for run, count in Counter(config.run).items() if count > 1]:
        raise InputError(f"--run names {twice[0]} twice: name each network once")
    foreign = [run for run in config.run if Path(run).is_file()] or config.run  # a run has its own network
    names = runs.short_names(config.run)
    found = []
    for i, (run, name) in enumerate(zip(config.run, names, strict=True)):
        folder = sharing.folder(run)
        trained = folder.is_dir()
        classes = config.classes
        if classes is None and trained:
            classes = runs.read_config(folder / "config.json", TrainConfig).classes
        network = config.network if run in foreign else None
        size = config.size if config.size is not None or trained else _size(data)
        several = len(names) > 1
        origins.warn_of_training_frames(folder, data, name if several else "this network")
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
            "more, for scores of fewer mean nothing: add some, or leave --target-images out"
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
        where=config.where,
    )


def _transferred(
    config: EstimateConfig, data: Dataset, prompt: str, strength: float, seed: int, tree: Path
) -> Moved:
    """Transfer the source frames to one domain with one seed, or find that done.

    Raises: InputError where no frame could be transferred.
    """
    one = replace(_transfer_config(config), to=(prompt,), strength=strength, seed=seed)
    [target] = target_domains(one)
    name = f"{target.slug}-{strength:g}-{seed}"
    folder = transfer.transfer(one, tree / name) / target.slug
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
        where=config.where,
    )


def _score(config: EstimateConfig, one: Candidate, data: str, name: str, record: dict[str, Any]) -> Scored:
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
    places = {"predictions": str(predictions), "evaluation": str(evaluation)}
    return Scored(confusion, scored, lines, record | places)


def _lines(predictions: Path) -> dict[str, records.Prediction]:
    found = runs.read_lines(predictions / "predictions.jsonl", records.Prediction)
    return {line["id"]: line for line in found}

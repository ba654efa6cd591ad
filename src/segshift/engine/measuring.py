"""The gate's reference network, and what it measures before the first transfer: OUT/gate.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from segshift import records, runs
from segshift.config import TransferConfig
from segshift.data import transforms
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import LabelSpace
from segshift.engine import gate
from segshift.engine.gate import Gate, Thresholds
from segshift.engine.worker import Failed, Sample, Worker, read_sample
from segshift.generators.base import file_hash
from segshift.runs import InputError
from segshift.training import checkpoints

_log = logging.getLogger(__name__)


def sample(config: TransferConfig, dataset: Dataset) -> tuple[Frame, ...]:
    """The source frames that a gate measures on: every process takes the same."""
    assert config.gate is not None
    by_key = sorted(dataset.frames, key=lambda frame: transforms.key_seed(config.seed, "gate", frame.id))
    return tuple(by_key[: config.gate.sample])


def measured_gate(
    config: TransferConfig, dataset: Dataset, worker: Worker, path: Path
) -> tuple[Gate, Mapping[str, Any]]:
    """The gate, and what gate.json tells of its thresholds: those of `path`, or measured on the frames of
    `dataset`, which are a `sample` of the source's.

    Raises: InputError, also when `path` was measured with other weights.
    """
    if config.gate is None or config.gate.reference is None:
        raise InputError(
            "a gate without a reference network: name a run of method source_only in --gate.reference"
        )
    run = Path(config.gate.reference)
    method, trained, space = checkpoints.load_run(run)
    if trained.method != "source_only":
        raise InputError(
            f"{run} was trained by method {trained.method}, and the gate judges by a network of source data "
            "alone: name a run of method source_only in --gate.reference"
        )
    if trained.more_sources or trained.select in ("transferred", "oracle"):
        why = (
            f"on {', '.join(trained.more_sources)} too"
            if trained.more_sources
            else f"and chosen by --{trained.select}-validation"
        )
        raise InputError(
            f"{run} was trained {why}, and the gate judges by a network of source data alone: name a run "
            "without --more-sources, with --select last or source, in --gate.reference"
        )
    if space.names != dataset.space.names:
        raise InputError(
            f"{run} was trained on the {space.classes} classes of '{space.name}', {dataset.name} has the "
            f"{dataset.space.classes} of '{dataset.space.name}': name a run on the same classes in "
            "--gate.reference"
        )
    weights = {"reference": file_hash(run / "checkpoints" / "best.safetensors"), **worker.generator.hashes}
    assert trained.size is not None
    judge = Gate(config.gate, method.to(worker.generator.device), trained.size, space)
    record: Mapping[str, Any]
    if path.exists():
        record = _measured(path, worker, space)
        if record["weights"] != weights:
            raise InputError(f"{path} was measured with other weights of {run}: name a new folder")
    else:
        record = {"weights": weights, **_measure(config, dataset, worker, judge)}
        if path.exists():  # of another process, which on another kind of GPU measures not quite the same
            record = _measured(path, worker, space)
    judge.limits = Thresholds(**record["thresholds"])
    judge.kept = {
        slug: np.array([k[name] for name in space.names]) for slug, k in record["kept_agreement"].items()
    }
    for slug, k in record["kept_agreement"].items():
        if blind := [name for name, a in record["source_agreement"].items() if a >= gate.SEEN > a * k[name]]:
            _log.warning(
                "%s: the gate does not judge %s, of which the reference network finds too little there: "
                "look at some pictures, for a generator that always loses them would look the same",
                slug,
                ", ".join(blind),
            )
    return judge, record


def _measured(path: Path, worker: Worker, space: LabelSpace) -> records.Measured:
    """gate.json. Raises: InputError, also when it lacks a domain or a class."""
    record = runs.read_json(path, records.Measured)
    kept, names = record["kept_agreement"], set(space.names)
    judged = {target.slug: {} for target in worker.targets} | kept
    if any(not names <= k.keys() for k in judged.values()) or not record["source_agreement"].keys() <= names:
        raise InputError(f"{path} lacks a domain or a class: restore it, or start again in a new folder")
    return record


def _measure(config: TransferConfig, dataset: Dataset, worker: Worker, judge: Gate) -> dict:
    """The thresholds, from source frames as they are and through the autoencoder, and k_c of every domain,
    from first draws of some of them: every process measures the same."""
    began = perf_counter()
    scores, lowest, agreements = [], [], []
    pilot: list[tuple[Sample, gate.SourceView]] = []
    slugs = [target.slug for target in worker.targets]
    for frame in dataset.frames:
        try:
            sample = read_sample(config, dataset, frame, slugs, labelled=True)
        except InputError:
            continue  # listed as a failure when its turn comes
        seen = judge.look(sample.image, sample.truth)
        verdict = gate.judge(
            seen,
            judge.predict(worker.reconstruct(sample.image), seen.label.shape),
            judge.limits,
            np.ones(dataset.space.classes),
        )
        scores.append(verdict.score)
        lowest.append(verdict.lowest)
        agreements.append(seen.classes)
        if len(pilot) < gate.PILOT:
            pilot.append((sample, seen))
    if not scores:
        raise InputError(
            f"no frame of {dataset.name} can be read, and the gate measures on them: run segshift check"
        )
    asked = judge.config
    limits = gate.thresholds(np.array(scores), np.array(lowest), asked.quantile, asked.fraction)
    by_class, names = np.array(agreements).T, dataset.space.names
    kept = {slug: k.round(4).tolist() for slug, k in _kept(worker, judge, pilot).items()}
    return {
        "frames": len(scores),
        "thresholds": asdict(limits),
        "source_agreement": {
            name: round(float(np.nanmean(a)), 4)
            for name, a in zip(names, by_class, strict=True)
            if not np.isnan(a).all()
        },
        "kept_agreement": {slug: dict(zip(names, k, strict=True)) for slug, k in kept.items()},
        "seconds": round(perf_counter() - began, 3),
        "autoencoder_scores": [None if np.isnan(score) else round(score, 4) for score in sorted(scores)],
    }


def _kept(worker: Worker, judge: Gate, pilot: list[tuple[Sample, gate.SourceView]]) -> dict[str, np.ndarray]:
    """k_c [C] by domain, from ungated draws of the pilot frames."""
    seen_of = {sample.id: seen for sample, seen in pilot}
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {target.slug: [] for target in worker.targets}
    failed: dict[str, Failed] = {}
    with runs.progress("gate: first draws", len(pilot) * len(found)) as bar:
        for made in worker.run_all([sample for sample, _ in pilot]):
            bar.advance()
            if isinstance(made, Failed):
                failed[made.domain.slug] = made
                continue
            seen = seen_of[made.sample.id]
            pred = judge.predict(made.picture, seen.label.shape)
            found[made.domain.slug].append(
                (seen.classes, gate.class_agreement(pred, seen.label, len(seen.classes)))
            )
    for slug, one in failed.items():
        if not found[slug]:
            raise InputError(
                f"no frame can be transferred to '{slug}', and the gate measures on them: {one.error}"
            )
    return {
        slug: gate.kept_agreement(*map(np.array, zip(*pairs, strict=True))) for slug, pairs in found.items()
    }

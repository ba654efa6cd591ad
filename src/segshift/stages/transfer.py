"""The transfer stage: labelled source frames in, target-like frames of the same layout out (ZoDi, section
3.1).

    OUT/config.json               the configuration
    OUT/<domain>/                 a tree in the source's own layout, with manifest.jsonl: one line a frame,
                                  sorted by id; with `output="tar"` tar files of frames (segshift.data.tars)
    OUT/failures.jsonl            frames that could not be read; also in each domain's tree, about that domain
    OUT/gate.json                 with a gate: its thresholds, measured on source frames before the first
                                  transfer, and what each domain leaves of its network's agreement, measured
                                  on draws that are thrown away
    OUT/journal/<i>-of-<n>.jsonl  what each process has done, a line at a time; the manifests are made from
                                  these

Any number of processes may work on one OUT at once. Every frame belongs to one of them, and each writes to
its own journal only, so no line can be lost; two that would make the same share are refused. Workers of an
engine (`--engine`) write pictures, and the process that hands out the frames writes the journal. Frames are
never half-done: the label first, then the image (atomically), then the line; what has a line and an image is
finished, and so is a line that says the gate dropped the frame. The bytes of a frame depend on nothing but
its settings: not on its neighbours (segshift.engine.worker), the number of processes, or where a run was
interrupted. What a gate measures counts among the settings: a function of the source frames and of first
draws that depend on the settings alone, measured once and kept. Another batch size, and another number of
threads on a CPU (torchrun gives each of several processes one), changes a picture by a grey level, and so
perhaps a score that lies on the threshold.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from segshift import execution, generators, outputs, records, runs
from segshift.config import EngineConfig, TransferConfig
from segshift.data import frames, tars
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import CITYSCAPES, IGNORE, LabelSpace
from segshift.engine import measuring
from segshift.engine.journal import Journal, loose_files
from segshift.engine.making import Facts, Transferring, loose_packs, make_all, place_label
from segshift.engine.worker import Failed, Sample, Worker, target_domains
from segshift.execution import Workers
from segshift.generators.base import DiffusionFamily, Generator
from segshift.outputs import Output
from segshift.runs import InputError

_log = logging.getLogger(__name__)


def transfer(config: TransferConfig, out: str | Path) -> Path:
    """Transfer the frames of `config.source` into `OUT/<domain>`, those of this process where there are
    several.

    Raises: InputError, also while another process makes the same frames; SystemExit after SIGTERM. Frames
    that cannot be read are listed in failures.jsonl and the others go on.
    """
    index, count = execution.shard(config.shard)
    if config.where.engine != "local" and count > 1:
        raise InputError(f"--engine {config.where.engine} divides the frames by itself: leave --shard out")
    targets = target_domains(config)
    dataset = frames.load(config.source)
    if config.gate or (config.control and config.walks):
        frames.require_labels(dataset)
    # where and in how many parts it runs is no part of the result, and one config.json serves all processes
    anywhere = replace(config.diffusion, device="auto", offload="none")
    lasting = replace(config, shard="0/1", diffusion=anywhere, where=EngineConfig())
    output = outputs.open_output(out, "transfer", lasting, free=("batch_size",), begun=begun)
    out = output.path
    packed = config.output == "tar"
    journal = Journal(out, f"{index}-of-{count}", tuple(target.slug for target in targets), packed)
    lines = journal.read()
    finished, known = journal.finished(dataset, lines), {frame.id for frame in dataset.frames}
    chosen = _share(config, dataset, index, count)
    wanted = {
        frame.id: [slug for slug in journal.slugs if (slug, frame.id) not in finished] for frame in chosen
    }
    own = {
        (line["domain"], line["id"])
        for line in lines
        if line.get("gate", {}).get("decision") in ("ignored", "dropped")
    }
    if config.output == "files":
        _mend_labels(config, dataset, chosen, finished - own, out)
    if not any(wanted.values()) and not loose_packs(dataset, chosen, journal):
        journal.merge(known)  # a run may have been killed just before it did
    else:
        if lines and any(wanted.values()) and execution.current().first:
            _say_what_is_missing(wanted, journal, count)
        job = Transferring(config, replace(dataset, frames=()), out)
        with (
            outputs.alone(out, index, count),  # first: another driver may hold the workers as well
            execution.workers(config.where, job, config.diffusion.device) as workers,
        ):
            _work(config, dataset, wanted, output, journal, workers, (index, count))
    if count > 1:
        _warn_of_other_shares(config, dataset, journal, count)
    return out


def _work(
    config: TransferConfig,
    dataset: Dataset,
    wanted: dict[str, list[str]],
    output: Output,
    journal: Journal,
    workers: Workers,
    share: tuple[int, int],
) -> None:
    """Make what is `wanted`, domains by frame id, and record it."""
    out, known = output.path, {frame.id for frame in dataset.frames}
    facts: Facts = workers.once("facts")
    if facts.needs_layouts:
        frames.require_labels(dataset)
    if any(line.get("weights", facts.hashes) != facts.hashes for line in journal.read()):
        raise InputError(f"{out} was begun with other weights of '{facts.name}': name a new folder")
    if output.check():  # thresholds of other settings
        (out / "gate.json").unlink(missing_ok=True)
    told = workers.once("measure", measuring.sample(config, dataset)) if config.gate else None
    output.claim()  # not before all settings have proved good
    if share[1] == 1:
        runs.remove_unfinished(out)
    for slug in journal.slugs:
        (frames.describe_tar if journal.packed else frames.describe)(dataset, out / slug)
    if told:
        runs.write_json(out / "gate.json", told)
    _warn_of_the_town(config, dataset, facts)
    journal.merge(known)
    total = len(wanted) * len(journal.slugs)
    done = total - sum(map(len, wanted.values()))
    shown = runs.progress(f"transfer on {facts.device}", total, done=done)
    with execution.draining() as asked:
        try:
            with shown if execution.current().first else nullcontext() as bar:
                for line, pictures in make_all(config, dataset, wanted, workers, journal, asked):
                    journal.add(line)
                    if bar:
                        bar.advance(pictures)
        finally:
            journal.add({"finished": True})
            journal.merge(known)
    if share[1] == 1 and not loose_packs(dataset, dataset.frames, journal):
        shutil.rmtree(loose_files(out), ignore_errors=True)  # empty folders


def begun(out: Path) -> bool:
    """Whether some frame is finished."""
    paths = (out / "journal").glob("*.jsonl")
    return any("domain" in line for path in paths for line in runs.read_lines(path, records.Entry))


def _say_what_is_missing(wanted: Mapping[str, list[str]], journal: Journal, count: int) -> None:
    """One line on what an earlier start has left to do."""
    missing = [id for id, slugs in wanted.items() if slugs]
    never = "" if count > 1 else "".join(f"; share {share} never began" for share in journal.never_begun())
    left = f"{len(missing)} of {len(wanted)} frames are not made yet (the first '{missing[0]}'{never})"
    Console(soft_wrap=True, highlight=False).print(f"{left}: making them", markup=False)


def _share(config: TransferConfig, dataset: Dataset, index: int, count: int) -> tuple[Frame, ...]:
    """The frames of one process of `count`: every n-th, or every n-th tar file's, which has one writer."""
    block = tars.BLOCK if config.output == "tar" else 1
    return tuple(frame for i, frame in enumerate(dataset.frames) if i // block % count == index)


def _warn_of_other_shares(config: TransferConfig, dataset: Dataset, journal: Journal, count: int) -> None:
    """Where frames of another share are not made, and no process is on them."""
    lines = journal.read()
    told = {line["id"] for line in lines if "error" in line}
    made = {(line["domain"], line["id"]) for line in lines if "domain" in line}
    for index in range(count):
        missing = [
            frame.id
            for frame in _share(config, dataset, index, count)
            if frame.id not in told and any((slug, frame.id) not in made for slug in journal.slugs)
        ]
        if missing and not outputs.held(journal.out, index, count):
            _log.warning(
                "share %d/%d lacks %d frames (the first '%s') and no process is on them: start it, or the "
                "same command without --shard, which makes all that is missing",
                index,
                count,
                len(missing),
                missing[0],
            )


def _mend_labels(
    config: TransferConfig,
    dataset: Dataset,
    chosen: Sequence[Frame],
    finished: set[tuple[str, str]],
    out: Path,
) -> None:
    """Link or copy the source's labels again where those beside the `finished` (domain, frame id) are gone,
    as after the data set was moved."""
    by_id = {frame.id: frame for frame in chosen if frame.label}
    for slug, id in sorted(finished):
        if id in by_id and not (path := frames.place(dataset, by_id[id], out / slug, "label")).exists():
            place_label(config, by_id[id].truth, path)


def _warn_of_the_town(config: TransferConfig, dataset: Dataset, facts: Facts) -> None:
    """The embedded prior is a toy: what it makes of photographs looks like a result and is none."""
    if config.generator is not None or config.diffusion.model != "town" or facts.short_side is None:
        return
    try:
        side = min(frames.image_size(dataset.frames[0].image))
    except InputError:
        return  # listed as a failure when its turn comes
    if side > 2 * facts.short_side:
        _log.warning(
            "the embedded prior draws streets of %d pixels and knows no photographs, these have %d: name a "
            "real model, as in --diffusion.model stable-diffusion-v1-5/stable-diffusion-v1-5",
            facts.short_side,
            side,
        )


def transfer_images(
    config: TransferConfig,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None,
    *,
    ids: Sequence[str] | None = None,
    space: LabelSpace = CITYSCAPES,
    model: Generator | DiffusionFamily | None = None,
) -> dict[str, list[np.ndarray]]:
    """The same in memory, for a few images; `config.source` is not read.

    images: [H, W, 3] uint8 each. labels: train ids [H, W] uint8 each, None where the generator takes no
    layouts, as with control=False. ids: what the noise of an image is drawn from, its position where not
    given. model: one that is loaded already.
    Returns: pictures [h, w, 3] uint8 in the order of `images`, by domain. Raises: InputError, also for a
    gate, whose thresholds are of a data set.
    """
    if config.gate:
        raise InputError(
            "a gate measures a data set before it judges: leave gate out, or transfer a folder of frames"
        )
    worker = Worker(config, space, model or generators.load(config))
    slugs = [target.slug for target in worker.targets]
    _check_images(images, labels, ids, space)
    if worker.generator.needs_layouts and labels is None:
        raise InputError("no labels, and the layout is drawn from them: give them, or set control=False")
    samples = [
        Sample(
            ids[i] if ids else str(i), image, labels[i] if labels is not None else None, wanted=list(slugs)
        )
        for i, image in enumerate(images)
    ]
    made: dict[tuple[str, str], np.ndarray] = {}
    for one in worker.run_all(samples):
        if isinstance(one, Failed):
            raise one.error
        made[one.domain.slug, one.sample.id] = one.picture
    return {slug: [made[slug, sample.id] for sample in samples] for slug in slugs}


def _check_images(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None,
    ids: Sequence[str] | None,
    space: LabelSpace,
) -> None:
    """Raises: InputError for arrays that are no pictures, or labels that are not of their pictures."""
    for what, arrays in (("images", images), ("labels", labels)):
        for i, one in enumerate(() if arrays is None else arrays):
            if not isinstance(one, np.ndarray):
                raise InputError(f"{what}[{i}] is a {type(one).__name__}: expected a NumPy array of uint8")
    for what, given in (("labels", labels), ("ids", ids)):
        if given is not None and len(given) != len(images):
            raise InputError(f"{len(images)} images and {len(given)} {what}: give one for each image")
    if ids is not None and len(set(ids)) < len(ids):
        raise InputError("two images have the same id: their noise would be the same, give each its own")
    for i, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f"image {i} is {image.dtype} of shape {image.shape}: expected uint8 [H, W, 3], RGB from 0 "
                "to 255"
            )
        if labels is None:
            continue
        label = labels[i]
        if label.dtype != np.uint8 or label.shape != image.shape[:2]:
            raise InputError(
                f"label {i} is {label.dtype} of shape {label.shape}: expected uint8 train ids "
                f"{image.shape[:2]}"
            )
        if strange := sorted(set(np.unique(label).tolist()) - {*range(space.classes), IGNORE}):
            raise InputError(
                f"label {i} holds {strange[:4]}: expected train ids 0 to {space.classes - 1}, or {IGNORE} "
                "for void"
            )

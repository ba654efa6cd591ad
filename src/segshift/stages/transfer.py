"""The transfer stage: labelled source frames in, target-like frames of the same layout out (ZoDi, section
3.1).

    OUT/config.json               the configuration
    OUT/<domain>/                 a tree in the source's own layout, with manifest.jsonl: one line a frame,
                                  sorted by id
    OUT/failures.jsonl            frames that could not be read; also in each domain's tree, about that domain
    OUT/gate.json                 with a gate: its thresholds, measured on source frames before the first
                                  transfer, and what each domain leaves of its network's agreement, measured
                                  on draws that are thrown away
    OUT/journal/<i>-of-<n>.jsonl  what each process has done, a line at a time; the manifests are made from
                                  these

Any number of processes may work on one OUT at once. Every frame belongs to one of them, and each writes to
its own journal only, so no line can be lost. Frames are never half-done: the label first, then the image
(atomically), then the line; what has a line and an image is finished, and so is a line that says the gate
dropped the frame. The bytes of a frame depend on nothing but its settings: not on its neighbours
(segshift.engine.worker), the number of processes, or where a run was interrupted. What a gate measures counts
among the settings: a function of the source frames and of first draws that depend on the settings alone,
measured once and kept. Another batch size, and another number of threads on a CPU (torchrun gives each of
several processes one), changes a picture by a grey level, and so perhaps a score that lies on the threshold.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from segshift import execution, generators, outputs, records, runs
from segshift.config import TransferConfig
from segshift.data import frames
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import CITYSCAPES, IGNORE, LabelSpace
from segshift.engine import measuring
from segshift.engine.journal import Journal
from segshift.engine.worker import Failed, Sample, Worker, read_sample, target_domains
from segshift.generators.base import DiffusionFamily, Generator
from segshift.runs import InputError

_log = logging.getLogger(__name__)


def transfer(config: TransferConfig, out: str | Path) -> Path:
    """Transfer the frames of `config.source` into `OUT/<domain>`, those of this process where there are
    several.

    Raises: InputError. Frames that cannot be read are listed in failures.jsonl and the others go on.
    """
    index, count = execution.shard(config.shard)
    targets = target_domains(config)
    dataset = frames.load(config.source)
    if config.gate or (config.control and config.walks):
        frames.require_labels(dataset)
    # where and in how many parts it runs is no part of the result, and one config.json serves all processes
    lasting = replace(config, shard="0/1", diffusion=replace(config.diffusion, device="auto", offload="none"))
    output = outputs.open_output(out, "transfer", lasting, free=("batch_size",), begun=begun)
    out = output.path
    journal = Journal(out, f"{index}-of-{count}", tuple(target.slug for target in targets))
    lines = journal.read()
    finished, known = journal.finished(dataset, lines), {frame.id for frame in dataset.frames}
    wanted = {
        frame.id: [target.slug for target in targets if (target.slug, frame.id) not in finished]
        for frame in dataset.frames[index::count]
    }
    own = {
        (line["domain"], line["id"])
        for line in lines
        if line.get("gate", {}).get("decision") in ("ignored", "dropped")
    }
    _mend_labels(config, dataset, dataset.frames[index::count], finished - own, out)
    if not any(wanted.values()):
        journal.merge(known)  # a run may have been killed just before it did
    else:
        worker = Worker(config, dataset.space, generators.load(config))
        generator = worker.generator
        if generator.needs_layouts:
            frames.require_labels(dataset)
        if any(line.get("weights", generator.hashes) != generator.hashes for line in journal.read()):
            raise InputError(f"{out} was begun with other weights of '{generator.name}': name a new folder")
        if output.check():  # thresholds of other settings
            (out / "gate.json").unlink(missing_ok=True)
        gated = measuring.measured_gate(config, dataset, worker, out / "gate.json") if config.gate else None
        output.claim()  # not before all settings have proved good
        for target in targets:
            frames.describe(dataset, out / target.slug)
        if gated:
            worker.gate, measured = gated
            runs.write_json(out / "gate.json", measured)
        _warn_of_the_town(config, dataset, worker)
        journal.merge(known)
        total = len(wanted) * len(targets)
        done = total - sum(map(len, wanted.values()))
        first = execution.current().first
        try:
            with (
                runs.progress(f"transfer on {generator.device.type}", total, done=done)
                if first
                else nullcontext() as bar
            ):
                _transfer(config, dataset, wanted, worker, journal, bar.advance if bar else lambda by=1: None)
        finally:
            journal.add({"finished": True})
            journal.merge(known)
    return out


def begun(out: Path) -> bool:
    """Whether some frame is finished."""
    paths = (out / "journal").glob("*.jsonl")
    return any("domain" in line for path in paths for line in runs.read_lines(path, records.Entry))


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
            _place_label(config, by_id[id].truth, path)


def _warn_of_the_town(config: TransferConfig, dataset: Dataset, worker: Worker) -> None:
    """The embedded prior is a toy: what it makes of photographs looks like a result and is none."""
    generator = worker.generator
    if config.generator is not None or config.diffusion.model != "town" or generator.short_side is None:
        return
    try:
        side = min(frames.image_size(dataset.frames[0].image))
    except InputError:
        return  # listed as a failure when its turn comes
    if side > 2 * generator.short_side:
        _log.warning(
            "the embedded prior draws streets of %d pixels and knows no photographs, these have %d: name a "
            "real model, as in --diffusion.model stable-diffusion-v1-5/stable-diffusion-v1-5",
            generator.short_side,
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


def _transfer(
    config: TransferConfig, dataset: Dataset, wanted, worker: Worker, journal: Journal, advance
) -> None:
    """Make and write what is `wanted`: domains by frame id."""

    def fail(frame: Frame, error: InputError, domains: int | None = None) -> None:
        journal.add({"id": frame.id, "error": str(error)})
        advance(len(wanted[frame.id]) if domains is None else domains)

    labelled = worker.generator.needs_layouts or config.gate is not None

    sizes = _sizes(dataset, worker)
    groups: dict[tuple[int, int], deque[Frame]] = {}
    for frame in dataset.frames:
        if not wanted.get(frame.id):
            continue
        found = sizes[frame.id]
        if isinstance(found, InputError):
            fail(frame, found)
        else:
            groups.setdefault(found, deque()).append(frame)
    all_sizes = list(sizes.values())
    for size, queue in groups.items():
        # Of all processes, so that the shapes are the same in each
        rows = min(config.batch_size, all_sizes.count(size))
        while queue:
            batch: dict[str, tuple[Frame, Sample]] = {}
            while queue and len(batch) < min(rows, worker.limit):
                frame = queue.popleft()
                try:
                    batch[frame.id] = (
                        frame,
                        read_sample(config, dataset, frame, wanted[frame.id], labelled=labelled),
                    )
                except InputError as error:
                    fail(frame, error)
            for made in worker.run([sample for _, sample in batch.values()], rows):
                frame, root = batch[made.sample.id][0], journal.out / made.domain.slug
                if isinstance(made, Failed):
                    fail(frame, made.error, 1)
                    continue
                verdict, sha256 = made.verdict, None
                decision = worker.gate.decision(verdict) if worker.gate and verdict else "kept"
                if verdict and decision == "ignored":
                    frames.write_void(
                        frame,
                        dataset.space,
                        verdict.failing,
                        frames.place(dataset, frame, root, "label"),
                    )
                    frame = replace(frame, label=None)  # it is there already
                if decision != "dropped":
                    sha256 = _write(config, dataset, frame, root, made.picture)
                journal.add(worker.line(made, size, sha256))
                advance()


def _sizes(dataset: Dataset, worker: Worker) -> dict[str, tuple[int, int] | InputError]:
    """Working size of every frame, from the files' headers; the error where that cannot be read."""

    def size(frame: Frame) -> tuple[int, int] | InputError:
        try:
            return worker.generator.size(*frames.image_size(frame.image))
        except InputError as error:
            return error

    with ThreadPoolExecutor(16) as pool:  # thousands of headers, perhaps on a network disk
        return {f.id: s for f, s in zip(dataset.frames, pool.map(size, dataset.frames), strict=True)}


def _write(config: TransferConfig, dataset: Dataset, frame: Frame, root: Path, picture: np.ndarray) -> str:
    """Put label and image into the tree under `root`. Returns: sha256 of the image file."""
    if frame.label is not None:
        _place_label(config, frame.label, frames.place(dataset, frame, root, "label"))
    path = frames.place(dataset, frame, root)
    with runs.atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=3)
        return hashlib.sha256(temporary.read_bytes()).hexdigest()


def _place_label(config: TransferConfig, label: Path, path: Path) -> None:
    """Link or copy. Links are absolute: transferred trees get moved and copied about, the data set they were
    made from stays; a tree that is to leave this machine is written with `labels="copy"`."""
    if config.labels == "copy":
        if not path.exists():
            with runs.atomic(path) as temporary:
                shutil.copyfile(label, temporary)
        return
    place = label.absolute()
    if path.is_symlink() and path.readlink() == place:
        return
    temporary = path.with_name(f"{runs.TEMPORARY}{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.symlink_to(place)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot link {path} to {place} ({error.strerror}): choose --labels copy") from error
    finally:
        temporary.unlink(missing_ok=True)

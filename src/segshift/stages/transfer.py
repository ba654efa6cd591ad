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

import hashlib
import logging
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console

from segshift import execution, generators, outputs, records, runs
from segshift.config import EngineConfig, TransferConfig
from segshift.data import frames, tars
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import CITYSCAPES, IGNORE, LabelSpace
from segshift.engine import measuring
from segshift.engine.journal import Journal
from segshift.engine.worker import Failed, Made, Sample, Worker, read_sample, target_domains
from segshift.execution import Lost, Workers
from segshift.generators.base import DiffusionFamily, Generator
from segshift.outputs import Output
from segshift.runs import InputError

_log = logging.getLogger(__name__)

T = TypeVar("T")


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
    if not any(wanted.values()) and not _loose(dataset, chosen, journal):
        journal.merge(known)  # a run may have been killed just before it did
    else:
        if lines and any(wanted.values()) and execution.current().first:
            _say_what_is_missing(wanted, journal, count)
        job = Transferring(config, replace(dataset, frames=()), out)
        with execution.workers(config.where, job, config.diffusion.device) as workers:
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
    with outputs.alone(out, *share):
        output.claim()  # not before all settings have proved good
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
                    for line, pictures in _made(config, dataset, wanted, workers, journal, asked):
                        journal.add(line)
                        if bar:
                            bar.advance(pictures)
            finally:
                journal.add({"finished": True})
                journal.merge(known)
        if share[1] == 1 and not _loose(dataset, dataset.frames, journal):
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
            _place_label(config, by_id[id].truth, path)


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


@dataclass(frozen=True)
class Facts:
    """What the stage needs to know of a generator."""

    name: str
    hashes: dict[str, str]
    needs_layouts: bool
    short_side: int | None
    device: str


@dataclass(frozen=True)
class Chunk:
    """Frames of one working size that go through the generator together."""

    frames: tuple[tuple[Frame, tuple[str, ...]], ...]
    """Each with the domains that are not made yet."""
    size: tuple[int, int]
    rows: int
    """Rows of the batch; those without a frame are filled up."""


@dataclass(frozen=True)
class Pack:
    """Frames that become one tar file of a domain."""

    frames: tuple[Frame, ...]
    slug: str
    number: int


@dataclass
class Transferring:
    """The job of a worker: it makes pictures, and writes them with their labels."""

    config: TransferConfig
    source: Dataset
    """Without its frames."""
    out: Path

    @cached_property
    def worker(self) -> Worker:
        return Worker(self.config, self.source.space, generators.load(self.config))

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "source": self.source, "out": self.out}

    def facts(self) -> Facts:
        g = self.worker.generator
        return Facts(g.name, dict(g.hashes), g.needs_layouts, g.short_side, g.device.type)

    def sizes(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int] | InputError]:
        """Working sizes of images of these heights and widths."""
        return [_or_error(self.worker.generator.size, *size) for size in sizes]

    def measure(self, sample: tuple[Frame, ...]) -> Mapping[str, Any]:
        """What gate.json tells, measured on a sample of the source where it is not there yet."""
        dataset = replace(self.source, frames=sample)
        path = self.out / "gate.json"
        self.worker.gate, record = measuring.measured_gate(self.config, dataset, self.worker, path)
        return record

    def make(
        self, items: Iterable[Chunk | Pack], asked: Callable[[], bool]
    ) -> Iterator[tuple[dict[str, Any], int]]:
        """Lines for the journal, each with the number of pictures that it tells of."""
        if self.config.gate and self.worker.gate is None:
            self.measure(())  # gate.json is there
        labelled = self.worker.generator.needs_layouts or self.config.gate is not None
        for chunk in items:
            if asked():
                return
            if isinstance(chunk, Pack):
                self._pack(chunk)
                continue
            by_id: dict[str, Frame] = {}
            samples = []
            for frame, wanted in chunk.frames:
                reads = labelled or (self.config.output == "tar" and frame.label is not None)
                try:
                    samples.append(read_sample(self.config, self.source, frame, list(wanted), labelled=reads))
                except InputError as error:
                    yield {"id": frame.id, "error": str(error)}, len(wanted)
                by_id[frame.id] = frame
            for made in self.worker.run(samples, chunk.rows, asked):
                yield self._line(by_id[made.sample.id], made, chunk.size), 1

    def _line(self, frame: Frame, made: Made | Failed, size: tuple[int, int]) -> dict[str, Any]:
        """Write the picture; returns its line."""
        if isinstance(made, Failed):
            return {"id": frame.id, "error": str(made.error)}
        packed, verdict, sha256, judge = self.config.output == "tar", made.verdict, None, self.worker.gate
        root = (loose_files(self.out) if packed else self.out) / made.domain.slug
        decision = judge.decision(verdict) if judge and verdict else "kept"
        if verdict and decision == "ignored":
            label = frames.place(self.source, frame, root, "label")
            frames.write_void(frame, self.source.space, verdict.failing, label)
        if decision == "ignored" or packed:
            frame = replace(frame, label=None)  # it is there already, or is read when the file is packed
        if decision != "dropped":
            sha256 = _write(self.config, self.source, frame, root, made.picture)
        line = self.worker.line(made, size, sha256)
        if packed and sha256:
            runs.write_lines(_beside(frames.place(self.source, frame, root)), [_lasting(line)])
        return line

    def _pack(self, pack: Pack) -> None:
        """Write a tar file of what was made of its frames, and delete the loose files. What is in it already
        stays."""
        path = self.out / pack.slug / f"{pack.number:06d}.tar"
        root = loose_files(self.out) / pack.slug
        loose = [frames.place(self.source, frame, root) for frame in pack.frames]

        def members() -> Iterator[tuple[str, bytes]]:
            there = set(tars.names(path)) if path.exists() else set()
            for frame, image in zip(pack.frames, loose, strict=True):
                key = tars.key(frame.id)
                if _beside(image).exists():  # written last
                    yield f"{key}.png", image.read_bytes()
                    if frame.label is not None:
                        yield f"{key}.label.png", self._train_ids(frame, root)
                    yield f"{key}.json", _beside(image).read_bytes()
                    continue
                for name in (f"{key}.png", f"{key}.label.png", f"{key}.json"):
                    if name in there:
                        found = tars.content(path / name)
                        assert isinstance(found, BytesIO)
                        yield name, found.getvalue()

        tars.write(path, members())
        for frame, image in zip(pack.frames, loose, strict=True):
            labels = [frames.place(self.source, frame, root, "label")] if frame.label is not None else []
            for file in (*labels, _beside(image), image):
                file.unlink(missing_ok=True)

    def _train_ids(self, frame: Frame, root: Path) -> bytes:
        """The label as a PNG of train ids: the gate's, where it left one, or the source's."""
        judged = frames.place(self.source, frame, root, "label")
        label = replace(frame, label=judged) if judged.exists() else frame
        written = BytesIO()
        Image.fromarray(frames.read_label(label, self.source.space)).save(written, format="PNG")
        return written.getvalue()


def loose_files(out: Path) -> Path:
    """Where pictures wait for the others of their tar file."""
    return out / "loose"


def _beside(image: Path) -> Path:
    """The line of metadata of a loose picture."""
    return image.with_suffix(".json")


def _lasting(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the manifest without what is another one the next time."""
    return {name: value for name, value in line.items() if name != "seconds"}


def _loose(dataset: Dataset, chosen: Sequence[Frame], journal: Journal) -> list[Pack]:
    """Tar files that loose pictures of the chosen frames wait for."""
    found = []
    for slug in journal.slugs if journal.packed else ():
        root = loose_files(journal.out) / slug
        there = set(root.rglob("*.png"))
        if there:
            ids = {frame.id for frame in chosen if frames.place(dataset, frame, root) in there}
            found += _packs(dataset, {slug: ids})
    return found


def _packs(dataset: Dataset, ids: Mapping[str, set[str]]) -> list[Pack]:
    """The tar files that hold some of these frames, by domain."""
    found = []
    for i in range(0, len(dataset.frames), tars.BLOCK):
        block = dataset.frames[i : i + tars.BLOCK]
        for slug, some in ids.items():
            if any(frame.id in some for frame in block):
                found.append(Pack(block, slug, i // tars.BLOCK))
    return found


def _made(
    config: TransferConfig,
    dataset: Dataset,
    wanted: Mapping[str, list[str]],
    workers: Workers,
    journal: Journal,
    asked: Callable[[], bool],
) -> Iterator[tuple[dict[str, Any], int]]:
    """Lines for the journal, each with the number of pictures that it tells of, of what is `wanted`."""
    sizes = _sizes(dataset, workers)
    groups: dict[tuple[int, int], list[tuple[Frame, tuple[str, ...]]]] = {}
    for frame in dataset.frames:
        slugs = wanted.get(frame.id)
        if not slugs:
            continue
        found = sizes[frame.id]
        if isinstance(found, InputError):
            yield {"id": frame.id, "error": str(found)}, len(slugs)
        else:
            groups.setdefault(found, []).append((frame, tuple(slugs)))
    all_sizes = Counter(size for size in sizes.values() if isinstance(size, tuple))
    chunks = []
    for size, group in groups.items():
        # Of all processes, so that the shapes are the same in each
        rows = min(config.batch_size, all_sizes[size])
        chunks += [Chunk(tuple(group[i : i + rows]), size, rows) for i in range(0, len(group), rows)]
    items, after = _with_packs(dataset, chunks) if journal.packed else (chunks, ())
    alone: list[Chunk] = []
    for result in workers.map("make", items, asked, after):
        if not isinstance(result, Lost):
            yield result
        elif isinstance(result.item, Chunk):  # some frame of it costs the workers their lives
            alone += [replace(result.item, frames=(one,)) for one in result.item.frames]
    for result in workers.map("make", alone, asked):
        if isinstance(result, Lost):
            [(frame, slugs)] = result.item.frames
            yield {"id": frame.id, "error": f"{frame.image}: {result.why}"}, len(slugs)
        else:
            yield result
    chosen = tuple(frame for frame in dataset.frames if frame.id in wanted)
    for result in workers.map("make", _loose(dataset, chosen, journal), asked):  # what was left loose before
        if isinstance(result, Lost):
            raise InputError(
                f"cannot pack {journal.out / result.item.slug / str(result.item.number)}.tar: {result.why}; "
                "run the same command again"
            )


def _with_packs(dataset: Dataset, chunks: Sequence[Chunk]) -> tuple[list[Chunk | Pack], list[list[int]]]:
    """The chunks, and after the last chunk of its frames each tar file; with what each of them waits for."""
    wanted: dict[str, set[str]] = {}
    of: dict[str, int] = {}
    for number, chunk in enumerate(chunks):
        for frame, slugs in chunk.frames:
            of[frame.id] = number
            for slug in slugs:
                wanted.setdefault(slug, set()).add(frame.id)
    ready: dict[int, list[tuple[Pack, set[int]]]] = {}
    for pack in _packs(dataset, wanted):
        needed = {of[frame.id] for frame in pack.frames if frame.id in of}
        ready.setdefault(max(needed), []).append((pack, needed))
    items: list[Chunk | Pack] = []
    after: list[list[int]] = []
    place: dict[int, int] = {}
    for number, chunk in enumerate(chunks):
        place[number] = len(items)
        items.append(chunk)
        after.append([])
        for pack, needed in ready.get(number, ()):
            items.append(pack)
            after.append([place[i] for i in sorted(needed)])
    return items, after


def _or_error(function: Callable[..., T], *arguments: Any) -> T | InputError:
    try:
        return function(*arguments)
    except InputError as error:
        return error


def _sizes(dataset: Dataset, workers: Workers) -> dict[str, tuple[int, int] | InputError]:
    """Working size of every frame, from the files' headers; the error where that cannot be read."""
    with ThreadPoolExecutor(16) as pool:  # thousands of headers, perhaps on a network disk
        found = list(pool.map(lambda frame: _or_error(frames.image_size, frame.image), dataset.frames))
    own = sorted({size for size in found if isinstance(size, tuple)})
    working = dict(zip(own, workers.once("sizes", own), strict=True))
    return {
        frame.id: size if isinstance(size, InputError) else working[size]
        for frame, size in zip(dataset.frames, found, strict=True)
    }


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
    found = tars.content(label)
    if config.labels == "copy" or isinstance(found, BytesIO):
        if not path.exists():
            with runs.atomic(path) as temporary:
                if isinstance(found, BytesIO):
                    temporary.write_bytes(found.getvalue())
                else:
                    shutil.copyfile(found, temporary)
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

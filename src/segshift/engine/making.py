"""What makes and writes the frames of a transfer: the job of a worker, and the order of its items.

A chunk is frames of one working size that go through the generator together; a pack is frames that become one
tar file. The stage (`segshift.stages.transfer`) says which frames are wanted and keeps the journal.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from segshift import execution, generators, runs
from segshift.config import TransferConfig
from segshift.data import frames, tars
from segshift.data.frames import Dataset, Frame
from segshift.engine import measuring
from segshift.engine.journal import Journal, loose_files
from segshift.engine.worker import Failed, Made, Worker, read_sample
from segshift.execution import Lost, Workers
from segshift.runs import InputError

T = TypeVar("T")


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
        path = self.out / pack.slug / tars.file_name(pack.number)
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


def _beside(image: Path) -> Path:
    """The line of metadata of a loose picture."""
    return image.with_suffix(".json")


def _lasting(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the manifest without what is another one the next time."""
    return {name: value for name, value in line.items() if name != "seconds"}


def loose_packs(dataset: Dataset, chosen: Sequence[Frame], journal: Journal) -> list[Pack]:
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


def make_all(
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
    for result in execution.one_by_one(workers, "make", items, asked, _parts, after):
        if isinstance(result, Lost):
            [(frame, slugs)] = result.item.frames
            yield {"id": frame.id, "error": f"{frame.image}: {result.why}"}, len(slugs)
        else:
            yield result
    # what an earlier start left loose
    left = loose_packs(dataset, tuple(frame for frame in dataset.frames if frame.id in wanted), journal)
    for result in workers.map("make", left, asked):
        if isinstance(result, Lost):
            raise InputError(
                f"cannot pack {journal.out / result.item.slug / tars.file_name(result.item.number)}: "
                f"{result.why}; run the same command again"
            )


def _parts(item: Chunk | Pack) -> list[Chunk]:
    """A chunk of each frame; none of a pack, whose loose files are found again."""
    return [replace(item, frames=(one,)) for one in item.frames] if isinstance(item, Chunk) else []


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
        place_label(config, frame.label, frames.place(dataset, frame, root, "label"))
    path = frames.place(dataset, frame, root)
    with runs.atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=3)
        return hashlib.sha256(temporary.read_bytes()).hexdigest()


def place_label(config: TransferConfig, label: Path, path: Path) -> None:
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
        with runs.on_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.symlink_to(place)
            os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot link {path} to {place} ({error.strerror}): choose --labels copy") from error
    finally:
        temporary.unlink(missing_ok=True)

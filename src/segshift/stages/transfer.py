"""The transfer stage: labelled source frames in, target-like frames of the same layout out (ZoDi, section 3.1).

OUT/config.json            the configuration
OUT/<domain>/              a tree in the source's own layout, with manifest.jsonl: one line a frame, sorted by id
OUT/failures.jsonl         frames that could not be read; also in each domain's tree, about that domain
OUT/journal/<i>-of-<n>.jsonl  what each process has done, a line at a time; the manifests are made from these

Any number of processes may work on one OUT at once. Every frame belongs to one of them, and each writes to its own
journal only, so no line can be lost. Frames are never half-done: the label first, then the image (atomically), then
the line; what has a line and an image is finished. All batches of one working size have the same number of rows, the
last one filled up with repeats, so the bytes of a frame depend on nothing but its settings: not on its neighbours,
the number of processes, or where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segshift import diffusion, frames, runs
from segshift.config import TransferConfig
from segshift.diffusion import Diffusion
from segshift.frames import Dataset, Frame
from segshift.journal import Journal
from segshift.labels import CITYSCAPES, LabelSpace
from segshift.methods import zodi
from segshift.runs import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """One target domain."""

    slug: str
    """Its folder: a known name, or the sentence with dashes."""
    prompt: str
    strength: float


@dataclass
class Sample:
    """One source image on its way through the model."""

    id: str
    image: np.ndarray
    """[H, W, 3] uint8."""
    label: np.ndarray | None
    """Train ids [H, W] uint8; None where the layout is not used."""
    wanted: list[str] = field(default_factory=list)
    """Domains not made yet."""


def transfer(config: TransferConfig, out: Path) -> Path:
    """Transfer the frames of `config.source` into OUT/<domain>, those of this process where there are several.

    Raises: InputError. Frames that cannot be read are listed in failures.jsonl and the others go on.
    """
    index, count = shard(config.shard)
    goals = targets(config)
    dataset = frames.load(config.source)
    if config.control:
        frames.require_labels(dataset)
    # where and in how many parts it runs is no part of the result, and one config.json serves all processes
    lasting = replace(config, shard="0/1", diffusion=replace(config.diffusion, device="auto"))
    claim = partial(runs.begin, out, "transfer", lasting, free=("batch_size",))
    if (out / "config.json").exists():
        claim()
    journal = Journal(out, f"{index}-of-{count}", tuple(goal.slug for goal in goals))
    finished = journal.finished(dataset)
    wanted = {
        frame.id: [goal.slug for goal in goals if (goal.slug, frame.id) not in finished]
        for frame in dataset.frames[index::count]
    }
    if not any(wanted.values()):
        journal.merge()  # a run may have been killed just before it did
    else:
        worker = Worker(config, dataset.space, diffusion.load(config.diffusion, control=config.control))
        if any(line.get("weights", worker.model.hashes) != worker.model.hashes for line in journal.read()):
            raise InputError(f"{out} was begun with other weights of '{config.diffusion.model}': name a new folder")
        claim()  # not before all settings have proved good: a folder with wrong ones would be of no use
        for goal in goals:
            frames.describe(dataset, out / goal.slug)
        journal.merge()
        total = len(wanted) * len(goals)
        done = total - sum(map(len, wanted.values()))
        first = int(os.environ.get("RANK", 0)) == 0
        try:
            with runs.progress("transfer", total, done=done) if first else nullcontext() as bar:
                _transfer(config, dataset, wanted, worker, journal, bar.advance if bar else lambda by=1: None)
        finally:
            journal.add({"finished": True})
            journal.merge()
    return out


def transfer_images(
    config: TransferConfig,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None,
    *,
    ids: Sequence[str] | None = None,
    space: LabelSpace = CITYSCAPES,
    model: Diffusion | None = None,
) -> dict[str, list[np.ndarray]]:
    """The same in memory, for a few images; `config.source` is not read.

    images: [H, W, 3] uint8 each. labels: train ids [H, W] uint8 each, None together with control=False. ids: what the
    noise of an image is drawn from, its position where not given. model: one that is loaded already.
    Returns: pictures [h, w, 3] uint8 in the order of `images`, by domain. Raises: InputError.
    """
    model = model or diffusion.load(config.diffusion, control=config.control)
    worker = Worker(config, space, model)
    slugs = [goal.slug for goal in worker.goals]
    if config.control and labels is None:
        raise InputError("no labels, and the layout is drawn from them: give them, or set control=False")
    samples = [
        Sample(ids[i] if ids else str(i), image, labels[i] if config.control else None, list(slugs))
        for i, image in enumerate(images)
    ]
    made: dict[tuple[str, str], np.ndarray] = {}
    for size in {worker.size(*sample.image.shape[:2]) for sample in samples}:
        group = [sample for sample in samples if worker.size(*sample.image.shape[:2]) == size]
        for sample, goal, picture, _ in worker.run(group, min(len(group), config.batch_size)):
            made[goal.slug, sample.id] = picture
    return {slug: [made[slug, sample.id] for sample in samples] for slug in slugs}


def shard(text: str) -> tuple[int, int]:
    """(i, n) of this process: the i/n of the configuration, divided further by torchrun. Raises: InputError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise InputError(f"shard '{text}': expected i/n with i from 0 to n - 1, as 0/4 to 3/4 for four processes")
    world = int(os.environ.get("WORLD_SIZE", 1))
    return index * world + int(os.environ.get("RANK", 0)), count * world


def targets(config: TransferConfig) -> tuple[Target, ...]:
    """Folder, prompt and strength of each target domain. Raises: InputError."""
    found = {}
    for name in config.to:
        prompt, strength = zodi.DOMAINS.get(name, (name, zodi.SENTENCE_STRENGTH))
        strength = strength if config.strength is None else config.strength
        slug = re.sub(r"\W+", "-", name.lower()).strip("-")
        if len(slug) > 60:  # file systems stop at 255 bytes
            slug = f"{slug[:50]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        if not 0 < strength <= 1:
            raise InputError(f"strength {strength}: expected more than 0 and at most 1 (published: night 0.9, fog 0.6)")
        if not slug or slug in found:
            raise InputError(f"target domain '{name}' is empty or given twice: name each once ({', '.join(config.to)})")
        found[slug] = Target(slug, prompt + zodi.QUALITY, strength)
    if not found:
        raise InputError("no target domain: name at least one, as in --to night")
    return tuple(found.values())


class Worker:
    """A loaded model with everything that is the same for all frames: settings, prompts, palette."""

    def __init__(self, config: TransferConfig, space: LabelSpace, model: Diffusion) -> None:
        """Raises: InputError on settings that this model cannot follow."""
        given, default = config, model.defaults
        self.config, self.space, self.model = config, space, model
        self.goals = targets(config)
        self.short_side = default.short_side if given.short_side is None else given.short_side
        self.palette = "cityscapes" if config.mode == "reference" else default.palette
        self.limit = config.batch_size
        self.settings = zodi.Sampling(
            strength=1,
            steps=default.steps if given.steps is None else given.steps,
            guidance=default.guidance if given.guidance is None else given.guidance,
            eta=default.eta if given.eta is None else given.eta,
            control_strength=config.control_strength,
            inversion=config.inversion,
        )
        self._check()
        self.negative = diffusion.embed(model, zodi.NEGATIVE_PROMPT)
        self.texts = {goal.slug: diffusion.embed(model, goal.prompt) for goal in self.goals}

    def _check(self) -> None:
        steps, most = self.settings.steps, self.model.scheduler.config.num_train_timesteps - 1
        if not 1 <= steps <= most:
            raise InputError(f"{steps} steps: expected 1 to {most}, the time steps of {self.model.name}")
        for goal in self.goals:
            if self.sampling(goal).walked < 1:
                raise InputError(
                    f"strength {goal.strength} of {steps} steps walks none, and the image would be noise: give a "
                    f"strength of {1 / steps:.3g} or more, or more steps"
                )
        if not 0 <= self.settings.eta <= 1:
            raise InputError(f"eta {self.settings.eta}: expected 0 (DDIM) to 1 (DDPM)")
        if self.limit < 1:
            raise InputError(f"batch size {self.limit}: expected 1 or more")
        if self.config.control:
            names = [name for name in self.space.names if not zodi.colour(name, self.palette)]
            if len(names) == self.space.classes:
                raise InputError(
                    f"no class of '{self.space.name}' ({', '.join(names[:4])}, ...) has a colour in the ControlNet's "
                    f"palette '{self.palette}': map the classes onto cityscapes in dataset.yaml, or use no control"
                )
            if names:
                _log.warning("no colour in palette '%s', drawn black: %s", self.palette, ", ".join(names))

    def sampling(self, goal: Target) -> zodi.Sampling:
        return replace(self.settings, strength=goal.strength)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Working size (height, width) of an image."""
        return zodi.working_size(height, width, self.short_side)

    def run(self, samples: list[Sample], rows: int) -> Iterator[tuple[Sample, Target, np.ndarray, float]]:
        """Make what the samples want, all of one working size, in batches of `rows`, halved when memory runs out.

        Yields: sample, target, picture [h, w, 3] uint8, seconds it took. Raises: InputError out of memory at one row.
        """
        while waiting := [sample for sample in samples if sample.wanted]:
            rows = min(rows, self.limit)
            try:
                yield from self._batch(waiting[:rows], rows)
                continue
            except torch.OutOfMemoryError as error:
                if rows == 1:
                    raise InputError(
                        f"{self.model.device} has too little memory for one image of {waiting[0].image.shape[:2]}: "
                        "give a smaller --short-side, --diffusion.dtype float16, or another device"
                    ) from error
            # outside the handler, which keeps the tensors of the failed batch alive
            self.limit = rows // 2
            _log.warning("out of memory with %d images at once, going on with %d", rows, self.limit)
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _batch(self, samples: list[Sample], rows: int) -> Iterator[tuple[Sample, Target, np.ndarray, float]]:
        size = self.size(*samples[0].image.shape[:2])
        z0 = zodi.encode(self.model, self._stack([zodi.resize(s.image, size) for s in samples], rows))
        hint = None
        if self.config.control:
            drawn = {"palette": self.palette, "reference": self.config.mode == "reference"}
            control = self._stack([zodi.layout(s.label, self.space, size, **drawn) for s in samples], rows)
            hint = zodi.embed_layout(self.model, control)
        for goal in self.goals:
            chosen = [i for i, sample in enumerate(samples) if goal.slug in sample.wanted]
            if not chosen:
                continue
            started = perf_counter()
            index = _fill(chosen, rows)
            pictures = zodi.transfer(
                self.model, z0[index], self.texts[goal.slug], self.negative,
                None if hint is None else hint[index], self.sampling(goal),
                self._noise([samples[i].id for i in index], goal.slug, z0.shape[1:]),
            )  # fmt: skip
            pictures = pictures.permute(0, 2, 3, 1).cpu().numpy()
            seconds = (perf_counter() - started) / len(chosen)
            for row, i in enumerate(chosen):
                picture = pictures[row]
                if self.config.output_size == "source":
                    picture = zodi.resize(picture, samples[i].image.shape[:2])
                samples[i].wanted.remove(goal.slug)
                yield samples[i], goal, picture, seconds

    def _stack(self, pictures: list[np.ndarray], rows: int) -> Tensor:
        """[H, W, 3] uint8 each to [rows, 3, H, W] in [0, 1] on the device."""
        batch = torch.from_numpy(np.stack([pictures[i] for i in _fill(range(len(pictures)), rows)]))
        return batch.to(self.model.device).permute(0, 3, 1, 2).float() / 255

    def _noise(self, ids: list[str], slug: str, shape: tuple[int, ...]) -> zodi.Noise:
        if self.config.mode == "reference":
            draw = zodi.published_noise(self.config.seed, (1, *shape))
            return lambda step: draw(step).expand(len(ids), -1, -1, -1)
        return lambda step: torch.stack([zodi.noise(self.config.seed, id, slug, step, shape) for id in ids])

    def line(self, id: str, goal: Target, size: tuple[int, int], seconds: float, sha256: str) -> dict:
        """One line of the manifest."""
        config, settings = self.config, self.settings
        return {
            "id": id, "domain": goal.slug, "prompt": goal.prompt, "negative_prompt": zodi.NEGATIVE_PROMPT,
            "strength": goal.strength, "seed": config.seed, "mode": config.mode,
            "settings": {
                "inversion": settings.inversion, "control": config.control, "steps": settings.steps,
                "guidance": settings.guidance, "eta": settings.eta, "control_strength": settings.control_strength,
                "palette": self.palette, "working_size": size, "output_size": config.output_size,
                "dtype": config.diffusion.dtype,
            },
            "model": self.model.name, "weights": self.model.hashes, "seconds": round(seconds, 3), "sha256": sha256,
        }  # fmt: skip


def _fill(chosen: Sequence[int], rows: int) -> list[int]:
    """`chosen` with its last one repeated up to `rows`."""
    return [*chosen, *[chosen[-1]] * (rows - len(chosen))]


def _transfer(config: TransferConfig, dataset: Dataset, wanted, worker: Worker, journal: Journal, advance) -> None:
    """Make and write what is `wanted`: domains by frame id."""

    def fail(frame: Frame, error: InputError) -> None:
        journal.add({"id": frame.id, "error": str(error)})
        advance(len(wanted[frame.id]))

    sizes = _sizes(dataset, worker)
    groups: dict[tuple[int, int], deque[Frame]] = {}
    for frame in dataset.frames:
        if not wanted.get(frame.id):
            continue
        if isinstance(sizes[frame.id], InputError):
            fail(frame, sizes[frame.id])
        else:
            groups.setdefault(sizes[frame.id], deque()).append(frame)
    all_sizes = list(sizes.values())
    for size, queue in groups.items():
        rows = min(config.batch_size, all_sizes.count(size))  # of all processes, so that the shapes are the same in each
        while queue:
            batch: dict[str, tuple[Frame, Sample]] = {}
            while queue and len(batch) < min(rows, worker.limit):
                frame = queue.popleft()
                try:
                    batch[frame.id] = frame, _read(config, dataset, frame, wanted[frame.id])
                except InputError as error:
                    fail(frame, error)
            for sample, goal, picture, seconds in worker.run([sample for _, sample in batch.values()], rows):
                sha256 = _write(config, dataset, batch[sample.id][0], journal.out / goal.slug, picture)
                journal.add(worker.line(sample.id, goal, size, seconds, sha256))
                advance()


def _sizes(dataset: Dataset, worker: Worker) -> dict[str, tuple[int, int] | InputError]:
    """Working size of every frame, from the files' headers; the error where that cannot be read."""

    def size(frame: Frame) -> tuple[int, int] | InputError:
        try:
            return worker.size(*frames.image_size(frame.image))
        except InputError as error:
            return error

    with ThreadPoolExecutor(16) as pool:  # thousands of headers, perhaps on a network disk
        return {f.id: s for f, s in zip(dataset.frames, pool.map(size, dataset.frames), strict=True)}


def _read(config: TransferConfig, dataset: Dataset, frame: Frame, wanted: list[str]) -> Sample:
    image = frames.read_image(frame.image)
    label = frames.read_label(frame, dataset.space) if config.control else None
    if label is not None and label.shape != image.shape[:2] and not dataset.transferred:
        raise InputError(
            f"{frame.image} is {image.shape[1]}x{image.shape[0]} and its label {frame.label} "
            f"{label.shape[1]}x{label.shape[0]}: repair or remove them"
        )
    return Sample(frame.id, image, label, list(wanted))


def _write(config: TransferConfig, dataset: Dataset, frame: Frame, root: Path, picture: np.ndarray) -> str:
    """Put label and image into the tree under `root`. Returns: sha256 of the image file."""
    if frame.label is not None:
        _place_label(config, frame.label, frames.place(dataset, frame, root, "label"))
    path = frames.place(dataset, frame, root)
    with runs.atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=3)
        return hashlib.sha256(temporary.read_bytes()).hexdigest()


def _place_label(config: TransferConfig, label: Path, path: Path) -> None:
    """Link or copy. Links are absolute: transferred trees get moved and copied about, the data set they were made
    from stays; a tree that is to leave this machine is written with `labels="copy"`."""
    if config.labels == "copy":
        if not path.exists():
            with runs.atomic(path) as temporary:
                shutil.copyfile(label, temporary)
        return
    goal = label.resolve()
    if path.is_symlink() and path.readlink() == goal:
        return
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.symlink_to(goal)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot link {path} to {goal} ({error.strerror}): choose --labels copy") from error
    finally:
        temporary.unlink(missing_ok=True)

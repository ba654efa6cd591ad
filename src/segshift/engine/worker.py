"""A generator at work on batches of frames: prepared once, then every target domain, redrawn where a gate
asks.

What a batch yields is whole; one that ran out of memory is begun again with half of the rows. A frame that
the generator cannot make, or has no memory for where others had enough, is reported, and its neighbours are
made without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from segshift import runs
from segshift.config import TransferConfig
from segshift.data import frames
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import CITYSCAPES, LabelSpace
from segshift.engine import gate
from segshift.engine.gate import Gate, SourceView, Verdict
from segshift.generators import DiffusionFamily, Domain, FrameError, Generator, Source
from segshift.generators.base import SENTENCE, STRENGTHS, resize
from segshift.generators.editor import instruction
from segshift.methods.zodi import transfer as zodi
from segshift.runs import InputError

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Sample(Source):
    """One source image on its way through the generator."""

    wanted: list[str] = field(default_factory=list)
    """Domains not made yet."""


@dataclass(frozen=True, eq=False)
class Made:
    """One transferred image, and how it was drawn."""

    sample: Sample
    domain: Domain
    """With the strength of this draw."""
    picture: np.ndarray
    """[h, w, 3] uint8."""
    seconds: float
    """Batch time per frame, including redraws; the first domain also carries what is done once."""
    seed: int
    draws: tuple[dict[str, Any], ...] = ()
    """What the gate said of every draw of the frame, in order."""
    seen: SourceView | None = None
    """What the gate's network makes of the source; None without a gate, as the verdict."""
    verdict: Verdict | None = None


@dataclass(frozen=True, eq=False)
class Failed:
    """One image that could not be made."""

    sample: Sample
    domain: Domain
    error: FrameError


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """Samples of one working size."""

    samples: list[Sample]
    prepared: Any
    """The generator's."""
    seen: list[SourceView | None]
    """By sample; None without a gate."""


def target_domains(config: TransferConfig, strengths: Mapping[str, float] = STRENGTHS) -> tuple[Domain, ...]:
    """Folder, prompt and strength of each target domain. strengths: the generator's defaults. Raises:
    InputError."""
    found = {}
    for name in config.to:
        prompt, _ = zodi.DOMAINS.get(name, (name, None))
        strength = strengths.get(name, strengths[SENTENCE]) if config.strength is None else config.strength
        slug = runs.slug(name)
        if not slug or slug in found:
            raise InputError(
                f"target domain '{name}' is empty or given twice: name each once ({', '.join(config.to)})"
            )
        prompt = instruction(name) if config.generator == "editor" else prompt + zodi.QUALITY
        found[slug] = Domain(slug, prompt, strength)
    if not found:
        raise InputError("no target domain: name at least one, as in --to night")
    return tuple(found.values())


def read_sample(
    config: TransferConfig, dataset: Dataset, frame: Frame, wanted: list[str], *, labelled: bool
) -> Sample:
    """A frame with what is `wanted` of it; `labelled`: with its label too. Raises: InputError for files that
    cannot be read, or whose sizes differ."""
    image = frames.read_image(frame.image)
    label = ids = None
    if labelled:
        ids = frames.read_ids(frame, dataset.space)
        label = dataset.space.to_train(ids)
    if label is not None and label.shape != image.shape[:2] and not dataset.transferred:
        raise InputError(
            f"{frame.image} is {image.shape[1]}x{image.shape[0]} and its label {frame.label} "
            f"{label.shape[1]}x{label.shape[0]}: repair or remove them"
        )
    published = config.mode == "reference" and dataset.space == CITYSCAPES
    return Sample(frame.id, image, label, ids if published else None, wanted=list(wanted))


class Worker:
    """A generator with everything that is the same for all frames: settings, domains, gate."""

    def __init__(self, config: TransferConfig, space: LabelSpace, model: Generator | DiffusionFamily) -> None:
        """Raises: InputError on settings that this generator cannot follow."""
        self.config, self.space = config, space
        self.targets = target_domains(
            config, model.card.strengths if isinstance(model, DiffusionFamily) else STRENGTHS
        )
        self.limit, self.made = config.batch_size, False
        self.gate: Gate | None = None
        if isinstance(model, DiffusionFamily):
            model = zodi.ZoDiGenerator(model, config, space, self.targets)
        self.generator: Generator = model
        for target in self.targets:
            for attempt in (0, self.tries - 1):
                self.generator.check(self.drawn(target, attempt), attempt)
        if config.gate and config.gate.require_movement and not self.generator.measures_movement:
            raise InputError(
                f"--gate.require-movement needs a diffusion model, and {self.generator.name} is none: leave "
                "it out"
            )

    @property
    def tries(self) -> int:
        """Draws of a frame at most."""
        return self.config.gate.tries if self.config.gate else 1

    def drawn(self, target: Domain, attempt: int) -> Domain:
        """The domain at the strength of a frame's draw 0, 1, ..."""
        factor = self.config.gate.strength_factor if self.config.gate else 1
        return replace(target, strength=target.strength * factor**attempt)

    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        """What the generator leaves of an image [H, W, 3] uint8 without any change of domain, [h, w, 3] uint8
        at the working size. Raises: InputError out of memory."""
        try:
            return self.generator.reconstruct(image)
        except torch.OutOfMemoryError as error:
            raise self._too_little(image) from error

    def _too_little(self, image: np.ndarray) -> FrameError:
        cure = (
            "" if self.config.custom_generator else "--diffusion.dtype float16, --diffusion.offload parts, "
        )
        return FrameError(
            f"{self.generator.device} has too little memory for one image of {image.shape[:2]}: "
            f"give a smaller --short-side, {cure}or another device"
        )

    def run(
        self, samples: list[Sample], rows: int, asked: Callable[[], bool] = lambda: False
    ) -> Iterator[Made | Failed]:
        """Make what the samples want, all of one working size, in batches of `rows`, halved when memory runs
        out; until it is `asked` to end, between two domains of a batch.

        Raises: InputError out of memory at one row, before any image is made.
        """
        while not asked() and (waiting := [sample for sample in samples if sample.wanted]):
            rows = min(rows, self.limit)
            try:
                yield from self._batch(waiting[:rows], rows, asked)
                continue
            except torch.OutOfMemoryError as error:
                if rows == 1 and not self.made:
                    raise self._too_little(waiting[0].image) from error
            # outside the handler, which keeps the tensors of the failed batch alive
            if self.generator.device.type == "cuda":
                torch.cuda.empty_cache()
            if rows > 1:
                self.limit = rows // 2
                _log.warning("out of memory with %d images at once, going on with %d", rows, self.limit)
                continue
            yield from self._failed(waiting[0])

    def _failed(self, sample: Sample) -> Iterator[Failed]:
        """What one sample still wants, which there is no memory for."""
        wanted, sample.wanted = set(sample.wanted), []
        for target in self.targets:
            if target.slug in wanted:
                yield Failed(sample, target, self._too_little(sample.image))

    def run_all(self, samples: list[Sample]) -> Iterator[Made | Failed]:
        """`run` for samples of any sizes, in batches as large as the configuration's at most."""
        by_size: dict[tuple[int, int], list[Sample]] = {}
        for sample in samples:
            by_size.setdefault(self.generator.size(*sample.image.shape[:2]), []).append(sample)
        for group in by_size.values():
            yield from self.run(group, min(len(group), self.config.batch_size))

    def _batch(self, samples: list[Sample], rows: int, asked: Callable[[], bool]) -> Iterator[Made | Failed]:
        started = perf_counter()
        prepared = self.generator.prepare(samples, rows)
        batch = PreparedBatch(
            samples, prepared, [self.gate.look(s.image, s.truth) if self.gate else None for s in samples]
        )
        for target in self.targets:
            chosen = [i for i, sample in enumerate(samples) if target.slug in sample.wanted]
            if not chosen:
                continue
            if asked():
                return
            best = self._best(batch, target, chosen)
            seconds = (perf_counter() - started) / len(chosen)
            for i in chosen:
                samples[i].wanted.remove(target.slug)
                yield self._finished(best[i], seconds)
            started = perf_counter()

    def _finished(self, one: Made | Failed, seconds: float) -> Made | Failed:
        if isinstance(one, Failed):
            return one
        self.made = True
        picture = one.picture
        if self.config.output_size == "source":
            picture = resize(picture, one.sample.image.shape[:2])
        return replace(one, picture=picture, seconds=seconds)

    def _best(self, batch: PreparedBatch, target: Domain, chosen: list[int]) -> dict[int, Made | Failed]:
        """The chosen samples' best draws: the first that passes the gate, or the one that fails it least."""
        before: dict[int, float] = {}
        if self.gate and self.generator.measures_movement:
            before = dict(
                zip(chosen, self.generator.movement(batch.prepared, chosen, target, None), strict=True)
            )
        best: dict[int, Made | Failed] = {}
        waiting = chosen
        for attempt in range(self.tries if self.gate else 1):
            for i, made in self._draw(batch, target, waiting, attempt, before).items():
                best[i] = _better(best.get(i), made)
            waiting = [i for i in waiting if not _settled(best[i])]
            if not waiting:
                break
        return best

    def _draw(
        self, batch: PreparedBatch, target: Domain, chosen: list[int], attempt: int, before: dict[int, float]
    ) -> dict[int, Made | Failed]:
        """One draw of each chosen sample. before: movement of their source images, where the generator can
        tell."""
        domain = self.drawn(target, attempt)
        seeds = [gate.redraw_seed(self.config.seed, batch.samples[i].id, attempt) for i in chosen]
        try:
            pictures = self.generator.generate(batch.prepared, chosen, domain, seeds)
        except FrameError as error:
            if len(chosen) == 1:
                return {i: Failed(batch.samples[i], domain, error) for i in chosen}
            alone = (self._draw(batch, target, [i], attempt, before) for i in chosen)
            return {i: made for one in alone for i, made in one.items()}
        moved: Sequence[float | None] = [None] * len(chosen)
        if before:
            after = self.generator.movement(batch.prepared, chosen, domain, pictures)
            moved = [gap - before[i] for i, gap in zip(chosen, after, strict=True)]
        made: dict[int, Made | Failed] = {}
        for i, picture, seed, movement in zip(chosen, pictures, seeds, moved, strict=True):
            one = Made(batch.samples[i], domain, picture, 0.0, seed)
            if self.gate and (seen := batch.seen[i]):
                verdict = self.gate.judge(seen, picture, target.slug, movement)
                draws = (gate.draw(seed, domain.strength, verdict),)
                one = replace(one, seen=seen, verdict=verdict, draws=draws)
            made[i] = one
        return made

    def line(self, made: Made, size: tuple[int, int], sha256: str | None) -> dict[str, Any]:
        """One line of the manifest. sha256: of the image file; None where there is none."""
        domain, generator = made.domain, self.generator
        record = {
            "id": made.sample.id,
            "domain": domain.slug,
            "prompt": domain.prompt,
            "negative_prompt": generator.negative_prompt,
            "strength": domain.strength,
            "seed": made.seed,
            "mode": self.config.mode,
            "settings": generator.settings(size, self.config.output_size),
            "model": generator.name,
            "weights": generator.hashes,
            "seconds": round(made.seconds, 3),
            "sha256": sha256,
        }
        if self.gate and made.seen and made.verdict:
            record["gate"] = self.gate.record(made.seen, made.verdict, domain.slug, made.draws)
        return record


def _better(before: Made | Failed | None, now: Made | Failed) -> Made | Failed:
    """The better of a frame's draws so far and a new one, with what the gate said of all; a failure counts
    for nothing."""
    if before is None or isinstance(before, Failed):
        return now
    if isinstance(now, Failed) or before.verdict is None or now.verdict is None:
        return before
    best = now if now.verdict.rank > before.verdict.rank else before
    return replace(best, draws=(*before.draws, *now.draws))


def _settled(one: Made | Failed) -> bool:
    return isinstance(one, Made) and (one.verdict is None or one.verdict.passed)

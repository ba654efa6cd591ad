"""A diffusion model at work on batches of frames: encode once, then every target domain, redrawn where a gate asks.

All batches of one working size have the same number of rows, the last one filled up with repeats, and so have those of
redraws: a frame's picture does not depend on its neighbours. What a batch yields is whole; one that ran out of memory
is begun again with half of the rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from segshift import diffusion, gate, runs
from segshift.config import TransferConfig
from segshift.diffusion import Diffusion
from segshift.gate import Gate, Seen, Verdict
from segshift.labels import LabelSpace
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
    """Train ids [H, W] uint8; None where neither the layout nor a gate uses them."""
    wanted: list[str] = field(default_factory=list)
    """Domains not made yet."""
    label_ids: np.ndarray | None = None
    """Cityscapes' own ids [H, W] that the train ids were made from; None in the default mode and for other data."""


@dataclass(frozen=True, eq=False)
class Made:
    """One transferred image, and how it was drawn."""

    sample: Sample
    goal: Target
    picture: np.ndarray
    """[h, w, 3] uint8."""
    seconds: float
    """That its batch took, by frame, redraws included, and for the first domain what is done once."""
    seed: int
    strength: float
    draws: tuple[dict, ...] = ()
    """What the gate said of every draw of the frame, in order."""
    seen: Seen | None = None
    """What the gate's network makes of the source; None without a gate, as the verdict."""
    verdict: Verdict | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one working size, encoded; rows after the last sample repeat it."""

    samples: list[Sample]
    rows: int
    z0: Tensor
    """[rows,C,h,w]."""
    hint: Tensor | None
    """[rows,C0,h,w]; None without the ControlNet."""
    seen: list[Seen | None]
    """By sample; None without a gate."""


def targets(config: TransferConfig) -> tuple[Target, ...]:
    """Folder, prompt and strength of each target domain. Raises: InputError."""
    found = {}
    for name in config.to:
        prompt, strength = zodi.DOMAINS.get(name, (name, zodi.SENTENCE_STRENGTH))
        strength = strength if config.strength is None else config.strength
        slug = runs.slug(name)
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
        self.gate: Gate | None = None
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
        self.empty = diffusion.embed(model, "") if config.gate else None
        self.texts = {goal.slug: diffusion.embed(model, goal.prompt) for goal in self.goals}

    def _check(self) -> None:
        steps, most = self.settings.steps, self.model.scheduler.config.num_train_timesteps - 1
        if not 1 <= steps <= most:
            raise InputError(f"{steps} steps: expected 1 to {most}, the time steps of {self.model.name}")
        for goal in self.goals:
            if self.sampling(goal.strength).walked < 1:
                raise InputError(
                    f"strength {goal.strength} of {steps} steps walks none, and the image would be noise: give a "
                    f"strength of {1 / steps:.3g} or more, or more steps"
                )
            if self.sampling(lowest := self.strength(goal, self.tries - 1)).walked < 1:
                raise InputError(
                    f"strength {lowest:.3g}, of draw {self.tries} of '{goal.slug}', walks none of {steps} steps: give "
                    "fewer gate.tries, a gate.strength_factor nearer to 1, or more steps"
                )
        if self.config.control:
            names = [name for name in self.space.names if not zodi.colour(name, self.palette)]
            if len(names) == self.space.classes:
                raise InputError(
                    f"no class of '{self.space.name}' ({', '.join(names[:4])}, ...) has a colour in the ControlNet's "
                    f"palette '{self.palette}': map the classes onto cityscapes in dataset.yaml, or use no control"
                )
            if names:
                _log.warning("no colour in palette '%s', drawn black: %s", self.palette, ", ".join(names))

    @property
    def tries(self) -> int:
        """Draws of a frame at most."""
        return self.config.gate.tries if self.config.gate else 1

    def strength(self, goal: Target, attempt: int) -> float:
        """Noise strength of a frame's draw 0, 1, ..."""
        return goal.strength * (self.config.gate.strength_factor if self.config.gate else 1) ** attempt

    def sampling(self, strength: float) -> zodi.Sampling:
        return replace(self.settings, strength=strength)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Working size (height, width) of an image."""
        return zodi.working_size(height, width, self.short_side)

    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        """D(E(x)) [h, w, 3] uint8 at the working size, of an image [H, W, 3] uint8. Raises: InputError out of memory."""
        try:
            z0 = zodi.encode(self.model, self._stack([zodi.resize(image, self.size(*image.shape[:2]))], 1))
            return _pictures(zodi.decode(self.model, z0))[0]
        except torch.OutOfMemoryError as error:
            raise self._too_little(image) from error

    def _too_little(self, image: np.ndarray) -> InputError:
        return InputError(
            f"{self.model.device} has too little memory for one image of {image.shape[:2]}: "
            "give a smaller --short-side, --diffusion.dtype float16, or another device"
        )

    def run(self, samples: list[Sample], rows: int) -> Iterator[Made]:
        """Make what the samples want, all of one working size, in batches of `rows`, halved when memory runs out.

        Raises: InputError out of memory at one row.
        """
        while waiting := [sample for sample in samples if sample.wanted]:
            rows = min(rows, self.limit)
            try:
                yield from self._batch(waiting[:rows], rows)
                continue
            except torch.OutOfMemoryError as error:
                if rows == 1:
                    raise self._too_little(waiting[0].image) from error
            # outside the handler, which keeps the tensors of the failed batch alive
            self.limit = rows // 2
            _log.warning("out of memory with %d images at once, going on with %d", rows, self.limit)
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def run_all(self, samples: list[Sample]) -> Iterator[Made]:
        """`run` for samples of any sizes, in batches as large as the configuration's at most."""
        by_size: dict[tuple[int, int], list[Sample]] = {}
        for sample in samples:
            by_size.setdefault(self.size(*sample.image.shape[:2]), []).append(sample)
        for group in by_size.values():
            yield from self.run(group, min(len(group), self.config.batch_size))

    def _batch(self, samples: list[Sample], rows: int) -> Iterator[Made]:
        started = perf_counter()
        size = self.size(*samples[0].image.shape[:2])
        z0 = zodi.encode(self.model, self._stack([zodi.resize(s.image, size) for s in samples], rows))
        hint = None
        if self.config.control:
            drawn = {"palette": self.palette, "reference": self.config.mode == "reference"}
            layouts = [zodi.layout(s.label, self.space, size, **drawn, label_ids=s.label_ids) for s in samples]
            hint = zodi.embed_layout(self.model, self._stack(layouts, rows))
        batch = Batch(samples, rows, z0, hint, [self.gate.look(s.image, s.label) if self.gate else None for s in samples])
        for goal in self.goals:
            chosen = [i for i, sample in enumerate(samples) if goal.slug in sample.wanted]
            if not chosen:
                continue
            best = self._best(batch, goal, chosen)
            seconds = (perf_counter() - started) / len(chosen)
            for i in chosen:
                picture = best[i].picture
                if self.config.output_size == "source":
                    picture = zodi.resize(picture, samples[i].image.shape[:2])
                samples[i].wanted.remove(goal.slug)
                yield replace(best[i], picture=picture, seconds=seconds)
            started = perf_counter()

    def _best(self, batch: Batch, goal: Target, chosen: list[int]) -> dict[int, Made]:
        """The chosen samples' best draws: the first that passes the gate, or the one that fails it least."""
        gap_of: dict[int, float] = {}
        if self.gate:
            index = _fill(chosen, batch.rows)
            gap_of = dict(zip(index, self._gaps(batch.z0[index], batch, goal, index), strict=True))
        best: dict[int, Made] = {}
        waiting = chosen
        for attempt in range(self.tries if self.gate else 1):
            for i, made in zip(waiting, self._draw(batch, goal, waiting, attempt, gap_of), strict=True):
                if not self.gate:
                    best[i] = made
                    continue
                before = best.get(i)
                told = (*(before.draws if before else ()), gate.draw(made.seed, made.strength, made.verdict))
                better = before is None or made.verdict.rank > before.verdict.rank
                best[i] = replace(made if better else before, draws=told)
            waiting = [i for i in waiting if self.gate and not best[i].verdict.passed]
            if not waiting:
                break
        return best

    def _draw(
        self, batch: Batch, goal: Target, chosen: list[int], attempt: int, gap_of: dict[int, float]
    ) -> Iterator[Made]:
        """One draw of each chosen sample. gap_of: denoising gap of their source images, for the gate."""
        index, strength = _fill(chosen, batch.rows), self.strength(goal, attempt)
        ids = [batch.samples[i].id for i in index]
        seeds = [gate.redraw_seed(self.config.seed, id, attempt) for id in ids]
        drawn = zodi.transfer(
            self.model, batch.z0[index], self.texts[goal.slug], self.negative,
            None if batch.hint is None else batch.hint[index], self.sampling(strength),
            self._noise(ids, seeds, goal.slug, batch.z0.shape[1:]),
        )  # fmt: skip
        pictures = _pictures(drawn)
        gaps = self._gaps(zodi.encode(self.model, drawn.float() / 255), batch, goal, index) if self.gate else None
        for row, i in enumerate(chosen):
            made = Made(batch.samples[i], goal, pictures[row], 0.0, seeds[row], strength)
            if self.gate:
                verdict = self.gate.judge(batch.seen[i], pictures[row], goal.slug, gaps[row] - gap_of[i])
                made = replace(made, seen=batch.seen[i], verdict=verdict)
            yield made

    def _gaps(self, z0: Tensor, batch: Batch, goal: Target, index: list[int]) -> list[float]:
        """The denoising gap of each row: z0 are the latents of the samples `index`, or of draws of them."""
        noise = torch.stack(
            [zodi.noise(self.config.seed, batch.samples[i].id, "movement", 0, z0.shape[1:]) for i in index]
        )
        return gate.denoising_gap(
            self.model, z0, self.texts[goal.slug], self.empty, None if batch.hint is None else batch.hint[index],
            noise.to(z0), self.config.control_strength,
        ).tolist()  # fmt: skip

    def _stack(self, pictures: list[np.ndarray], rows: int) -> Tensor:
        """[H, W, 3] uint8 each to [rows, 3, H, W] in [0, 1] on the device."""
        batch = torch.from_numpy(np.stack([pictures[i] for i in _fill(range(len(pictures)), rows)]))
        return batch.to(self.model.device).permute(0, 3, 1, 2).float() / 255

    def _noise(self, ids: list[str], seeds: list[int], slug: str, shape: tuple[int, ...]) -> zodi.Noise:
        if self.config.mode == "reference":  # one seed is one stream, and every image of that seed gets its numbers
            streams = {seed: zodi.published_noise(seed, (1, *shape)) for seed in seeds}

            def published(step: int) -> Tensor:
                noises = {seed: draw(step) for seed, draw in streams.items()}
                return torch.cat([noises[seed] for seed in seeds])

            return published
        keys = list(zip(seeds, ids, strict=True))
        return lambda step: torch.stack([zodi.noise(seed, id, slug, step, shape) for seed, id in keys])

    def line(self, made: Made, size: tuple[int, int], sha256: str | None) -> dict:
        """One line of the manifest. sha256: of the image file; None where there is none."""
        config, settings = self.config, self.settings
        told = {
            "id": made.sample.id, "domain": made.goal.slug, "prompt": made.goal.prompt,
            "negative_prompt": zodi.NEGATIVE_PROMPT, "strength": made.strength, "seed": made.seed, "mode": config.mode,
            "settings": {
                "inversion": settings.inversion, "control": config.control, "steps": settings.steps,
                "guidance": settings.guidance, "eta": settings.eta, "control_strength": settings.control_strength,
                "palette": self.palette, "working_size": size, "output_size": config.output_size,
                "dtype": config.diffusion.dtype,
            },
            "model": self.model.name, "weights": self.model.hashes, "seconds": round(made.seconds, 3), "sha256": sha256,
        }  # fmt: skip
        return told | {"gate": self.gate.record(made.seen, made.verdict, made.goal.slug, made.draws)} if self.gate else told


def _pictures(images: Tensor) -> np.ndarray:
    """[B,3,h,w] uint8 to [B, h, w, 3] on the CPU."""
    return images.permute(0, 2, 3, 1).cpu().numpy()


def _fill(chosen: Sequence[int], rows: int) -> list[int]:
    """`chosen` with its last one repeated up to `rows`."""
    return [*chosen, *[chosen[-1]] * (rows - len(chosen))]

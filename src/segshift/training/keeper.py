"""What a training does between steps: the log, validation, the target's watch, checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch.optim import Optimizer

from segshift import records, runs
from segshift.config import Select, TrainConfig
from segshift.methods.base import Method
from segshift.training import checkpoints, session, tracking, validation
from segshift.training.data import TrainingData
from segshift.training.validation import Validation
from segshift.training.watch import Watch

_log = logging.getLogger(__name__)


class Keeper:
    """Logs, validates and saves where it is time."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        method: Method,
        optimizers: dict[str, Optimizer],
        accelerator: Accelerator,
        validated: Validation,
        watch: Watch | None,
        data: TrainingData,
    ):
        """watch: of the target, where there is one. data: what is trained on."""
        self.space, self.digest = data.source.space, data.digest()
        self.config, self.out, self.method, self.optimizers = config, out, method, optimizers
        self.accelerator, self.validation, self.watch = accelerator, validated, watch
        self.tracker: tracking.Tracker | None = None

    @contextmanager
    def log(self, start: int) -> Iterator[None]:
        """metrics.jsonl, without what was logged after the checkpoint that is continued from, and the
        tracker."""
        self.write: Callable[[dict[str, Any]], None] = lambda line: None
        if not self.accelerator.is_main_process:
            yield
            return
        following = tracking.following(self.config, self.out, start)
        with session.log(self.out, start) as write, following as self.tracker:

            def write_and_tell(line: dict[str, Any]) -> None:
                write(line)
                if self.tracker is not None:
                    self.tracker.log(line)

            self.write = write_and_tell
            yield

    def after(self, step: int, line: dict[str, Any], leaving: bool) -> None:
        """Log a step; validate and save where it is time. leaving: save, for the process ends here."""
        self.write(line)
        last = step == self.config.steps
        judging = bool(self.validation.sets or self.watch) and (
            last or step % self.config.validate_every == 0
        )
        saving = last or leaving or step % self.config.checkpoint_every == 0
        if judging or saving:
            session.require_finite(self.method, step)
        if judging and self.validation.sets:
            self._validate(step)
        if judging and self.watch is not None:
            self._watch(step, self.watch, last)
        if judging and self.tracker is not None:
            self._show(step, self.tracker)
        if last and self.accelerator.is_main_process:
            self._advise()
        if saving and self.accelerator.is_main_process:
            state = session.state(self.optimizers, self.accelerator, self.digest) | {
                "best": self.validation.best,
                "peaks": None if self.watch is None else self.watch.peaks.tolist(),
            }
            if self.config.select == "last":
                checkpoints.save_best(self.out, step, self.method, None)
            checkpoints.save(self.out, step, self.method, state)

    def _validate(self, step: int) -> None:
        found, scores = self.validation.scores(self.method)
        self.write({"step": step, "score": scores.get(self.config.select), "validation": found})
        for rule, score in self.validation.improved(scores):
            self._save_best(step, score, rule)

    def begin(self) -> None:
        """Before the first step: a network that is trained already counts as step 0 of the target's watch."""
        if self.watch is not None and self.watch.segments_source(self.method):
            self._watch(0, self.watch, last=False)

    def _watch(self, step: int, watch: Watch, last: bool) -> None:
        seen = watch.look(self.method)
        self.write({"step": step, "target": seen.record()})
        if not seen.lost:
            self._save_best(step, None, "target")
        elif last and self.accelerator.is_main_process:
            _log.warning(
                "the training has lost %s on the target: found there before, now predicted less than an "
                "eighth as often as in the source's labels. --checkpoint target predicts with the last step "
                "that had not; compare both with a network trained on the source alone",
                ", ".join(seen.lost),
            )

    def _advise(self) -> None:
        """Warn of what the method observed in all steps."""
        seen = [
            line["observed"]
            for line in runs.read_lines(self.out / "metrics.jsonl", records.LOGGED)
            if "observed" in line
        ]
        if not seen:
            return
        advice = self.method.advice({name: mean(line[name] for line in seen) for name in seen[0]})
        if advice is not None:
            _log.warning(advice)

    def _show(self, step: int, tracker: tracking.Tracker) -> None:
        """Image, label and prediction side by side, of the first validation set; of the target, without
        labels, where there is none."""
        labelled = bool(self.validation.sets)
        if labelled:
            name, dataset = next(iter(self.validation.sets.items()))
            frames, pictures = list(dataset.frames), self.validation.pictures[name]
        else:
            assert self.watch is not None
            name, frames, pictures = "target", self.watch.target, self.watch.of_target
        self.method.eval()
        found = validation.predicted(self.method, frames[: tracking.PICTURES], pictures, self.accelerator)
        shown = [
            [
                pictures.image(frame).permute(1, 2, 0).numpy(),
                *([self.space.paint(pictures.label(frame).numpy())] if labelled else []),
                self.space.paint(prediction),
            ]
            for frame, prediction in found
        ]
        self.method.train()
        tracker.show(name, step, [np.concatenate(parts, 1) for parts in shown])

    def _save_best(self, step: int, score: float | None, rule: Select) -> None:
        if self.accelerator.is_main_process:
            name = "best" if rule == self.config.select else rule
            checkpoints.save_best(self.out, step, self.method, score, name)

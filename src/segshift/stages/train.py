"""Train: a segmentation network on labelled source frames, alone, with their transferred images, or with a
target's.

The run folder is described in `segshift.training.checkpoints`. The same command continues a run where it was
stopped; on one CPU the result is bitwise that of a run which was not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch.optim import Optimizer

from segshift import outputs, runs
from segshift.config import Select, TrainConfig
from segshift.data import frames
from segshift.data import samples as batches
from segshift.methods import METHODS
from segshift.methods.base import Method
from segshift.outputs import Output
from segshift.runs import InputError
from segshift.settings import option
from segshift.training import checkpoints, loop, session, sizes, tracking, validation
from segshift.training import data as training_data
from segshift.training.data import TrainingData
from segshift.training.validation import Validation
from segshift.training.watch import Watch

_log = logging.getLogger(__name__)

FREE = ("workers", "device", "checkpoint_every", "steps", "log")
"""Fields that may change when a run is continued. More `steps` extend it: what is left follows the longer
schedule.
"""


def train(config: TrainConfig, out: str | Path) -> Path:
    """Train as `config` says, or continue; returns `out`, which `segshift predict` reads.

    Raises: InputError for settings that do not fit together, data that does not, and losses that are not
    finite.
    """
    source = frames.load(config.source)
    config, told = sizes.chosen(config, source)
    _check(config)
    output = outputs.open_output(
        out, "train", config, free=FREE, begun=lambda out: checkpoints.last_step(out) > 0
    )
    tracking.require(config)
    accelerator = session.accelerator(config.device, config.precision, config.batch_size, config.accumulate)
    data = training_data.read(config, source)
    if told is not None and accelerator.is_main_process:
        Console(soft_wrap=True, highlight=False).print(told, markup=False)
    with session.alone(output.path) if accelerator.is_main_process else nullcontext():
        return _train(config, output, accelerator, data)


def _train(config: TrainConfig, output: Output, accelerator: Accelerator, data: TrainingData) -> Path:
    out = output.path
    assert config.steps is not None
    start = session.start(out, config.steps, accelerator.process_index)
    before = runs.read_config(out / "config.json", TrainConfig).steps if start else config.steps
    if start == config.steps:
        if before != config.steps and accelerator.is_main_process:
            output.claim()  # it ends here, earlier than it was meant to
        return out

    set_seed(config.seed)  # every process builds the same network
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    # A resumed run restores everything from its checkpoint.
    network = replace(config.network, pretrained=False, weights=None) if start else config.network
    method = checkpoints.method_of(replace(config, network=network), data.source.space, begin=not start)
    method.to(accelerator.device).train()
    optimizers = {
        player: accelerator.prepare_optimizer(
            session.optimizer(
                method.parameter_groups(player),
                config.lr,
                config.weight_decay,
                config.momentum if config.optimizer == "sgd" else None,
            )
        )
        for player in method.networks
    }
    crop, steps = config.crop, config.steps
    assert crop is not None and steps is not None
    state: dict[str, Any] = {}
    if start:
        told = f"{len(data.pairs)} labelled" + (
            f", {len(data.target.frames)} of the target" if data.target else ""
        )
        state = session.resume(out, start, method, optimizers, accelerator, data.digest(), told)
    pictures = {
        name: data.pictures(dataset, validation.size_of(name, config))
        for name, dataset in data.validation.items()
    }
    validated = Validation(data.validation, pictures, data.kept, accelerator, state.get("best", {}))
    source, targets, watch = data.pictures(data.source), None, None
    if data.target is not None:
        targets = (data.target.frames, data.pictures(data.target, config.target_size))
        watched = (source, targets[1])
        watch = Watch(data.source, data.target, watched, data.kept, accelerator, state.get("peaks"))
    keeper = _Keeper(config, out, method, optimizers, accelerator, validated, watch, data)
    samples = batches.Samples(
        data.pairs,
        source,
        crop=crop,
        jitter=config.jitter,
        seed=config.seed,
        targets=targets,
        rare=training_data.rare_classes(config, data),
    )
    first = accelerator.is_main_process
    if first:  # everything that can be wrong has been looked at
        output.claim()
        checkpoints.describe(out, data.source.space, accelerator.device)
    micro_batches = session.micro_batches(
        samples, start, steps, config.batch_size, config.accumulate, config.workers, accelerator
    )
    title = f"train {config.method} on {accelerator.device.type}"
    with session.shown(title, steps, start, first) as tell, keeper.log(start), session.explained(out):
        if before != config.steps:
            keeper.write({"step": start, "steps": config.steps, "steps_before": before})
        if not start:
            keeper.begin()

        def done(step: int, line: dict[str, Any]) -> None:
            keeper.after(step, line)
            tell(line)

        loop.fit(
            method,
            optimizers,
            micro_batches,
            accelerator,
            start=start,
            steps=steps,
            accumulate=config.accumulate,
            seed=config.seed,
            factor=lambda step: loop.learning_rate(step, steps, config.warmup, config.poly_power),
            frames_of=lambda step: samples.ids(
                range(step * config.batch_size, (step + 1) * config.batch_size)
            ),
            done=done,
        )
    accelerator.wait_for_everyone()
    if first and accelerator.device.type == "cuda":
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated(accelerator.device) / 2**30:.1f} GiB")
    return out


def _check(config: TrainConfig) -> None:
    """Raises: InputError for settings that do not fit together."""
    _check_method(config)
    validation.check(config)
    assert config.size is not None and config.crop is not None
    for size in (config.size, config.target_size or config.size):
        if any(c > s for c, s in zip(config.crop, size, strict=True)):
            raise InputError(
                f"--crop {config.crop} is larger than the size {size}: take a crop of at most that size"
            )


def _check_method(config: TrainConfig) -> None:
    """Raises: InputError when the method lacks a kind of data, or is given one that it does not use."""
    spec = METHODS[config.method]
    needs = {
        "transferred": "transferred images" if spec.transferred else None,
        "target": "an unlabelled target data set" if spec.target else None,
        "from_run": f"a run of method {spec.from_run}" if spec.from_run else None,
    }
    for name, what in needs.items():
        given = getattr(config, name)
        if what and not given:
            raise InputError(
                f"--method {spec.name} needs {what}: name one as {option(name)}, or take another method"
            )
        if given and not what:
            raise InputError(
                f"--method {spec.name} does not use {option(name)}, got {given}: leave it out, or "
                "take another method"
            )
    if spec.transferred and config.more_sources:
        raise InputError(
            f"--method {spec.name} pairs every source frame and takes no --more-sources: name the trees as "
            "--transferred"
        )
    if spec.network not in (None, config.network.name):
        raise InputError(
            f"--method {spec.name} trains one network and --network.name is {config.network.name}: take "
            f"--network.name {spec.network}"
        )


class _Keeper:
    """What happens between steps: the log, validation, and checkpoints."""

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

            def both(line: dict[str, Any]) -> None:
                write(line)
                if self.tracker is not None:
                    self.tracker.log(line)

            self.write = both
            yield

    def after(self, step: int, line: dict[str, Any]) -> None:
        """Log a step; validate and save where it is time."""
        self.write(line)
        last = step == self.config.steps
        judging = bool(self.validation.sets or self.watch) and (
            last or step % self.config.validate_every == 0
        )
        saving = last or step % self.config.checkpoint_every == 0
        if judging or saving:
            session.require_finite(self.method, step)
        if judging and self.validation.sets:
            self._validate(step)
        if judging and self.watch is not None:
            self._look(step, self.watch, last)
        if judging and self.tracker is not None:
            self._show(step, self.tracker)
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
            self._look(0, self.watch, last=False)

    def _look(self, step: int, watch: Watch, last: bool) -> None:
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

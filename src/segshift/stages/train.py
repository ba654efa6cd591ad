"""Train: a segmentation network on labelled source frames, alone, with their transferred images, or with a
target's.

The run folder is described in `segshift.training.checkpoints`. The same command continues a run where it was
stopped; on one CPU the result is bitwise that of a run which was not.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader

from segshift import execution, outputs, records, runs
from segshift.config import Select, TrainConfig
from segshift.data import frames
from segshift.data import samples as batches
from segshift.execution.device import pick
from segshift.methods import METHODS
from segshift.methods.base import Method
from segshift.outputs import Output
from segshift.runs import InputError
from segshift.settings import option
from segshift.training import checkpoints, loop, sizes, tracking, validation
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
    accelerator = _accelerator(config)
    data = training_data.read(config, source)
    if told is not None and accelerator.is_main_process:
        Console(soft_wrap=True, highlight=False).print(told, markup=False)
    with _alone(output.path) if accelerator.is_main_process else nullcontext():
        return _train(config, output, accelerator, data)


def _train(config: TrainConfig, output: Output, accelerator: Accelerator, data: TrainingData) -> Path:
    out = output.path
    start = broadcast_object_list([checkpoints.last_step(out)])[0]
    if start != (here := checkpoints.last_step(out)):
        raise InputError(
            f"{out} is at step {here} where process {accelerator.process_index} runs and at step {start} "
            "where the first one does: name a folder that all of them share"
        )
    if start > config.steps:
        raise InputError(f"{out} is at step {start}: give --steps of {start} or more, or name a new folder")
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
        player: accelerator.prepare_optimizer(_optimizer(config, method.parameter_groups(player)))
        for player in method.networks
    }
    crop, steps = config.crop, config.steps
    assert crop is not None and steps is not None
    state = _resume(out, start, method, optimizers, accelerator, data) if start else {}
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
    schedule = batches.Schedule(
        start,
        steps,
        config.batch_size,
        config.accumulate,
        accelerator.process_index,
        accelerator.num_processes,
    )
    first = accelerator.is_main_process
    if first:  # everything that can be wrong has been looked at
        output.claim()
        checkpoints.describe(out, data.source.space, accelerator.device)
    with execution.starting_workers():
        micro_batches = iter(
            DataLoader(
                samples,
                batch_sampler=schedule,
                num_workers=config.workers,
                collate_fn=batches.collate,
                worker_init_fn=_one_thread,
                pin_memory=accelerator.device.type == "cuda",
            )
        )
    show = (
        runs.progress(f"train {config.method} on {accelerator.device.type}", steps, done=start)
        if first
        else nullcontext()
    )
    with show as bar, keeper.log(start), _explained(out):
        if before != config.steps:
            keeper.write({"step": start, "steps": config.steps, "steps_before": before})
        if not start:
            keeper.begin()

        def done(step: int, line: dict[str, Any]) -> None:
            keeper.after(step, line)
            if bar is not None:
                total = sum(value for name, value in line.items() if name not in ("step", "lr", "seconds"))
                bar.describe(f"train {config.method} on {accelerator.device.type}, loss {total:.3f}")
                bar.advance()

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


def _accelerator(config: TrainConfig) -> Accelerator:
    """Raises: InputError when device or tracker are not there, or the device does not fit the settings."""
    pick(config.device)
    tracking.require(config)
    AcceleratorState._reset_state(True)  # one process may train twice, with another precision
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
    )
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("--precision fp16 needs a GPU and this is a CPU: take bf16 or no")
    parts = config.accumulate * accelerator.num_processes
    if config.batch_size % parts:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be divided into {config.accumulate} micro-batches on "
            f"{accelerator.num_processes} processes: take a multiple of {parts}"
        )
    return accelerator


def _optimizer(config: TrainConfig, groups: list[tuple[list[torch.nn.Parameter], float]]) -> Optimizer:
    """`groups`: parameters, and the factor on `lr` that they learn with."""
    made_of = [
        {"params": list(parameters), "initial_lr": config.lr * factor} for parameters, factor in groups
    ]
    if config.optimizer == "sgd":
        return SGD(made_of, config.lr, config.momentum, weight_decay=config.weight_decay)
    return AdamW(made_of, config.lr, weight_decay=config.weight_decay)


def _resume(
    out: Path,
    step: int,
    method: Method,
    optimizers: dict[str, Optimizer],
    accelerator: Accelerator,
    data: TrainingData,
) -> dict[str, Any]:
    """Load the checkpoint of `step`; returns its state.

    Raises: InputError, also when the frames are not those that the run began with: the same step would draw
    others.
    """
    state = checkpoints.load(out, step, method)
    if state.get("frames") != data.digest():
        raise InputError(
            f"{out} began with other frames than are there now ({len(data.pairs)} labelled"
            + (f", {len(data.target.frames)} of the target" if data.target else "")
            + "): bring back what was added, lost or renamed, or train in a new folder"
        )
    for player, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][player])
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)  # its threads do not survive the fork, and the workers are the parallelism


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
        path = self.out / "metrics.jsonl"
        logged = runs.read_lines(path, records.LOGGED)
        runs.write_lines(path, [line for line in logged if line["step"] <= start])
        following = tracking.following(self.config, self.out, start)
        # by line: a report can follow, a kill loses no more than one
        with following as self.tracker, path.open("a", buffering=1) as file:

            def write(line: dict[str, Any]) -> None:
                print(json.dumps(line), file=file)
                if self.tracker is not None:
                    self.tracker.log(line)

            self.write = write
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
            self._require_finite(step)
        if judging and self.validation.sets:
            self._validate(step)
        if judging and self.watch is not None:
            self._look(step, self.watch, last)
        if judging and self.tracker is not None:
            self._show(step, self.tracker)
        if saving and self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "optimizers": {
                    player: optimizer.state_dict() for player, optimizer in self.optimizers.items()
                },
                "scaler": None if scaler is None else scaler.state_dict(),
                "best": self.validation.best,
                "peaks": None if self.watch is None else self.watch.peaks.tolist(),
                "frames": self.digest,
            }
            if self.config.select == "last":
                checkpoints.save_best(self.out, step, self.method, None)
            checkpoints.save(self.out, step, self.method, state)

    def _require_finite(self, step: int) -> None:
        """Raises: InputError where the weights are not: the checkpoint before stays."""
        for name, tensor in self.method.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InputError(
                    f"'{name}' is not finite after step {step}, though the losses were: take a lower --lr or "
                    "--precision bf16 in a new folder; the last checkpoint is kept"
                )

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


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds `out` until the training ends; the kernel lets go of it when the process is killed. Raises:
    InputError while another process trains there: both would write the same log and checkpoints."""
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".segshift-lock").open("a")
    except OSError as error:
        raise InputError(
            f"cannot write to {out} ({error.strerror}): choose a writable output folder"
        ) from error
    with lock as file:
        try:
            import fcntl  # which Windows lacks

            # not flock: data workers would inherit it and outlive a kill
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError) as error:
            if getattr(error, "errno", None) in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"another process is training in {out}: wait for it, or name a new folder"
                ) from error
            _log.warning(
                "cannot tell whether another process trains in %s (%s): start it once only", out, error
            )
        try:
            yield
        finally:
            if not (out / "config.json").exists():  # a start that failed leaves nothing
                (out / ".segshift-lock").unlink(missing_ok=True)
                if new:
                    with suppress(OSError):  # not where something else lies in it by now
                        out.rmdir()


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """What can go wrong in a long run through no fault of ours, as one sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of GPU memory in {out}: take a larger --accumulate, a smaller --crop or "
            "--gradient-checkpointing, in a new folder"
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a micro-batch of one image leaves the network's batch norm one value to average: take a "
            "larger --batch-size, a smaller --accumulate, or fewer processes"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"disk full while writing {out}: free some space and run the same command again"
        ) from error

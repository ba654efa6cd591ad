"""Train: a segmentation network on labelled source frames, alone, with their transferred images, or with a
target's.

The run folder is described in `segshift.training.checkpoints`. The same command continues a run where it was
stopped; on one CPU the result is bitwise that of a run which was not.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from segshift import outputs, runs
from segshift.config import TrainConfig
from segshift.data import frames
from segshift.data import samples as batches
from segshift.methods import METHODS
from segshift.outputs import Output
from segshift.runs import InputError
from segshift.settings import option
from segshift.training import checkpoints, loop, session, sizes, tracking, validation
from segshift.training import data as training_data
from segshift.training.data import TrainingData
from segshift.training.keeper import Keeper
from segshift.training.validation import Validation
from segshift.training.watch import Watch


def train(config: TrainConfig, out: str | Path) -> Path:
    """Train as `config` says, or continue; returns `out`, which `segshift predict` reads.

    Raises: InputError for settings that do not fit together, data that does not, and losses that are not
    finite.
    """
    source = frames.load(config.source)
    config, choice = sizes.chosen(config, source)
    _check(config)
    output = outputs.open_output(
        out, "train", config, free=checkpoints.FREE, begun=lambda out: checkpoints.last_step(out) > 0
    )
    tracking.require(config)
    accelerator = session.accelerator(config.device, config.precision, config.batch_size, config.accumulate)
    data = training_data.read(config, source)
    if choice is not None and accelerator.is_main_process:
        Console(soft_wrap=True, highlight=False).print(choice, markup=False)
    with outputs.alone(output.path) if accelerator.is_main_process else nullcontext():
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
    momentum = config.momentum if config.optimizer == "sgd" else None
    optimizers = session.optimizers(method, accelerator, config.lr, config.weight_decay, momentum)
    crop, steps = config.crop, config.steps
    assert crop is not None and steps is not None
    state: dict[str, Any] = {}
    if start:
        frame_count = f"{len(data.pairs)} labelled" + (
            f", {len(data.target.frames)} of the target" if data.target else ""
        )
        state = session.resume(out, start, method, optimizers, accelerator, data.digest(), frame_count)
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
    keeper = Keeper(config, out, method, optimizers, accelerator, validated, watch, data)
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
    title = f"train {config.method} on {accelerator.device.type}"
    with (
        session.micro_batches(
            samples, start, steps, config.batch_size, config.accumulate, config.workers, accelerator
        ) as micro_batches,
        session.draining(accelerator) as asked,
        session.shown(title, steps, start, first) as tell,
        session.translate_errors(out),
        keeper.log(start),
    ):
        if before != config.steps:
            keeper.write({"step": start, "steps": config.steps, "steps_before": before})
        if not start:
            keeper.begin()

        def done(step: int, line: dict[str, Any]) -> bool:
            leaving = asked()
            keeper.after(step, line, leaving)
            tell(line)
            return leaving

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

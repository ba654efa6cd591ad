"""What every training does around its loop: its place in a folder, its processes, its log, and its errors."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader

from segshift import execution, records, runs
from segshift.data import samples as batches
from segshift.execution.device import pick
from segshift.methods.base import Method
from segshift.runs import InputError
from segshift.training import checkpoints


def accelerator(device: str, precision: Literal["no", "fp16", "bf16"], batch_size: int, parts: int) -> Any:
    """This process's place among those that train.

    parts: micro-batches a step. Raises: InputError when the device is not there, or does not fit the
    settings.
    """
    pick(device)
    AcceleratorState._reset_state(True)  # one process may train twice, with another precision
    made = Accelerator(cpu=device == "cpu", mixed_precision=precision, gradient_accumulation_steps=parts)
    if precision == "fp16" and made.device.type == "cpu":
        raise InputError("--precision fp16 needs a GPU and this is a CPU: take bf16 or no")
    shares = parts * made.num_processes
    if batch_size % shares:
        raise InputError(
            f"--batch-size {batch_size} cannot be divided into {parts} micro-batches on "
            f"{made.num_processes} processes: take a multiple of {shares}"
        )
    return made


def start(out: Path, steps: int, process: int) -> int:
    """Steps done in `out`, 0 for a new run. Raises: InputError when the processes see different folders, or
    more steps are done than are asked for."""
    done = broadcast_object_list([checkpoints.last_step(out)])[0]
    if done != (here := checkpoints.last_step(out)):
        raise InputError(
            f"{out} is at step {here} where process {process} runs and at step {done} "
            "where the first one does: name a folder that all of them share"
        )
    if done > steps:
        raise InputError(f"{out} is at step {done}: give --steps of {done} or more, or name a new folder")
    return done


def optimizers(
    method: Method,
    accelerator: Accelerator,
    lr: float,
    weight_decay: float,
    momentum: float | None = None,
) -> dict[str, Optimizer]:
    """AdamW of every player, or SGD with `momentum`. A group of parameters learns with its own factor on
    `lr`."""
    made: dict[str, Optimizer] = {}
    for player in method.networks:
        groups = [
            {"params": list(parameters), "initial_lr": lr * factor}
            for parameters, factor in method.parameter_groups(player)
        ]
        made[player] = accelerator.prepare_optimizer(
            AdamW(groups, lr, weight_decay=weight_decay)
            if momentum is None
            else SGD(groups, lr, momentum, weight_decay=weight_decay)
        )
    return made


def resume(
    out: Path,
    step: int,
    method: Method,
    optimizers: dict[str, Optimizer],
    accelerator: Accelerator,
    digest: str,
    frame_count: str,
) -> dict[str, Any]:
    """Load the checkpoint of `step`; returns its state.

    digest: of the frames that are trained on; frame_count: how many there are, in words. Raises: InputError,
    also when the frames are not those that the run began with: the same step would draw others.
    """
    state = checkpoints.load(out, step, method)
    if state.get("frames") != digest:
        raise InputError(
            f"{out} began with other frames than are there now ({frame_count}): bring back what was "
            "added, lost or renamed, or train in a new folder"
        )
    for player, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][player])
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state


def state(optimizers: dict[str, Optimizer], accelerator: Accelerator, digest: str) -> dict[str, Any]:
    """What `resume` reads beside the method."""
    scaler = accelerator.scaler
    return {
        "optimizers": {player: optimizer.state_dict() for player, optimizer in optimizers.items()},
        "scaler": None if scaler is None else scaler.state_dict(),
        "frames": digest,
    }


def require_finite(method: Method, step: int) -> None:
    """Raises: InputError where the weights are not: the checkpoint before stays."""
    for name, tensor in method.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"'{name}' is not finite after step {step}, though the losses were: take a lower --lr or "
                "--precision bf16 in a new folder; the last checkpoint is kept"
            )


@contextmanager
def micro_batches(
    samples: batches.Samples,
    start: int,
    steps: int,
    batch_size: int,
    parts: int,
    workers: int,
    accelerator: Accelerator,
) -> Iterator[Iterator[batches.Batch | InputError]]:
    """What `loop.fit` takes: this process's micro-batches, `parts` a step, from step `start` on. The data
    workers end with the block, however it ends: torch leaves that to the collector of garbage, and the
    traceback of an error would keep them, and the process that waits for them, for ever."""
    schedule = batches.Schedule(
        start, steps, batch_size, parts, accelerator.process_index, accelerator.num_processes
    )
    with execution.starting_workers():
        made: Any = iter(
            DataLoader(
                samples,
                batch_sampler=schedule,
                num_workers=workers,
                collate_fn=batches.collate,
                worker_init_fn=_data_worker,
                pin_memory=accelerator.device.type == "cuda",
            )
        )
    try:
        yield made
    finally:
        if workers:
            made._shutdown_workers()


def _data_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # its threads do not survive the fork, and the workers are the parallelism
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler sends it to all; the training ends them


@contextmanager
def draining(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """`execution.draining` of all processes: where one is asked to end, all end after the same step. What it
    yields is called once a step, by all of them."""
    with execution.draining() as request:

        def asked() -> bool:
            if accelerator.num_processes > 1:
                one = torch.tensor([float(request())], device=accelerator.device)
                if accelerator.reduce(one, "sum").item():
                    request.set()
            return request()

        yield asked


@contextmanager
def shown(title: str, steps: int, start: int, first: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A progress bar, of the first process only: what it yields takes every step's line of the log."""
    if not first:
        yield lambda line: None
        return
    with runs.progress(title, steps, done=start) as bar:

        def tell(line: dict[str, Any]) -> None:
            loss = sum(value for name, value in line.items() if name not in records.NO_LOSS)
            bar.describe(f"{title}, loss {loss:.3f}")
            bar.advance()

        yield tell


@contextmanager
def log(out: Path, start: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What appends a line to metrics.jsonl, without what was logged after the checkpoint of `start`."""
    path = out / "metrics.jsonl"
    logged = runs.read_lines(path, records.LOGGED)
    runs.write_lines(path, [line for line in logged if line["step"] <= start])
    # by line: a report can follow, a kill loses no more than one
    with path.open("a", buffering=1) as file:
        yield lambda line: print(json.dumps(line), file=file)


@contextmanager
def translate_errors(out: Path) -> Iterator[None]:
    """What can go wrong in a long run through no fault of ours, as one sentence."""
    try:
        with runs.on_disk(out):
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

"""The one training loop: players in turn, on several processes, in mixed precision, with accumulation.

Data parallelism is explicit: after a player's micro-batches its gradients are averaged over the processes in
one all-reduce. `DistributedDataParallel` overlaps that with the backward pass, a few per cent at most for
networks of this size, but takes each network for one forward pass per backward pass, which neither two passes
nor an adversary keep to. Every process starts from the same weights and takes the same steps; batch-norm
statistics of a step are each process's own, and the running ones are averaged after it, so that evaluation
and averages are the same in all.

All random numbers of a step (dropout, a method's own draws) come from generators seeded by (seed, step,
process). Their state is thus a function of the step number, and a checkpoint holds it by holding the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim import Optimizer

from segshift.data import transforms
from segshift.data.samples import checked
from segshift.methods.base import Batch, Method
from segshift.runs import InputError


def learning_rate(step: int, steps: int, warmup: int, power: float) -> float:
    """Factor on the initial learning rate in the optimizer step that follows `step` others, in (0, 1].

    Linear warm-up times polynomial decay, a function of the step alone: there is no schedule to lose on
    resuming.
    """
    return min(1.0, (step + 1) / (warmup + 1)) * (1 - step / steps) ** power


def fit(
    method: Method,
    optimizers: dict[str, Optimizer],
    batches: Iterator[Batch | InputError],
    accelerator: Accelerator,
    *,
    start: int,
    steps: int,
    accumulate: int,
    seed: int,
    factor: Callable[[int], float],
    frames_of: Callable[[int], Sequence[str]],
    done: Callable[[int, dict[str, Any]], bool],
) -> None:
    """Optimizer steps `start` to `steps` - 1 of every player.

    optimizers: by player, as `accelerator.prepare` gives them. batches: `accumulate` micro-batches a step.
    factor: on every parameter group's `initial_lr`, by step. frames_of: ids of the frames of a step.
    done: called after each step with the number of steps done and the line to log; whether to end here.
    Raises: InputError when a loss is not finite or a frame cannot be read.
    """
    for step in range(start, steps):
        began = time.perf_counter()
        set_seed(transforms.key_seed(seed, "step", step, accelerator.process_index) % 2**32)
        micro: list[Any] = [_to(checked(next(batches)), accelerator.device) for _ in range(accumulate)]
        line: dict[str, Any] = {"step": step + 1, "lr": _set_rate(optimizers, factor(step))}
        for turn, (player, optimizer) in enumerate(optimizers.items()):
            optimizer.zero_grad()  # also of what other players' losses left here
            for i in range(accumulate):
                with accelerator.autocast():
                    if turn == 0:
                        micro[i] = method.prepare(micro[i])
                    terms = method.losses(player, micro[i], step)
                values = accelerator.reduce(
                    torch.stack([term.detach().float() for term in terms.values()]), "mean"
                )
                for name, value in zip(terms, values.tolist(), strict=True):
                    key = name if len(optimizers) == 1 else f"{player}/{name}"
                    line[key] = line.get(key, 0.0) + value / accumulate
                    if not math.isfinite(value):
                        ids = ", ".join(frames_of(step))
                        raise InputError(
                            f"loss '{key}' is {value} in step {step + 1} (frames {ids}): look at these "
                            "frames, or take a lower --lr in a new folder; the last checkpoint is kept"
                        )
                accelerator.backward(sum(terms.values()))  # divided by the micro-batches there
            _average(
                [p.grad for p in method.networks[player].parameters() if p.grad is not None], accelerator
            )
            optimizer.step()
        for network in method.networks.values():
            _average([buffer for buffer in network.buffers() if buffer.is_floating_point()], accelerator)
        method.after_step(step)
        observed = {
            name: accelerator.reduce(value.float(), "mean").item()
            for name, value in method.observed().items()
        }
        if observed:
            line["observed"] = observed
        line["seconds"] = round(time.perf_counter() - began, 4)
        if done(step + 1, line):
            return


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _set_rate(optimizers: dict[str, Optimizer], factor: float) -> float:
    """Set every group's rate; returns the first one's."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
    return next(iter(optimizers.values())).param_groups[0]["lr"]


def _average(tensors: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Replace every tensor by its mean over the processes."""
    if accelerator.num_processes == 1 or not tensors:
        return
    flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))

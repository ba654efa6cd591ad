"""Tiny trainings, for the tests of everything that trains."""

import os
import shutil
import socket
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import trees
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from segshift import runs
from segshift.config import ICCLDConfig, NetworkConfig, TrainConfig
from segshift.methods.base import Method
from segshift.methods.zodi.adaptation import ZoDi
from segshift.stages.train import train
from segshift.training import checkpoints

IDS = tuple(f"aachen_{i:06d}_000019" for i in range(5))


def trees_of(root: Path) -> Path:
    """A day tree (train and val) and two transferred trees of it under `root`, which is returned. Their val
    pictures differ.
    """
    trees.cityscapes(root / "day", IDS)
    trees.cityscapes(root / "day", ("ulm_000000_000019",), split="val")
    for name in ("night", "fog"):
        trees.cityscapes(root / name, IDS)
        trees.cityscapes(root / name, ("ulm_000000_000019",), split="val")
        (root / name / "manifest.jsonl").touch()
    for name, change in (("night", 16), ("fog", 4)):
        for path in (root / name / "leftImg8bit/val").rglob("*.png"):
            trees.save(path, 255 - trees.picture(name) // change)
    return root


def config(data: Path, **changes) -> TrainConfig:
    plain = TrainConfig(
        source=f"cityscapes:{data}/day:train",
        transferred=(f"cityscapes:{data}/night:train", f"cityscapes:{data}/fog:train"),
        validation=f"cityscapes:{data}/day:val",
        network=NetworkConfig(name="networks:two_convs", pretrained=False),
        size=(32, 64),
        crop=(16, 32),
        batch_size=4,
        steps=6,
        lr=0.1,
        checkpoint_every=2,
        validate_every=3,
        workers=0,
        device="cpu",
    )
    return replace(plain, **changes)


def both_steps(data: Path, network: NetworkConfig, out: Path, *, lr: float, steps: int) -> TrainConfig:
    """Train ICCLD's steps in `out`/first and `out`/second; returns what the second was trained with."""
    first = config(
        data,
        method="self_training",
        transferred=(),
        target=f"cityscapes:{data}/night:train",
        network=network,
        iccld=ICCLDConfig(unet_channels=(8, 16)),
        crop=(32, 32),
        optimizer="adamw",
        lr=lr,
        steps=steps,
        select="last",
    )
    second = replace(first, method="adversarial_diffusion", from_run=str(out / "first"))
    train(first, out / "first")
    train(second, out / "second")
    return second


def dropping(**changes):
    return {"network": NetworkConfig(name="networks:dropping", pretrained=False), **changes}


def last(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints._weights(run, checkpoints.last_step(run)))


def same(a: Path, b: Path) -> bool:
    one, two = last(a), last(b)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def logged(run: Path) -> list[dict]:
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in runs.read_lines(run / "metrics.jsonl")
    ]


def stop_in_step(monkeypatch, step: int) -> None:
    """As Ctrl-C there."""
    whole = Method.after_step

    def after_step(self, done):
        if done == step:
            raise KeyboardInterrupt
        whole(self, done)

    monkeypatch.setattr(ZoDi, "after_step", after_step)


def copy_in_step(monkeypatch, method: type[Method], step: int, run: Path, to: Path) -> None:
    """What a kill in this step leaves of `run`, while that trains on."""
    whole = method.after_step

    def after_step(self, done):
        if done == step:
            shutil.copytree(run, to)
        whole(self, done)

    monkeypatch.setattr(method, "after_step", after_step)


def start(config: TrainConfig, out: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """The training in a process of its own: a fork, which need not import torch again."""
    process = get_context("fork").Process(target=_train, args=(config, out, environment or {}))
    process.start()
    return process


def _train(config: TrainConfig, out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)  # what the trainings before the fork left
    train(config, out)


def in_two_processes(config: TrainConfig, out: Path, code: int = 0) -> Path:
    """The training as torchrun starts it, over gloo. code: that both end with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [start(config, out, told | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [code, code]
    return out

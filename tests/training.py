"""Tiny trainings, for the tests of everything that trains."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import trees
from safetensors.torch import load_file

from segshift import runs
from segshift.config import NetworkConfig, TrainConfig
from segshift.methods.base import Method
from segshift.methods.zodi.adaptation import ZoDi
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


def start(settings: Path, out: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """The training in a process of its own, on one thread."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from segshift import runs; from segshift.config import TrainConfig\n"
        "from segshift.stages.train import train\n"
        "train(runs.read_config(Path(sys.argv[1]), TrainConfig), Path(sys.argv[2]))\n"
    )
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(checkpoints.__file__).parents[2])])
    return subprocess.Popen(
        [sys.executable, "-c", code, settings, out],
        env=os.environ | {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.DEVNULL,
    )


def in_two_processes(config: TrainConfig, out: Path) -> Path:
    """The training as torchrun starts it, over gloo."""
    settings = out.with_suffix(".settings.json")
    settings.write_text(json.dumps({"stage": "train", "config": runs.to_plain(config)}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [start(settings, out, told | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    return out

"""A transfer on a Ray cluster whose nodes and driver are killed, against one process: the same bytes?

    pip install 'segshift[ray]'
    python benchmarks/ray_faults.py OUT [--frames 200]

Two nodes of one core each, made on this machine by Ray's own test cluster, transfer tiny frames of the
embedded town by night. It kills one node in the middle and adds another; kills the driver and starts it
again; asks the driver to end and starts it again; trains an experiment of two rows and two seeds on two
workers; and compares every result with that of one process on one thread. Then one worker against two, by the
time between the first frame and the last, in turns. It writes benchmarks/results/ray-faults.json. Give it two
free cores: the ratio means nothing beside other work.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # as Ray does for a worker of one core
# workers have the priority of the process that they are compared with
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster
from rich.console import Console

from segshift import runs
from segshift.config import EngineConfig, NetworkConfig, TownConfig, TransferConfig
from segshift.config.running import RayConfig
from segshift.recipes import runner
from segshift.recipes.experiment import Experiment, Target
from segshift.recipes.town import town_target, town_training, town_transfer
from segshift.recipes.zodi import town_rows
from segshift.stages.transfer import transfer
from segshift.town import writer

RESULTS = Path(__file__).parent / "results" / "ray-faults.json"
say = Console()


def finished(out: Path) -> int:
    """Frames in the journal."""
    lines = [line for path in (out / "journal").glob("*.jsonl") for line in runs.read_lines(path)]
    return sum("domain" in line for line in lines)


def wait_for(count: int, out: Path, process: subprocess.Popen) -> None:
    """Until `count` frames are finished. Raises: RuntimeError when the driver has ended before."""
    while finished(out) < count:
        if process.poll() is not None:
            raise RuntimeError(f"the driver ended with {process.returncode}, {finished(out)} frames finished")
        time.sleep(0.2)
    say.print(f"{finished(out)} frames are finished")


def faults(out: Path, alone: Path) -> dict[str, Any]:
    """What differs from one process."""
    lines = [runs.read_lines(folder / "night" / "manifest.jsonl") for folder in (alone, out)]
    ids = [[line["id"] for line in one] for one in lines]
    files = [
        {path.relative_to(folder): path.read_bytes() for path in (folder / "night").rglob("*.png")}
        for folder in (alone, out)
    ]
    return {
        "lost": len(set(ids[0]) - set(ids[1])),
        "twice": len(ids[1]) - len(set(ids[1])),
        "failed": len(runs.failures(out)),
        "pictures_that_differ": sum(files[0].get(path) != content for path, content in files[1].items())
        + len(files[0].keys() - files[1].keys()),
    }


@contextmanager
def cluster(workers: int):
    """A head without a core, and so many nodes of one core."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(workers):
            made.add_node(num_cpus=1)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def on(made: Cluster) -> EngineConfig:
    return EngineConfig("ray", RayConfig(made.address))


def command(config: TransferConfig, out: Path, address: str) -> subprocess.Popen:
    """The driver in a process of its own."""
    options = [
        "--source",
        config.source,
        "--short-side",
        str(config.short_side),
        "--steps",
        str(config.steps),
    ]
    options += ["--batch-size", str(config.batch_size), "--diffusion.device", "cpu"]
    options += ["--engine", "ray", "--ray.address", address]
    return subprocess.Popen([sys.executable, "-m", "segshift", "transfer", str(out), *options])


def nodes(config: TransferConfig, out: Path, alone: Path) -> dict[str, Any]:
    """One node is killed in the middle, and one comes."""
    count = len(runs.read_lines(alone / "night" / "manifest.jsonl"))
    with cluster(2) as made:
        driver = command(config, out, made.address)
        wait_for(count // 3, out, driver)
        made.remove_node(next(iter(made.worker_nodes)), allow_graceful=False)
        wait_for(count // 2, out, driver)
        made.add_node(num_cpus=1)
        return {"exit_code": driver.wait(), **faults(out, alone)}


def signalled(config: TransferConfig, out: Path, alone: Path, number: signal.Signals) -> dict[str, Any]:
    """The driver is sent a signal in the middle, and started again."""
    count = len(runs.read_lines(alone / "night" / "manifest.jsonl"))
    with cluster(2) as made:
        first = command(config, out, made.address)
        wait_for(count // 3, out, first)
        first.send_signal(number)
        code, before = first.wait(), finished(out)
        again = command(config, out, made.address).wait()
    return {
        "exit_code": code,
        "finished_before": before,
        "made_again": finished(out) - count,
        "exit_code_of_the_next": again,
        **faults(out, alone),
    }


def experiment(out: Path) -> dict[str, Any]:
    """Two rows and two seeds on two workers, which start in that time, and one after the other."""
    base = replace(
        town_training(steps=120, images=4),
        size=(64, 128),
        crop=(32, 64),
        device="cpu",
        workers=0,
        validation=town_target("clear"),
        network=NetworkConfig(encoder="resnet18", pretrained=False),
    )
    rows = town_rows(base, ("night",))
    small = Experiment(
        name="two rows, two seeds",
        town=TownConfig(
            height=64, width=128, source_train=16, source_val=8, target_val=8, target_train=1, workers=1
        ),
        transfers={"transferred": replace(town_transfer("night"), short_side=64, steps=4)},
        rows=(rows[0], replace(rows[2], targets=("night",))),
        targets=(Target("night", town_target("night")), Target("clear", town_target("clear"))),
        seeds=2,
    )
    began = time.perf_counter()
    runner.run_experiment(small, out / "alone")
    alone = time.perf_counter() - began
    with cluster(2) as made:
        began = time.perf_counter()
        runner.run_experiment(small, out / "ray", on(made))
        two = time.perf_counter() - began
    scores = [(out / name / "scores.json").read_bytes() for name in ("alone", "ray")]
    return {
        "trainings": 4,
        "scores_equal_to_the_last_digit": scores[0] == scores[1],
        "seconds_of_one": round(alone),
        "times_faster_on_two": round(alone / two, 2),
    }


def seconds(config: TransferConfig, out: Path, workers: int) -> float:
    """Between the first quarter of the frames and the last frame; all workers are up by then."""
    with cluster(workers) as made:
        transfer(replace(config, where=on(made)), out)
    written = sorted(path.stat().st_mtime for path in (out / "night").rglob("*_leftImg8bit.png"))
    return written[-1] - written[len(written) // 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="of one worker against two")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out.resolve()
    town = writer.town(
        TownConfig(
            height=64,
            width=128,
            source_train=args.frames,
            source_val=0,
            target_train=0,
            target_val=0,
            workers=1,
        ),
        out / "town",
    )
    config = TransferConfig(
        source=f"cityscapes:{town}/cityscapes:train", short_side=64, steps=8, batch_size=4
    )
    config = replace(config, diffusion=replace(config.diffusion, device="cpu"))
    alone = transfer(config, out / "alone")
    found: dict[str, Any] = {"frames": args.frames, "ray": ray.__version__, "torch": torch.__version__}
    parts: dict[str, Callable[[], Any]] = {
        "a node killed and one added": lambda: nodes(config, out / "nodes", alone),
        "the driver killed": lambda: signalled(config, out / "killed", alone, signal.SIGKILL),
        "the driver asked to end": lambda: signalled(config, out / "asked", alone, signal.SIGTERM),
        "an experiment": lambda: experiment(out / "experiment"),
        "two workers against one": lambda: [
            round(
                seconds(config, out / f"one-{i}", 1) / seconds(config, out / f"two-{i}", 2),
                2,
            )
            for i in range(args.rounds)
        ],
    }
    for name, part in parts.items():
        say.rule(name)
        found[name] = part()
        say.print(found[name])
        (out / "found.json").write_text(json.dumps(found, indent=2) + "\n")
    found["load"] = os.getloadavg()
    runs.write_json(RESULTS, found)
    say.print_json(json.dumps(found))


if __name__ == "__main__":
    main()

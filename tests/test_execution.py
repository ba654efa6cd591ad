"""Rank, share and device come from one room, and an executor is one file and one line."""

import os
import runpy
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import trees
from transferring import IDS, SIZE, prior  # noqa: F401

from segshift import execution, runs
from segshift.config import DiffusionConfig, TransferConfig
from segshift.execution import torchrun
from segshift.runs import InputError
from segshift.stages.transfer import transfer

EXAMPLE = Path(__file__).parents[1] / "docs" / "extending" / "executor.py"


def test_alone_a_process_is_the_first_and_the_last():
    assert execution.current() == execution.Process("the command line")
    assert execution.current().first and execution.shard("0/1") == (0, 1)
    execution.one_process("evaluate")


def test_torchrun_says_which_process_it_is(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (
        execution.current() == torchrun.process() == execution.Process("torchrun", 3, 4, 1, 2, ends_all=True)
    )
    assert not execution.current().first
    with pytest.raises(InputError, match="start it without torchrun"):
        execution.one_process("evaluate")


@pytest.mark.parametrize("text", ["2/2", "half", "-1/2", "0/0", "1", "1/2/3", f"0/{10**30}"])
def test_a_share_that_is_none_is_refused(text: str):
    with pytest.raises(InputError, match="--shard is"):
        execution.shard(text)


def test_the_example_divides_a_transfer(tmp_path: Path, prior: Path, monkeypatch):  # noqa: F811
    source = f"cityscapes:{trees.cityscapes(tmp_path / 'day', IDS, SIZE)}:train"
    config = TransferConfig(
        source=source, batch_size=2, diffusion=DiffusionConfig(model=str(prior), device="cpu")
    )
    alone = transfer(config, tmp_path / "alone")
    monkeypatch.setattr(execution, "EXECUTORS", list(execution.EXECUTORS))
    runpy.run_path(str(EXAMPLE))
    for rank in ("0", "1"):
        for name, value in {"SLURM_PROCID": rank, "SLURM_NTASKS": "2", "SLURM_LOCALID": rank}.items():
            monkeypatch.setenv(name, value)
        assert execution.current() == execution.Process("srun", int(rank), 2, int(rank), 2)
        transfer(config, tmp_path / "two")
    assert {path.name for path in (tmp_path / "two" / "journal").iterdir()} == {
        "0-of-2.jsonl",
        "1-of-2.jsonl",
    }
    found = [
        {path.relative_to(out): path.read_bytes() for path in (out / "night").rglob("*.png")}
        for out in (alone, tmp_path / "two")
    ]
    assert found[0] == found[1] and len(runs.read_lines(tmp_path / "two/night/manifest.jsonl")) == len(IDS)


def _blocked() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.fixture
def ctrl_c():
    """Python's own handler, also where the tests were started with nohup, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_never_see_ctrl_c_and_it_is_not_lost_while_they_start(start: str, ctrl_c):
    with ProcessPoolExecutor(1, get_context(start)) as pool:
        with pytest.raises(KeyboardInterrupt), execution.starting_workers():
            found = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, [])
            os.kill(os.getpid(), signal.SIGINT)
            reached = True
        assert reached and signal.SIGINT in found.result(timeout=120)
    assert signal.getsignal(signal.SIGINT) == ctrl_c and not _blocked()


def test_workers_are_started_from_any_thread():
    done = []

    def start() -> None:
        with execution.starting_workers():
            done.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    start()
    assert done == [True, True]

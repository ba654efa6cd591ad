"""The job array that `segshift launch slurm` submits: script, tasks, and what a warning does to them."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from segshift import commands
from segshift.__main__ import main
from segshift.config.running import SlurmConfig
from segshift.runs import InputError

pytest.importorskip("submitit", reason="submitit is an extra: pip install 'segshift[slurm]'")
from segshift.execution import slurm

SBATCH = '#!/bin/sh\ncp "$1" "$(dirname "$0")/script"\necho Submitted batch job 4711\n'


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch) -> Path:
    """Programs that stand in for Slurm's; the script that is submitted lies beside them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, content in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n"), ("squeue", "#!/bin/sh\n")):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_an_array_is_submitted_with_one_line_to_look(cluster: Path, tmp_path: Path, capsys):
    command = ["transfer", "out", "--source", "cityscapes:/data:train", "--to", "night"]
    logs = str(tmp_path / "logs")
    options = ["--jobs", "3", "--minutes", "60", "--gpus", "2", "--options", "partition", "gpu"]
    assert main(["launch", "slurm", logs, *options, "--", *command]) == 0
    assert "submitted: 3 tasks. To look: squeue --job 4711" in capsys.readouterr().out
    script = (cluster / "script").read_text()
    told = ("array=0-2", "time=60", "gpus-per-node=2", "partition=gpu", "signal=USR2@120")
    assert [line for line in told if f"#SBATCH --{line}" not in script] == []
    assert main(["launch", "slurm", logs, "--", *command]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no command '' to launch"),
        (("launch", "slurm"), "no command 'launch' to launch"),
        (("train", "out", "--source", "cityscapes:/data"), "--jobs 2 is for transfer"),
        (("transfer", "out", "--source", "cityscapes:/data", "--shard", "0/2"), "--jobs 2 is for transfer"),
        (("transfer", "out", "--source", "cityscapes:/data", "--seed", "-1"), "--seed is -1"),
    ],
)
def test_a_command_that_cannot_run_is_not_submitted(words, message):
    with pytest.raises(InputError, match=message):
        commands._launched(words, 2)


def test_without_slurm_it_is_one_sentence(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="cannot submit to Slurm"):
        slurm.submit(SlurmConfig(), tmp_path / "logs", ["demo"])


PROGRAM = """
import signal, sys, time
told = open(sys.argv[1], "a", buffering=1)
def leave(number, frame):
    told.write("drained\\n")
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
told.write(" ".join(sys.argv[2:]) + "\\n")
while "wait" in sys.argv:
    time.sleep(0.01)
sys.exit(3 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch):
    """What a program that stands in for segshift writes down; handlers of signals are put back."""
    (tmp_path / "program.py").write_text(PROGRAM)
    path = tmp_path / "told"
    monkeypatch.setattr(slurm, "PROGRAM", (sys.executable, str(tmp_path / "program.py"), str(path)))
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield path
    for number, handler in before.items():
        signal.signal(number, handler)


def test_each_task_has_its_share(told: Path, tmp_path: Path):
    jobs = slurm.submit(SlurmConfig(jobs=2), tmp_path / "logs", ["transfer", "out"], "debug")
    assert [job.result() for job in jobs] == [0, 0]
    assert told.read_text().splitlines() == ["transfer out --shard 0/2", "transfer out --shard 1/2"]


def test_a_task_that_fails_is_a_task_that_failed(told: Path):
    with pytest.raises(RuntimeError, match="exit code 3"):
        slurm.Command()(["fail"])


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_a_warned_task_drains_and_is_queued_again_and_a_cancelled_one_drains(told: Path, number, again: bool):
    queued: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: queued.append(number))  # as submitit does

    def send() -> None:
        while not told.exists() or not told.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(RuntimeError, match="exit code 143"):  # where submitit's handler does not return
        slurm.Command()(["wait"])
    sender.join()
    assert told.read_text().splitlines() == ["wait", "drained"]
    assert queued == ([signal.SIGUSR2] if again else [])
    assert slurm.Command().checkpoint(["wait"]).args == (["wait"],)

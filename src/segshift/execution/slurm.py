"""Slurm: the job array of a stage, written and submitted by submitit (extra `slurm`).

A task is one command. Slurm's warning before the time is up, and a preemption, make it finish the batch or
step in hand; then it is queued again and goes on where it was. A task that is cancelled drains as well, and
ends.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from segshift.config.running import SlurmConfig
from segshift.execution.stopping import STOPPED
from segshift.runs import InputError, one_line

WARNING = 120
"""Seconds between the warning and the end of a task's time."""
PROGRAM = (sys.executable, "-m", "segshift")


class Command:
    """One task of the array: a process of its own, which drains when it is sent SIGTERM."""

    def __call__(self, arguments: list[str]) -> int:
        """The exit code: 0, or 1 where some frames failed and are listed. Raises: RuntimeError for others, by
        which Slurm knows that the task failed."""
        queue_again = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # which the process inherits
        process = subprocess.Popen([*PROGRAM, *arguments])
        warned: list[int] = []

        def warn(number: int, frame: Any) -> None:
            warned.append(number)
            process.terminate()

        def end(number: int, frame: Any) -> None:
            process.terminate()

        signal.signal(signal.SIGUSR2, warn)
        signal.signal(signal.SIGTERM, end)
        code = process.wait()
        if code == STOPPED and warned and callable(queue_again):
            queue_again(signal.SIGUSR2, None)  # submitit's own
        if code not in (0, 1):
            raise RuntimeError(f"exit code {code}")
        return code

    def checkpoint(self, arguments: list[str]) -> DelayedSubmission:
        """What is queued again: the same command."""
        return DelayedSubmission(self, arguments)


def submit(config: SlurmConfig, logs: Path, command: list[str], cluster: str = "slurm") -> list[submitit.Job]:
    """The tasks of the array, submitted; `logs` holds their scripts and what they print.

    command: a segshift command with its options. cluster: of submitit. Raises: InputError where there is no
    Slurm, or it refuses.
    """
    tasks = [
        [*command, "--shard", f"{i}/{config.jobs}"] if config.jobs > 1 else command
        for i in range(config.jobs)
    ]
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=100)
        executor.update_parameters(
            name=f"segshift-{command[0]}",
            timeout_min=config.minutes,
            slurm_signal_delay_s=WARNING,
            slurm_gpus_per_node=config.gpus,
            slurm_cpus_per_task=config.cpus,
            slurm_additional_parameters=dict(config.options),
        )
        return executor.map_array(Command(), tasks)
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise InputError(f"cannot submit to Slurm ({one_line(str(error), 200)})") from error

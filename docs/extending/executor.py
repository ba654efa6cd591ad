"""An executor: processes that Slurm's `srun` started, one a GPU."""

import os

from segshift.execution import EXECUTORS, Process


def process() -> Process | None:
    """This process's place among those of the job step; None outside of one."""
    environment = os.environ
    if "SLURM_PROCID" not in environment:
        return None
    tasks = int(environment["SLURM_NTASKS"])
    local = min(tasks, int(environment.get("SLURM_NTASKS_PER_NODE", tasks)))
    return Process("srun", int(environment["SLURM_PROCID"]), tasks, int(environment["SLURM_LOCALID"]), local)


EXECUTORS.insert(0, process)

"""An executor: processes that Slurm's `srun` started, one a GPU."""

import os

from segshift.execution import EXECUTORS, Process


def process() -> Process | None:
    """This process's place among those of the job step; None outside of one."""
    told = os.environ
    if "SLURM_PROCID" not in told:
        return None
    tasks = int(told["SLURM_NTASKS"])
    local = min(tasks, int(told.get("SLURM_NTASKS_PER_NODE", tasks)))
    return Process("srun", int(told["SLURM_PROCID"]), tasks, int(told["SLURM_LOCALID"]), local)


EXECUTORS.insert(0, process)

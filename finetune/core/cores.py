"""How many cores there are to use, and which share of them is this process's."""

import os
from contextlib import suppress
from pathlib import Path

_SHARE = Path("/sys/fs/cgroup/cpu.max")


def count_cores() -> int:
    """Returns how many cores this process may use, of which a container may have a share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = map(int, _SHARE.read_text().split())  # "max" where there is no limit
        return max(1, min(cores, quota // period))
    return cores


def count_share() -> int:
    """Returns how many cores are this process's, where `torchrun` or `srun` started several on this machine."""
    if "SLURM_CPUS_PER_TASK" in os.environ:
        return max(1, min(count_cores(), _read_number("SLURM_CPUS_PER_TASK", 1)))
    return max(1, count_cores() // count_local_processes())


def count_processes() -> int:
    """Returns how many processes were started together, on this machine and others, by `torchrun` or `srun`."""
    return _read_number("WORLD_SIZE", _read_number("SLURM_STEP_NUM_TASKS", 1))


def count_local_processes() -> int:
    """Returns how many of those run on this machine; `srun` has as many on each."""
    machines = max(1, _read_number("SLURM_STEP_NUM_NODES", 1))
    return max(1, _read_number("LOCAL_WORLD_SIZE", _read_number("SLURM_STEP_NUM_TASKS", 1) // machines))


def find_local_rank() -> int:
    """Returns the number of this process among those that were started with it on this machine, from 0."""
    return _read_number("LOCAL_RANK", _read_number("SLURM_LOCALID", 0))


def _read_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default

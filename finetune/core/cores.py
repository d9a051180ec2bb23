"""How many cores there are to use."""

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

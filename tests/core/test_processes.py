"""Processes that speak to each other, and how they end."""

import subprocess
import sys

SPEAK = """
import atexit, sys
from datetime import timedelta

import torch.distributed as dist

from finetune.core import processes

rank, store = sys.argv[1:]
atexit.register(lambda: print("connected" if dist.is_initialized() else "apart"))  # runs after those registered later
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
processes.open_groups(timedelta(minutes=5))
print(*processes.from_all(f"process {rank}"), sep=", ")
"""


def test_processes_part_before_the_interpreter_ends(tmp_path):
    """A thread of gloo that asks for the interpreter after its end aborts the process, once in a dozen times."""
    words = [sys.executable, "-c", SPEAK]
    started = [subprocess.Popen([*words, str(rank), tmp_path / "store"], stdout=subprocess.PIPE) for rank in range(2)]
    try:
        said = [process.communicate(timeout=120)[0].decode().splitlines() for process in started]
    finally:
        for process in started:
            process.kill()  # does nothing to one that has ended
    assert said == [["process 0, process 1", "apart"]] * 2
    assert [process.returncode for process in started] == [0, 0]

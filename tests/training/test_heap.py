"""What is freed while training is used again without asking the system; afterwards it goes back."""

import os
import subprocess
import sys

import pytest

STEP = """
import resource, sys
import psutil, torch
from finetune.training.heap import freed_memory_kept

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    for _ in range(3):
        torch.zeros(50 * 2**20, dtype=torch.uint8)

step()
before = faults()
step()
mapped = faults() - before
with freed_memory_kept():
    for _ in range(5):
        step()
    before = faults()
    step()
    kept = faults() - before
    held = psutil.Process().memory_info().rss
print(mapped, kept, (held - psutil.Process().memory_info().rss) >> 20)
"""


def measure(**environment: str) -> tuple[int, ...]:
    command = [sys.executable, "-c", STEP]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted as on Linux")
def test_blocks_are_kept_while_training_and_given_back_after_it():
    mapped, kept, given_back = measure()
    assert kept < mapped / 10
    assert given_back >= 45


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted as on Linux")
def test_what_the_environment_says_holds():
    mapped, kept, _ = measure(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept > mapped / 2

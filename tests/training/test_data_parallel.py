"""A batch that several processes share has the loss and the gradients of one process with all of its rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.training.data_parallel import find_launched

WORKER = Path(__file__).with_name("shared_batch.py")
FEW = ("contrastive", "parts", "preserved", "spare parameters", "weighted classes")
EAGER = {"not fused": 1e-7}
"""ALIGN's own attention computes its softmax in float32, whatever the weights are in."""


def share(tiny: str, output: Path, processes: int, dtype: str, *cases: str) -> list[dict[str, dict]]:
    """What each process has found."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [*start, str(WORKER), tiny, str(output), dtype, *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
    assert not done.returncode, done.stderr
    return json.loads(output.read_text())


def check(found: list[dict[str, dict]], largest: float) -> None:
    for process in found:
        for case, result in process.items():
            assert result["one side alone"] == [], case
            assert len(result["gradients"]) > 1, case
            for what, difference in result["difference"].items():
                allowed = max(largest, EAGER.get(case, 0.0), 8 * result["rounding"][what])
                assert difference <= allowed, (case, what, result)


def test_gradients_are_those_of_the_whole_batch(tiny, tmp_path):
    found = share(tiny, tmp_path / "found.json", 2, "float64", *FEW)
    assert [len(process) for process in found] == [len(FEW) + 1] * 2  # with few pairs at a time, too
    spare = found[0]["spare parameters"]["gradients"]
    assert "seldom" in spare
    assert "unused" not in spare
    check(found, 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "dtype"), [(1, "float64"), (4, "float64"), (3, "float32")])
def test_gradients_of_every_kind_are_those_of_the_whole_batch(tiny, tmp_path, processes, dtype):
    found = share(tiny, tmp_path / "found.json", processes, dtype)
    assert len(found[0]) > 20
    check(found, 1e-11 if dtype == "float64" else 1e-6)


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "0",
    "GROUP_RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "4",
    "WORLD_SIZE": "8",
}
SRUN = {"SLURM_NTASKS": "6", "SLURM_JOB_NAME": "train", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, (4, 2)),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "1"}, None),
        (SRUN, (2, 3)),
        ({name: value for name, value in SRUN.items() if "STEP" not in name}, None),  # the batch script, without srun
    ],
)
def test_a_launcher_says_how_many_processes_there_are(monkeypatch, environment, expected):
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in TORCHRUN]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_launched() == expected


def test_without_others_nothing_is_shared():
    from finetune.core import processes

    rows = torch.arange(3.0, requires_grad=True)
    assert (processes.count(), processes.rank(), processes.is_first()) == (1, 0, True)
    assert processes.gather_features(rows, [3]) is rows
    assert processes.count_rows(3) == [3]
    assert processes.from_first(lambda: "a") == "a"
    assert processes.from_all("b") == ["b"]

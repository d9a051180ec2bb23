"""How many cores are this process's, by what starts several of them."""

import pytest

from finetune.core.cores import count_cores, count_local_processes, count_processes, count_share, find_local_rank

VARIABLES = (
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NUM_NODES",
    "SLURM_CPUS_PER_TASK",
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for variable in (*VARIABLES, "SLURM_LOCALID"):
        monkeypatch.delenv(variable, raising=False)


def test_alone_all_cores_are_its_own():
    assert (count_processes(), count_share(), find_local_rank()) == (1, count_cores(), 0)


def test_torchrun_says_how_many_share_a_machine(monkeypatch):
    for variable, value in zip(VARIABLES, ("6", str(count_cores()), "1"), strict=False):
        monkeypatch.setenv(variable, value)
    assert (count_processes(), count_share(), find_local_rank()) == (6, 1, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * count_cores()))
    assert count_share() == 1


def test_srun_says_how_many_cores_a_process_has(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    for given in (1, 10_000):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(given))
        assert (count_processes(), count_share(), find_local_rank()) == (4, min(given, count_cores()), 3)


def test_srun_has_as_many_on_each_machine(monkeypatch):
    assert count_local_processes() == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(3 * count_cores()))
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")
    assert (count_local_processes(), count_share()) == (count_cores(), 1)

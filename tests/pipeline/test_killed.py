"""Real runs in real processes: killed at random moments, or asked to end, and resumed until they are finished."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.run.folder import RunFolder

from .results import contents

KILLS = int(os.environ.get("KILLS", "3"))
"""How many runs are killed. `KILLS=100 pytest -m slow tests/pipeline/test_killed.py -s` is the long way."""

pytestmark = pytest.mark.slow


def begin(*words: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", *map(str, words)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(*words: object, cwd: Path, code: int = 0) -> str:
    with begin(*words, cwd=cwd) as process:
        screen = process.communicate()[1]
    assert process.returncode == code, screen
    return screen


@pytest.fixture(scope="module")
def write_recipe(tiny, colour_table) -> Callable[..., Path]:
    """Writes a recipe of 4 epochs of 5 batches that is saved after every step."""

    def write(folder: Path, workers: int = 0, epochs: int = 4) -> Path:
        lora = {"rank": 2, "dropout": 0.1}
        values: dict[str, Any] = {
            "model": {
                "class_path": "finetune.ClassificationTask",
                "init_args": {"checkpoint": tiny, "image_lora": lora},
            },
            "data": {
                "table": {"path": str(colour_table), "label": "label", "split": "split"},
                "augmentations": [{"class_path": "albumentations.RandomBrightnessContrast"}],
                "batch_size": 4,
                "num_workers": workers,
            },
            "trainer": {
                "max_epochs": epochs,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "log_every_n_steps": 1,
            },
            "run": {"folder": "runs", "save_every": 1, "soup": 2},
        }
        path = folder / "colours.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(scope="module")
def whole(write_recipe, tmp_path_factory) -> tuple[dict[str, str], float]:
    """What a run leaves that nobody stopped, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    finish("fit", "--config", write_recipe(folder), cwd=folder)
    return contents(RunFolder(folder / "runs" / "colours")), time.monotonic() - started


def test_runs_that_are_killed_at_random_end_as_one_that_is_not(write_recipe, whole, tmp_path):
    expected, seconds = whole
    generator, killed, runs, during = random.Random(0), 0, 0, []
    while killed < KILLS:
        folder = tmp_path / str(runs)
        folder.mkdir()
        recipe, run = write_recipe(folder), RunFolder(folder / "runs" / "colours")
        while not run.is_finished:
            begun = run.recipe.is_file()
            words = ["resume", run.path] if begun else ["fit", "--config", recipe]
            with begin(*words, cwd=folder) as process:
                try:
                    screen = process.communicate(timeout=generator.uniform(0, seconds))[1]
                    assert process.returncode == 0, screen
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    screen = process.communicate()[1]
                    killed += 1
                    during.append(([line for line in screen.splitlines() if line.startswith("stage")] or ["start"])[-1])
        runs += 1
        assert contents(run) == expected
        assert not [path for path in run.path.rglob(".*") if path.name != ".lock"]
    print(f"\n{runs} runs, killed {killed} times, each as the one that was not:")
    for name in sorted(set(during)):
        print(f"  {during.count(name):3d} x in {name}")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGKILL, -9)]
)
def test_a_training_that_is_asked_to_end_is_saved_and_goes_on(write_recipe, whole, tmp_path, number, code, workers):
    """Asked twice, in the first training of the soup and in the second."""
    recipe, run = write_recipe(tmp_path, workers), RunFolder(tmp_path / "runs" / "colours")
    words = ["fit", "--config", recipe, "--run.save_every", 3]
    for folder in (run, RunFolder(run.path / "members" / "2")):
        with begin(*words, cwd=tmp_path, SLURM_JOB_ID="1") as process:
            while not list(folder.checkpoints.glob("step-*")):
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.01)
            os.killpg(process.pid, number)
            screen = process.communicate()[1]
        assert process.returncode == code, screen
        assert "Traceback" not in screen
        if number != signal.SIGKILL:
            assert screen.splitlines()[-1].endswith(
                f"finetune resume {words[1] if words[0] == 'resume' else run.path.relative_to(tmp_path)}"
            )
        words = ["resume", run.path.relative_to(tmp_path)]
    screen = finish(*words, cwd=tmp_path)
    assert "goes on from" in screen
    assert contents(run) == whole[0]


def test_an_unfinished_run_is_not_started_again_unasked(write_recipe, tmp_path):
    recipe, run = write_recipe(tmp_path), RunFolder(tmp_path / "runs" / "colours")
    with begin("fit", "--config", recipe, cwd=tmp_path) as process:
        while not list(run.checkpoints.glob("step-*")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    told = finish("fit", "--config", recipe, cwd=tmp_path, code=2)
    assert "Go on with it by `finetune resume runs/colours`" in told


def test_a_disk_that_is_full_stops_a_training_and_what_was_saved_serves(write_recipe, whole, tmp_path):
    """The system lets no file of the process grow beyond a few bytes once the first save is there."""
    recipe, run = write_recipe(tmp_path), RunFolder(tmp_path / "runs" / "colours")
    with begin("fit", "--config", recipe, cwd=tmp_path) as process:
        while not list(run.checkpoints.glob("step-*")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (64, 64))
        screen = process.communicate()[1]
    assert process.returncode == 2, screen
    line = screen.splitlines()[-1]
    assert line.startswith("error: Expected room to write")
    assert line.endswith("finetune resume runs/colours")
    assert "Traceback" not in screen
    finish("resume", "runs/colours", cwd=tmp_path)
    assert contents(run) == whole[0]

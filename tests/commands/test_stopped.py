"""Ctrl-C in real processes: the exit code of SIGINT and one line, whatever was at work, and nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


def stop(words: list, folder: Path, is_at_work: Callable[[], bool]) -> list[str]:
    """Starts a command, sends Ctrl-C as a terminal does, to all of its processes, and returns its lines of error."""
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune", *map(str, words)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    end = time.monotonic() + 120
    while not is_at_work():
        assert process.poll() is None, (folder / "errors").read_text()
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, (folder / "errors").read_text()
    lines = (folder / "errors").read_text().splitlines()
    (folder / "errors").unlink()
    assert not any("Traceback" in line for line in lines)
    return lines


def has_hidden(folder: Path) -> bool:
    return any(path.name.startswith(".") for path in folder.iterdir())


@pytest.fixture
def recipe(two_towers, tmp_path_factory) -> Path:
    """That of the run, with more epochs than any test waits for."""
    values = yaml.safe_load(two_towers.recipe.read_text())
    values["trainer"]["max_epochs"] = 100_000
    path = tmp_path_factory.mktemp("recipe") / "colours.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_in_training_it_names_the_command_that_does_the_rest(recipe, tmp_path):
    last = tmp_path / "runs" / "colours" / "checkpoints" / "last.ckpt"
    words = ["fit", "--config", recipe, "--runs", "runs", "--data.num_workers", 2]
    *stages, line = stop(words, tmp_path, last.is_file)
    assert [stage for stage in stages if stage.startswith("stage")] == ["stage measure-base", "stage train"]
    assert line == "error: stopped by Ctrl-C. Do what is left of it: finetune resume runs/colours"
    assert (tmp_path / "runs" / "colours" / "stages" / "measure-base.json").is_file()


def test_in_prepare_nothing_is_left(tmp_path):
    lines = stop(["prepare", "digits", "--output", "digits"], tmp_path, lambda: has_hidden(tmp_path))
    assert lines == ["error: stopped by Ctrl-C."]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_in_export_nothing_is_left(two_towers, tmp_path):
    lines = stop(["export", two_towers.path, "--output", "exported"], tmp_path, lambda: has_hidden(tmp_path))
    assert lines[-1] == "error: stopped by Ctrl-C."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--full"]])
def test_in_check_nothing_is_left(recipe, colour_table, tmp_path, count_opens, extra):
    opens = count_opens(colour_table.parent / "0.png" if extra else colour_table)
    lines = stop(["check", "--config", recipe, *extra], tmp_path, lambda: opens() > 0)
    assert lines[-1] == "error: stopped by Ctrl-C."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_in_classify_nothing_is_left(own_tiny, colour_table, tmp_path, count_opens):
    opens = count_opens(Path(own_tiny) / "model.safetensors")
    words = ["classify", own_tiny, colour_table.parent, "--label", "red", "--label", "blue", "--output", "found.csv"]
    assert stop(words, tmp_path, lambda: opens() > 0)[-1] == "error: stopped by Ctrl-C."
    assert list(tmp_path.iterdir()) == []

"""A dry run goes through every stage, says what a run takes, and leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.commands.cli import main
from finetune.core.errors import RecipeError
from finetune.pipeline.dry_run import dry_run
from finetune.pipeline.recipe import read_recipe
from finetune.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("share_opener")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_it_tries_every_stage_and_leaves_nothing(two_towers, tmp_path):
    found = dry_run(read_recipe(two_towers.recipe, ["--run.folder", str(tmp_path / "runs")]))
    assert [*found.stages] == ["start", "measure base", "train", "choose", "export", "measure"]
    assert min(found.stages.values()) > 0
    assert found.rows == 64
    assert found.computing > 0
    disk = {need.what: need.bytes for need in found.needs}["disk"]
    assert size(two_towers.path) < disk < 2 * size(two_towers.path)  # with the saves of a longer training
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--run.interpolation", "auto", "--run.soup", "2", "--data.num_workers", "1"],
        ["--trainer.devices", "2", "--trainer.accumulate_grad_batches", "2", "--data.batch_size", "4"],
        ["--run.linear_probe", "true", "--trainer.max_steps", "40", "--trainer.limit_val_batches", "0"],
        ["--data.table.label", "null", "--data.table.caption", "caption", "--run.save_every", "1"],
    ],
    ids=("auto", "devices", "probe", "captions"),
)
@pytest.mark.parametrize("run", ["two_towers", "with_head"])
def test_it_tries_recipes_of_all_kinds(request, tmp_path, run, words):
    if run == "with_head" and "caption" in words:
        pytest.skip("a head needs labels")
    recipe = request.getfixturevalue(run).recipe
    found = dry_run(read_recipe(recipe, ["--run.folder", str(tmp_path / "runs"), *words]))
    assert found.seconds > 0
    assert [*tmp_path.iterdir()] == []


def test_it_refuses_what_a_run_refuses(two_towers, tmp_path):
    with pytest.raises(RecipeError, match=r"Expected no run at .*, but there is one"):
        dry_run(read_recipe(two_towers.recipe))
    with pytest.raises(RecipeError, match="at least one step of training"):
        dry_run(read_recipe(two_towers.recipe, ["--run.folder", str(tmp_path), "--trainer.max_epochs", "0"]))


def test_one_that_is_interrupted_leaves_nothing(two_towers, tmp_path, monkeypatch):
    def stop(work):
        assert RunFolder(work.run.path).witness.is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.pipeline.dry_run.EXPORT.make", stop)
    words = ["--config", str(two_towers.recipe), "--runs", str(tmp_path), "--dry_run"]
    assert main(["fit", *words]) == 130
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(two_towers, tmp_path, number):
    words = ["fit", "--config", str(two_towers.recipe), "--runs", str(tmp_path), "--dry_run"]
    process = subprocess.Popen([sys.executable, "-m", "finetune", *words], env=os.environ, stderr=subprocess.PIPE)
    while not [*tmp_path.rglob("checkpoints")]:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert [*tmp_path.iterdir()] == []

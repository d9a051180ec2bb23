"""`finetune resume`: the stages that are left, and the same summary in the end."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from finetune.commands.cli import main
from finetune.run.measurement import read_measurement

from .conftest import CHANGES


def test_finished_run_has_nothing_left_and_shows_what_fit_showed(two_towers, capsys):
    before = {path: path.stat().st_mtime_ns for path in two_towers.path.rglob("*")}
    assert main(["resume", str(two_towers.path)]) == 0
    assert capsys.readouterr().out == f"{two_towers.path} is finished: nothing is left to do.\n\n{two_towers.shown}"
    assert {path: path.stat().st_mtime_ns for path in two_towers.path.rglob("*")} == before


def test_finished_run_whose_recipe_has_changed_has_a_stage_left(two_towers, tmp_path, capsys):
    run = Path(shutil.copytree(two_towers.path, tmp_path / "colours"))
    (run / "recipe.yaml").write_text("# mine\n" + (run / "recipe.yaml").read_text())
    assert main(["resume", str(run)]) == 0
    shown = capsys.readouterr()
    assert "stage report, again for recipe.yaml\n" in shown.err
    assert shown.out == two_towers.shown.replace(str(two_towers.path), str(run))


def test_finished_run_whose_table_has_changed_is_told_what_before_anything_is_done(moved, capsys):
    with FileLock(moved.path / ".lock"):
        assert main(["resume", str(moved.path), "--anyway"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[:-1] == [f"table, since the training: {change}" for change in CHANGES]
    assert "no other process to be at work" in told[-1]


def test_finished_training_is_not_replaced_unasked(moved, capsys):
    before = {path: path.stat().st_mtime_ns for path in moved.path.rglob("*")}
    table = yaml.safe_load(moved.recipe.read_text())["data"]["init_args"]["table"]["path"]
    assert main(["resume", str(moved.path)]) == 2
    *told, error = capsys.readouterr().err.splitlines()
    assert told == [f"table, since the training: {change}" for change in CHANGES]
    assert re.search(r"was trained from to be as it was then, but these have changed: .*\. Put them back", error)
    assert table in error
    assert {path: path.stat().st_mtime_ns for path in moved.path.rglob("*")} == before


@pytest.mark.slow
def test_finished_run_whose_table_has_changed_trains_again(moved, capsys):
    """On the new table: rows that were held out may be trained on now, as nothing of the former training is left."""
    before = pd.read_parquet(moved.table).set_index("image")["split"]
    assert main(["resume", str(moved.path), "--anyway"]) == 0
    told = capsys.readouterr().err
    for change in CHANGES:
        assert told.index(f"table, since the training: {change}\n") < told.index("stage measure-base, again for ")
    after = pd.read_parquet(moved.table).set_index("image")["split"]
    assert (before["0.png"], after["0.png"]) == ("train", "test")
    assert {*after.index} - {*before.index} == {"new.png"}
    assert moved.is_finished
    assert len(read_measurement(moved.measurement("after")).predictions) == 10


def test_table_that_is_gone_is_told_even_of_a_finished_run(refused, moved):
    table = Path(yaml.safe_load(moved.recipe.read_text())["data"]["init_args"]["table"]["path"])
    table.unlink()
    assert f"{table}: Expected the table to be a file" in refused("resume", moved.path)
    assert moved.is_finished


def test_summary_lists_every_artifact_with_its_proof(two_towers, with_head):
    proof = "reproduces the trained model within"
    assert f"merged      {two_towers.path / 'merged'}: {proof}" in two_towers.shown
    assert "classifier " not in two_towers.shown
    for name in ("merged     ", "classifier "):
        assert f"{name} {with_head.path / name.strip()}: {proof}" in with_head.shown
    for run in (two_towers, with_head):
        assert run.shown.splitlines()[-2:] == [
            f"run         {run.path}",
            f"report      {run.path / 'report.html'}",
        ]
        assert (run.path / "report.html").is_file()


def test_run_that_was_stopped_goes_on_where_it_was(two_towers, tmp_path, capsys):
    run = tmp_path / "stopped"
    shutil.copytree(two_towers.path, run)
    for name in ("finished.json", "report.html", "metrics.json", "stages/report.json"):
        (run / name).unlink()
    shutil.rmtree(run / "measurements" / "after")
    trained = (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert main(["resume", str(run)]) == 0
    assert capsys.readouterr().out == two_towers.shown.replace(str(two_towers.path), str(run))
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == trained
    assert (run / "metrics.json").read_text() == (two_towers.path / "metrics.json").read_text()
    assert (run / "finished.json").is_file()


def test_only_a_run_is_resumed(refused, two_towers):
    assert "Expected nowhere to be a run, but it holds no recipe.yaml" in refused("resume", "nowhere")
    assert f"Did you mean '{two_towers.path}'?" in refused("resume", two_towers.path.parent / "colors")


def test_run_of_an_earlier_release_is_refused_with_the_new_names(refused, two_towers, tmp_path):
    recipe = (two_towers.path / "recipe.yaml").read_text().replace("  interpolation: ", "  alpha: ")
    (tmp_path / "recipe.yaml").write_text(recipe)
    expected = f"error: {tmp_path}/recipe.yaml: run.alpha is now run.interpolation. Rename the key.\n"
    assert refused("resume", tmp_path) == expected

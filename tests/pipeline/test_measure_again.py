"""Runs and checkpoints measured once more: the same figures, on the screen and as a folder."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.pipeline.measure_again import measure_checkpoint, measure_run
from finetune.pipeline.recipe import read_recipe
from finetune.run.folder import RunFolder
from finetune.run.measurement import read_measurement


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, colour_table, tiny) -> Path:
    path = tmp_path_factory.mktemp("measured") / "colours.yaml"
    path.write_text(
        f"model: {{checkpoint: {tiny}, image_lora: {{rank: 2}}}}\n"
        f"data:\n  table: {{path: {colour_table}, label: label, split: split}}\n"
        f"  retention: [{{path: {colour_table}, caption: caption, split: split}}]\n"
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}\n"
        f"run: {{neighbours: 3, folder: {path.parent / 'runs'}}}\n"
    )
    return path


@pytest.fixture(scope="module")
def run(with_head) -> RunFolder:
    return RunFolder(with_head.path)


def cells(screen: str, key: str) -> list[str]:
    return [line.split("|")[2].strip() for line in screen.splitlines() if line.startswith(f"| {key} ")]


def test_a_checkpoint_measures_as_the_base_of_a_run(recipe_file, run, tmp_path):
    screen = measure_checkpoint(read_recipe(recipe_file), tmp_path / "base")
    again, before = read_measurement(tmp_path / "base"), read_measurement(run.measurement("base"))
    assert {name: table.metrics for name, table in again.tables.items()} == {
        name: table.metrics for name, table in before.tables.items()
    }
    pd.testing.assert_frame_equal(again.predictions, before.predictions)
    metrics = json.loads(run.metrics.read_text())["before"]
    assert cells(screen, "test/accuracy") == [f"{100 * metrics['test/accuracy']:.1f} %"]
    assert "test/knn_accuracy" in metrics
    assert f"\n\nRetention table colours:\n\n| metric {'':{len('test/text_to_image/median_rank') - 7}} | " in screen
    assert cells(screen, "test/mean_R@K") == [f"{100 * before.retention['colours'].metrics['test/mean_R@K']:.1f} %"]


def test_a_run_is_measured_by_its_classifier(run, tmp_path):
    screen = measure_run(run.path, output=tmp_path / "after")
    after = json.loads(run.metrics.read_text())["after"]
    assert read_measurement(tmp_path / "after").test.metrics == after
    assert screen.startswith(f"| metric {'':{len('test/expected_calibration_error') - 7}} | {run.classifier} |\n")
    assert cells(screen, "test/accuracy") == [f"{100 * after['test/accuracy']:.1f} %"]
    assert "Retention" not in screen


def test_a_run_is_measured_on_other_rows(run, colour_table, tmp_path):
    rows = pd.read_csv(colour_table, dtype=str).assign(split="test")
    rows["image"] = [str(colour_table.parent / name) for name in rows["image"]]
    rows.to_csv(tmp_path / "all.csv", index=False)
    measure_run(run.path, ["--data.table.path", str(tmp_path / "all.csv")], output=tmp_path / "found")
    predictions = read_measurement(tmp_path / "found").predictions
    assert len(predictions) == 36
    accuracy = (predictions["prediction"] == predictions["label"]).mean()
    assert read_measurement(tmp_path / "found").test.metrics["test/accuracy"] == pytest.approx(accuracy)


def test_a_merged_folder_is_measured_as_the_base_that_it_now_is(recipe_file, run, tmp_path):
    measure_checkpoint(read_recipe(recipe_file, ["--model.checkpoint", str(run.merged)]), tmp_path / "merged")
    found = read_measurement(tmp_path / "merged")
    assert found.test.metrics == json.loads(run.metrics.read_text())["zero-shot after"]
    assert found.retention.keys() == {"colours"}


def test_an_earlier_measurement_is_replaced_whole(recipe_file, tmp_path):
    recipe = read_recipe(recipe_file, ["--data.retention", "null"])
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "old.txt").touch()
    measure_checkpoint(recipe, tmp_path / "found")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        *("measurement.json", "figures.safetensors", "predictions.csv", "rows.csv")
    }


def test_neighbours_without_training_rows_are_refused(recipe_file):
    words = ["--data.table.filter", "split == 'test'"]
    with pytest.raises(RecipeError, match="Expected training rows in .*colours.csv for run.neighbours 3, but got none"):
        measure_checkpoint(read_recipe(recipe_file, words))
    assert "test/accuracy" in measure_checkpoint(read_recipe(recipe_file, [*words, "--run.neighbours", "null"]))


def test_tables_without_test_rows_are_refused_before_the_model_is_loaded(recipe_file, colour_table, tiny, tmp_path):
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    (base / "model.safetensors").write_bytes(b"nothing that loads")
    words = ["--model.checkpoint", str(base)]
    retention = f"[{{path: {colour_table}, caption: caption, split: split, filter: split == 'train'}}]"
    for extra in (["--data.table.filter", "split == 'train'"], ["--data.retention", retention]):
        with pytest.raises(TableError, match="rows in the split 'test'"):
            measure_checkpoint(read_recipe(recipe_file, [*words, *extra]))
    with pytest.raises(CheckpointError, match=r"Expected .*base to open as an AlignModel"):
        measure_checkpoint(read_recipe(recipe_file, words))


def test_a_run_that_is_not_finished_is_refused(run, tmp_path):
    stopped = RunFolder(Path(shutil.copytree(run.path, tmp_path / "stopped")))
    stopped.finished.unlink()
    with pytest.raises(
        CheckpointError,
        match="to be a finished run, but it is unfinished: it has no finished.json. .*: finetune resume",
    ):
        measure_run(stopped.path)


def test_a_classifier_is_asked_for_its_own_classes(run, colour_table, tmp_path):
    rows = pd.read_csv(colour_table, dtype=str).replace({"label": {"red": "rot"}})
    rows.to_csv(tmp_path / "renamed.csv", index=False)
    words = ["--data.table.path", str(tmp_path / "renamed.csv"), "--data.table.images", str(colour_table.parent)]
    with pytest.raises(TableError, match="the classifier's 3 classes, blue, green, red, but got 3: blue, green, rot"):
        measure_run(run.path, words)

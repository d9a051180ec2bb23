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
    measured = measure_checkpoint(read_recipe(recipe_file), tmp_path / "base")
    screen = "\n".join(measured.lines())
    again, before = read_measurement(tmp_path / "base"), read_measurement(run.measurement("base"))
    assert {name: table.metrics for name, table in again.tables.items()} == {
        name: table.metrics for name, table in before.tables.items()
    }
    pd.testing.assert_frame_equal(again.predictions, before.predictions)
    metrics = json.loads(run.metrics.read_text())["before"]
    assert measured.metrics == before.test.metrics
    assert cells(screen, "test/accuracy") == [f"{100 * metrics['test/accuracy']:.1f} %"]
    assert "test/knn_accuracy" in metrics
    assert f"\n\nRetention table colours:\n\n| metric {'':{len('test/text_to_image/median_rank') - 7}} | " in screen
    assert cells(screen, "test/mean_R@K") == [f"{100 * before.retention['colours'].metrics['test/mean_R@K']:.1f} %"]


def test_a_run_is_measured_by_its_classifier(run, tmp_path):
    screen = "\n".join(measure_run(run.path, output=tmp_path / "after").lines())
    after = json.loads(run.metrics.read_text())["after"]
    assert read_measurement(tmp_path / "after").test.metrics == after
    assert screen.startswith(f"| metric {'':{len('test/expected_calibration_error') - 7}} | {run.classifier} |\n")
    assert cells(screen, "test/accuracy") == [f"{100 * after['test/accuracy']:.1f} %"]
    assert "Retention" not in screen


def test_a_run_is_measured_on_other_rows(run, colour_table, tmp_path):
    rows = pd.read_csv(colour_table, dtype=str).assign(split="test")
    rows["image"] = [str(colour_table.parent / name) for name in rows["image"]]
    rows.to_csv(tmp_path / "all.csv", index=False)
    words = ["--data.table.path", str(tmp_path / "all.csv"), "--data.table.outside", "true"]
    measure_run(run.path, words, output=tmp_path / "found", anyway=True)
    predictions = read_measurement(tmp_path / "found").predictions
    assert len(predictions) == 36
    accuracy = (predictions["prediction"] == predictions["label"]).mean()
    assert read_measurement(tmp_path / "found").test.metrics["test/accuracy"] == pytest.approx(accuracy)


def measured(run, folder, table, *words, anyway=False) -> list[str]:
    """The rows of a table that are measured, by their numbers."""
    words = ["--data.table.path", str(table), "--data.table.outside", "true", "--run.neighbours", "null", *words]
    measure_run(run.path, words, output=folder / "found", anyway=anyway, overwrite=True)
    return read_measurement(folder / "found").predictions["row"].astype(int).tolist()


@pytest.fixture
def grown(colour_table, tmp_path) -> Path:
    """The colours in another folder, with two new images, a removed row, a corrected label and rows that moved."""
    folder = tmp_path / "grown"
    shutil.copytree(colour_table.parent, folder)
    rows = pd.read_csv(folder / "colours.csv", dtype=str)
    rows.loc[0, "split"] = rows.loc[6, "split"] = "test"  # from train and from val
    rows.loc[9, "label"] = "blue"
    new = rows.loc[[10, 11]].assign(image=["n1.png", "n2.png"])
    for name in new["image"]:
        shutil.copy(folder / "10.png", folder / name)
    pd.concat([rows.drop(index=35), new]).to_csv(folder / "colours.csv", index=False)
    return folder / "colours.csv"


def test_rows_that_were_trained_on_are_left_out_unless_asked_for(run, grown, tmp_path, capsys):
    """Also those that the model was chosen by; the images are known by their names in another folder."""
    kept = [11, 12, 13, 23, 24, 25, 35, 36, 37, 38]
    assert measured(run, tmp_path, grown) == kept
    told = capsys.readouterr().err
    assert "table, since the training: 2 rows added: 'n1.png', 'n2.png'\n" in told
    assert "table, since the training: 1 row removed: '35.png'\n" in told
    assert "table, since the training: 1 row with another text or label: '9.png'\n" in told
    assert "table, since the training: 1 row moved from train to test: '0.png'\n" in told
    assert "table, since the training: 1 row moved from val to test: '6.png'\n" in told
    left_out = "2 rows of the split 'test', whose images the run has seen as train or val: '0.png', '6.png'."
    assert f"warning: Leaves out {left_out} --anyway counts them.\n" in told
    assert measured(run, tmp_path, grown, anyway=True) == sorted([2, 8, *kept])
    assert f"warning: Counts {left_out}\n" in capsys.readouterr().err


def test_a_table_that_is_the_same_is_not_spoken_of(run, colour_table, tmp_path, capsys):
    assert len(measured(run, tmp_path, colour_table)) == 9
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("way", ["the same file", "the same name", "a filter"])
def test_rows_that_were_all_trained_on_are_refused_before_anything_is_loaded(run, colour_table, grown, tmp_path, way):
    shutil.copytree(run.path, tmp_path / "run")
    for kind in ("merged", "classifier"):
        (tmp_path / "run" / kind / "model.safetensors").write_bytes(b"nothing that loads")
    rows = pd.read_csv(colour_table, dtype=str).assign(split="test")[:6]
    if way == "the same file":
        rows["image"] = [str(colour_table.parent / name) for name in rows["image"]]
        rows.to_csv(tmp_path / "t.csv", index=False)
    else:
        rows.to_csv(grown.parent / "t.csv", index=False)
    table = (tmp_path if way == "the same file" else grown.parent) / "t.csv"
    words = ["--data.table.filter", "label == 'red'"] if way == "a filter" else []
    with pytest.raises(RecipeError, match=r"Expected a row that the run has not seen, but got only .* --anyway counts"):
        measured(RunFolder(tmp_path / "run"), tmp_path, table, *words)
    assert not (tmp_path / "found").exists()


def test_a_run_of_an_earlier_release_says_that_it_does_not_know_its_table(run, grown, tmp_path, capsys):
    old = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    old.table.unlink()
    assert len(measured(old, tmp_path, grown)) == 12
    assert capsys.readouterr().err == (
        "warning: This run has no record of the table it was trained on: an earlier release made it. "
        "Rows it was trained on cannot be told from others.\n"
    )


def test_a_merged_folder_is_measured_as_the_base_that_it_now_is(recipe_file, run, tmp_path):
    measure_checkpoint(read_recipe(recipe_file, ["--model.checkpoint", str(run.merged)]), tmp_path / "merged")
    found = read_measurement(tmp_path / "merged")
    assert found.test.metrics == json.loads(run.metrics.read_text())["zero-shot after"]
    assert found.retention.keys() == {"colours"}


def test_an_earlier_measurement_is_replaced_whole(recipe_file, tmp_path):
    recipe = read_recipe(recipe_file, ["--data.retention", "null"])
    measure_checkpoint(recipe, tmp_path / "found")
    (tmp_path / "found" / "rows.csv").write_text("of another model")
    with pytest.raises(FileExistsError, match="found not to exist"):
        measure_checkpoint(recipe, tmp_path / "found")
    measure_checkpoint(recipe, tmp_path / "found", overwrite=True)
    assert read_measurement(tmp_path / "found").test.rows["image"].str.endswith(".png").all()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(FileExistsError):
        measure_checkpoint(recipe, tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "mine.txt").exists()
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        *("measurement.json", "figures.safetensors", "predictions.csv", "rows.csv")
    }


def test_neighbours_without_training_rows_are_refused(recipe_file):
    words = ["--data.table.filter", "split == 'test'"]
    with pytest.raises(RecipeError, match="Expected training rows in .*colours.csv for run.neighbours 3, but got none"):
        measure_checkpoint(read_recipe(recipe_file, words))
    assert "test/accuracy" in measure_checkpoint(read_recipe(recipe_file, [*words, "--run.neighbours", "null"])).metrics


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

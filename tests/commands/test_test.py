"""`finetune test`: measurements of runs and checkpoints, on the screen and as folders."""

import json

import pandas as pd

from finetune.commands.cli import main
from finetune.run.measurement import read_measurement


def shown_metrics(text: str) -> dict[str, str]:
    """The figures of the first table on the screen."""
    lines = text.split("\n\n")[0].splitlines()[2:]
    return {cells[1].strip(): cells[2].strip() for cells in (line.split("|") for line in lines)}


def test_run_is_measured_as_the_run_measured_itself(two_towers, tmp_path, capsys):
    output = tmp_path / "again"
    assert main(["test", str(two_towers.path), "--output", str(output)]) == 0
    after = json.loads((two_towers.path / "metrics.json").read_text())["after"]
    assert shown_metrics(capsys.readouterr().out) == {key: f"{100 * value:.1f} %" for key, value in after.items()}
    assert read_measurement(output).test.metrics == after
    kept, run = (pd.read_csv(folder / "predictions.csv") for folder in (output, two_towers.path))
    assert kept["prediction"].tolist() == run["prediction"].tolist()


def test_classifier_of_a_run_is_measured_where_there_is_one(with_head, tmp_path, capsys):
    assert main(["test", str(with_head.path), "--output", str(tmp_path / "again")]) == 0
    after = json.loads((with_head.path / "metrics.json").read_text())["after"]
    assert shown_metrics(capsys.readouterr().out) == {key: f"{100 * value:.1f} %" for key, value in after.items()}


def test_only_a_measurement_is_replaced_and_only_on_request(refused, two_towers, tmp_path):
    words = ["test", "--config", str(two_towers.recipe), "--output"]
    output = tmp_path / "base"
    assert main([*words, str(output)]) == 0
    names = {path.name for path in output.iterdir()}
    assert names == {"measurement.json", "figures.safetensors", "predictions.csv", "rows.csv"}
    assert "Remove it or pass --overwrite" in refused(*words, output)
    assert main([*words, str(output), "--overwrite"]) == 0
    (output / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder in (output, two_towers.path, tmp_path, tmp_path / "file"):
        found = refused(*words, folder, "--overwrite")
        assert f"Expected {folder} to be absent, empty or written by this command" in found
    assert (output / "notes.txt").read_text() == "mine"
    assert (two_towers.path / "finished.json").is_file()


def test_folder_is_refused_before_anything_is_measured(refused, two_towers, tmp_path):
    words = ["test", two_towers.path, "--data.table.path", "nowhere.csv", "--output", tmp_path]
    assert "Remove it or pass --overwrite" in refused(*words)


def test_either_a_run_or_a_recipe_is_measured(refused, two_towers):
    for words in ([], [two_towers.path, "--config", two_towers.recipe]):
        assert refused("test", *words) == "error: Expected either RUN or --config RECIPE.\n"
    assert "Expected --anyway with RUN only" in refused("test", "--config", two_towers.recipe, "--anyway")


def test_rows_that_were_trained_on_count_only_on_request(moved, tmp_path, capsys):
    words = ["test", str(moved.path), "--output"]
    assert main([*words, str(tmp_path / "unseen")]) == 0
    assert "Leaves out 1 row of the split 'test'" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "all"), "--anyway"]) == 0
    found = [len(read_measurement(tmp_path / name).predictions) for name in ("unseen", "all")]
    assert found == [9, 10]

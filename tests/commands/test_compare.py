"""`finetune compare`: runs, exported folders and measurements side by side."""

import json
import shutil

import pandas as pd
import pytest

from finetune.commands.cli import main
from finetune.run.measurement import TEST


@pytest.fixture(scope="module")
def base(two_towers, tmp_path_factory):
    """The measurement of the base on the same rows."""
    folder = tmp_path_factory.mktemp("base") / "base"
    assert main(["test", "--config", str(two_towers.recipe), "--output", str(folder)]) == 0
    return folder


def read(path):
    return json.loads(path.read_text())


def test_base_against_a_run_gives_the_differences_of_the_run(base, two_towers, tmp_path, capsys):
    """A run measures its base in the same way, so all figures are those of its metrics.json."""
    output = tmp_path / "comparison.json"
    assert main(["compare", str(base), str(two_towers.path), "--output", str(output)]) == 0
    shown, found, metrics = capsys.readouterr().out, read(output), read(two_towers.path / "metrics.json")
    before, after = str(base), str(two_towers.path)
    assert found["metrics"][TEST] == {before: metrics["before"], after: metrics["after"]}
    assert found["differences"][TEST] == {after: metrics["difference"]}
    (name, retained), *none = metrics["retention"]["tables"].items()
    assert not none
    assert found["differences"][name][after][retained["metric"]] == retained["difference"]
    assert f"Retention table {name}:" in shown
    assert shown.count(f"{after} against {before}:") == 2
    assert "difference, 95 % interval" in shown


def test_more_than_two_are_each_compared_with_the_first(base, two_towers, with_head, tmp_path, capsys):
    output = tmp_path / "comparison.json"
    models = [str(path) for path in (base, two_towers.path, with_head.path / "classifier")]
    assert main(["compare", *models, "--output", str(output)]) == 0
    shown, found = capsys.readouterr().out, read(output)
    for other in models[1:]:
        assert f"{other} against {models[0]}:" in shown
        for key, difference in found["differences"][TEST][other].items():
            values = [found["metrics"][TEST][model][key] for model in (other, models[0])]
            assert difference["value"] == pytest.approx(values[0] - values[1], abs=1e-6)
            assert difference["low"] <= difference["value"] <= difference["high"]
            clear = "no clear difference" if difference["low"] <= 0 <= difference["high"] else difference["verdict"]
            assert difference["verdict"] == clear
    right = pd.read_csv(with_head.path / "predictions.csv").eval("label == prediction").mean()
    assert found["metrics"][TEST][models[2]]["test/accuracy"] == pytest.approx(right)


def test_exported_folder_that_was_copied_elsewhere_is_its_run(two_towers, base, tmp_path):
    shutil.copytree(two_towers.path / "merged", tmp_path / "merged")
    for model in (two_towers.path, tmp_path / "merged"):
        assert main(["compare", str(base), str(model), "--output", str(tmp_path / f"{model.name}.json")]) == 0
    run, merged = (read(tmp_path / name)["differences"][TEST] for name in ("colours.json", "merged.json"))
    assert [*run.values()] == [*merged.values()]


def test_models_that_saw_different_rows_are_not_compared(refused, base, two_towers, tmp_path):
    table = two_towers.recipe.read_text()
    rows = pd.read_csv(path := next(line.split()[-1] for line in table.splitlines() if line.endswith(".csv")))
    test = rows.index[rows["split"] == "test"]
    rows["image"] = [f"{path.rpartition('/')[0]}/{name}" for name in rows["image"]]
    rows.drop(index=test[1]).to_csv(tmp_path / "fewer.csv", index=False)
    words = [
        "--config",
        str(two_towers.recipe),
        "--data.table.path",
        str(tmp_path / "fewer.csv"),
        "--data.table.outside=true",
    ]
    assert main(["test", *words, "--output", str(tmp_path / "fewer")]) == 0
    found = refused("compare", base, tmp_path / "fewer", "--output", tmp_path / "never.json")
    assert "measured on the same test rows, but got" in found
    assert "in place " in found
    assert not (tmp_path / "never.json").exists()


def test_what_cannot_be_compared_is_refused(refused, base, tmp_path):
    assert "Expected two models or more, each named once" in refused("compare", base)
    assert "Expected two models or more, each named once" in refused("compare", base, base)
    found = refused("compare", base, tmp_path)
    assert f"Expected {tmp_path} to be a run, or an exported folder that carries its measurement" in found
    assert f"finetune test --config RECIPE --model.checkpoint {tmp_path} --output" in found


def test_file_is_replaced_only_on_request(refused, base, two_towers, tmp_path):
    output = tmp_path / "mine.json"
    output.write_text("mine")
    words = ["compare", str(base), str(two_towers.path), "--output", str(output)]
    assert "Remove it or pass --overwrite" in refused(*words)
    assert output.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert read(output).keys() >= {"metrics", "differences"}
    assert "Expected --output to name a file in a folder" in refused(*words[:-1], tmp_path)
    assert "Expected --output to name a file in a folder" in refused(*words[:-1], tmp_path / "absent" / "a.json")

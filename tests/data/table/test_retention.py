"""Retention tables: their names, how they are measured, and what `finetune check` says of them."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from finetune.commands.cli import main
from finetune.data.checks.check import TableSettings, check_table, read_settings
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.retention import name_tables
from finetune.data.table.table import Table, TableFaultsError
from finetune.pipeline.recipe import read_recipe

from ..checked import write

# ---- names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("a/*.tar", "b/*.tar"), ["a", "b"]),
        (("maps/**/[0-9]*.tar", "x/maps/?.csv.gz"), ["maps", "maps 2"]),
        (("a/part-*.tar", "b/*/photos.csv"), ["part-*", "photos"]),
    ],
)
def test_names_of_patterns(paths: tuple[str, ...], names: list[str]) -> None:
    assert list(name_tables([Table(path, caption="text") for path in paths])) == names


def test_name_of_a_pattern_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "birds")
    frame = pd.DataFrame({"image": ["a.png"], "text": ["a"]})
    assert list(name_tables([Table("*.tar", caption="text"), Table(frame, caption="text")])) == ["birds", "DataFrame"]


# ---- measuring


@pytest.mark.parametrize("merge", [True, False])
def test_equal_captions_are_taken_as_in_the_main_table(folder: Path, merge: bool) -> None:
    path = write(folder, image=["a.png", "b.png", "c.png"], caption=["x", "y", "x"], split=["test"] * 3)
    table = Table(path, caption="caption", split="split")
    data = ImageTextDataModule(
        table, "align-mini", retention=[table], batch_size=3, image_size=32, merge_equal_captions=merge
    )
    expected = [0, 1, 0] if merge else [0, 1, 2]
    for module in (data, data.retention["t"]):
        (batch,) = module.test_dataloader()
        assert batch.caption_ids.tolist() == expected


# ---- the check


def recipe(folder: Path, retention: object) -> Path:
    write(folder, image=["a.png", "b.png"], caption=["x", "y"])
    table = {"path": str(folder / "t.csv"), "caption": "caption"}
    settings = {"model": {"checkpoint": "align-mini"}, "data": {"table": table, "retention": retention}}
    settings["trainer"] = {"max_epochs": 1}
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        ([], ["u.csv"]),
        (["--data.batch_size", "3", "--data.retention", '[{"path": "v.csv", "caption": "c"}]'], ["v.csv"]),
        (["--data.retention+=[{path: v.csv, caption: c}]", "--data.table.limit_rows", "2"], ["u.csv", "v.csv"]),
        (["--data.retention=null"], []),
    ],
)
def test_settings_of_a_recipe_are_those_of_the_run(folder: Path, words: list[str], paths: list[str]) -> None:
    path = recipe(folder, [{"path": "u.csv", "label": "l", "split": {"val": 0}}])
    data = read_recipe(path, words).build_data()
    found = read_settings(path, words)
    assert found is not None
    assert found.table == data.table
    absolute = tuple(replace(table, path=str(Path(table.path).absolute())) for table in found.retention)
    assert absolute == tuple(other.table for other in data.retention.values())
    assert [table.path for table in found.retention] == paths


def test_command_reports_the_faults_that_a_run_would_stop_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "u.csv").write_text("image,caption,split\na.png,x,train\nnone.png,y,test\n")
    (folder / "v.csv").write_text("image,caption\na.png,x\nb.png,y\n")
    tables = [{"path": str(folder / name), "caption": "caption"} for name in ("nothere.csv", "u.csv", "v.csv")]
    tables[1]["split"] = "split"
    path, output = recipe(folder, tables), folder / "check.json"
    assert main(["check", "--config", str(path), "--output", str(output)]) == 2
    found = json.loads(output.read_text())
    assert [(Path(error["file"]).name, error["rule"]) for error in found["errors"]] == [
        ("nothere.csv", "the table to be a file"),
        ("u.csv", "an image file"),
        ("u.csv", "rows in the split 'test'"),
    ]
    assert found["rows"] == {"train": 1, "val": 0, "test": 1}
    assert f"error: {folder / 'nothere.csv'}: Expected the table to be a file" in capsys.readouterr().out
    retention = read_recipe(path).build_data().retention
    for name, error in zip(("nothere", "u"), found["errors"], strict=False):
        with pytest.raises(TableFaultsError) as stopped:
            retention[name].rows.require("test")
        assert str(stopped.value) == error["message"]
    retention["v"].rows.require("test")


def test_images_of_retention_tables_are_decoded_too(folder: Path) -> None:
    (folder / "c.png").write_bytes(b"no image")
    write(folder, image=["a.png", "b.png"], caption=["x", "y"])
    (folder / "u.csv").write_text("image,caption,split\nc.png,y,test\n")
    retention = Table(str(folder / "u.csv"), caption="caption", split="split")
    settings = TableSettings(Table(str(folder / "t.csv"), caption="caption"), False, (retention,))
    assert not check_table(settings).failed
    report = check_table(settings, full=True)
    assert [(fault.file, fault.row) for fault in report.faults] == [(str(folder / "u.csv"), 2)]
    assert report.sizes is not None
    assert report.sizes.tolist() == [[40, 30], [40, 30]]


def test_faults_of_retention_tables_are_reported_beside_those_of_a_table_that_cannot_be_read(folder: Path) -> None:
    main_table, retention = (Table(str(folder / name), caption="caption") for name in ("no.csv", "nor.csv"))
    report = check_table(TableSettings(main_table, False, (retention,)))
    assert [Path(fault.file).name for fault in report.faults] == ["no.csv", "nor.csv"]

"""A DataFrame in the place of a recipe's table: the same rows, checked, measured and trained on as its file."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from finetune import check, find_suspects, measure_checkpoint, measure_run, read_recipe, resume_run, run_recipe
from finetune.core.errors import RecipeError, TableError
from finetune.data.table.arrow_files import write_frame
from finetune.run.folder import RunFolder

from ..conftest import one_process


@pytest.fixture
def frame(colour_table) -> pd.DataFrame:
    """The colours, with paths that any folder finds."""
    rows = pd.read_csv(colour_table)
    return rows.assign(image=[colour_table.parent / name for name in rows["image"]])


@pytest.fixture
def read(two_towers, tmp_path):
    """Reads the recipe of a run, with other values."""

    def read(values: dict, **settings):
        here = {"run.folder": tmp_path / "runs", "run.name": "mine"}
        return read_recipe(two_towers.recipe, here | values, **settings)

    return read


def test_values_are_those_of_the_command_line(two_towers):
    recipe = read_recipe(
        two_towers.recipe,
        {
            "data.batch_size": 7,
            "model.text_lora": None,
            "model.image_lora": {"rank": 3, "layers": ["project_conv"]},
            "data.table.filter": "label != 'it''s'",
            "trainer.default_root_dir": Path("a b"),
            "run.linear_probe": True,
        },
    )
    values = yaml.safe_load(recipe.resolved)
    model, data = values["model"]["init_args"], values["data"]["init_args"]
    assert (data["batch_size"], model["text_lora"], model["image_lora"]["rank"]) == (7, None, 3)
    assert data["table"]["filter"] == "label != 'it''s'"
    assert (values["trainer"]["default_root_dir"], values["run"]["linear_probe"]) == ("a b", True)
    with pytest.raises(RecipeError, match="data.batch_sise.*Did you mean 'batch_size'"):
        read_recipe(two_towers.recipe, {"data.batch_sise": 7})
    with pytest.raises(RecipeError, match="Expected model.optimizer to be a text, .* but got a type. Name a class"):
        read_recipe(two_towers.recipe, {"model.optimizer": dict})


def test_a_recipe_s_file_stands_for_it(two_towers, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    by_file = check(two_towers.recipe)
    assert by_file.as_json() == check(read_recipe(two_towers.recipe)).as_json()
    for call in (run_recipe, check, find_suspects, measure_checkpoint):
        with pytest.raises(
            RecipeError, match="Expected a recipe file or the name of a shipped recipe, but got 'quikstart'"
        ):
            call("quikstart")


def test_a_frame_has_the_rows_of_its_file_before_and_after_it_is_written(read, frame, colour_table, tmp_path):
    frame = frame.assign(strange=[object()] * 36, image=frame["image"].map(str), loved=range(36))
    recipe = read({"data.table.path": frame, "data.table.filter": "loved > 2"})
    expected = read({"data.table.path": colour_table, "data.table.filter": "image not in ('0.png', '1.png', '2.png')"})
    found, wanted = recipe.build_data().rows, expected.build_data().rows
    assert found.source == "DataFrame"
    for name in ("images", "captions", "label_ids", "splits", "caption_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    np.testing.assert_array_equal(found.numbers, wanted.numbers - 2)  # iloc's, not a spreadsheet's
    table = recipe.build_data().table
    write_frame(frame, table.columns, table.row_filter, tmp_path / "frame.parquet")
    assert "strange" not in pd.read_parquet(tmp_path / "frame.parquet")
    written = recipe.reading(tmp_path / "frame.parquet").build_data().rows
    for name in ("images", "captions", "label_ids", "splits", "numbers"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))


def test_a_frame_is_checked(read, frame):
    assert not check(read({"data.table.path": frame})).failed
    wrong = frame.assign(image=[*frame["image"][:-1], "absent.png"], label=["", *frame["label"][1:]])
    report = check(read({"data.table.path": wrong}))
    assert report.failed
    assert [fault.row for fault in report.faults] == [0, 35]
    assert str(report.faults[0]).startswith("DataFrame:0:label: Expected a label, but got ''")


def test_open_images_in_a_frame_are_refused_with_the_repair(read, frame, tmp_path):
    opened = frame.assign(image=[Image.open(path) for path in frame["image"]])
    with pytest.raises(
        TableError, match="DataFrame:0:image: Expected the path of an image, but got 'a PngImageFile'. Save"
    ):
        run_recipe(read({"data.table.path": opened}))
    assert not (tmp_path / "runs").exists()


def test_a_frame_is_measured_as_its_file(read, frame, two_towers):
    before = RunFolder(two_towers.path).read_results()["before"]
    found = measure_checkpoint(read({"data.table.path": frame, "data.retention": None}))
    assert found.metrics == pytest.approx(before.to_dict())
    after = measure_run(RunFolder(two_towers.path), {"data.table.path": frame, "data.retention": None})
    assert after.metrics == pytest.approx(RunFolder(two_towers.path).read_results()["after"].to_dict())


@pytest.mark.slow
def test_a_run_of_a_frame_is_that_of_its_file_and_can_go_on(read, frame, two_towers, opener, tmp_path, monkeypatch):
    folder = frame["image"][0].parent
    monkeypatch.chdir(folder)
    frame = frame.assign(image=[path.name for path in frame["image"]])  # relative to the working directory
    with one_process(opener):
        run = run_recipe(read({"data.table.path": frame}))
        pd.testing.assert_frame_equal(run.read_results(), RunFolder(two_towers.path).read_results())
        monkeypatch.chdir(tmp_path)
        (run.path / "finished.json").unlink()
        shutil.rmtree(run.path / "measurements" / "after")
        again = resume_run(run.path)
    assert again.is_finished
    assert "data:image/" in run.report.read_text()
    pd.testing.assert_frame_equal(pd.read_parquet(run.frame)[["image", "label"]], frame[["image", "label"]])
    assert measure_run(run.path).metrics == pytest.approx(run.read_results()["after"].to_dict())


@pytest.mark.slow
def test_suspects_of_a_frame_are_those_of_its_file(read, frame, tmp_path):
    train = frame.assign(split="train", label=["blue", *frame["label"][1:]])
    train.to_csv(tmp_path / "train.csv")
    by_frame = find_suspects(read({"data.table.path": train, "data.retention": None}), folds=2).rows
    values = {"data.table.path": tmp_path / "train.csv", "data.table.outside": True, "data.retention": None}
    by_file = find_suspects(read(values), folds=2).rows
    assert set(by_frame["file"]) == {"DataFrame"}
    by_frame["row"] += 2  # iloc's, not a spreadsheet's
    pd.testing.assert_frame_equal(by_frame.drop(columns="file"), by_file.drop(columns="file"))

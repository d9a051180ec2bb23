"""Planted mistakes come first, rows are judged by adapters that never saw them, and the table is left as it is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from finetune.commands.cli import main
from finetune.core.errors import RecipeError
from finetune.data.table.table import Table
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.suspects import cross_fit, deal_folds, rank_rows
from finetune.pipeline.train import fit
from finetune.run.folder import RunFolder
from finetune.training.task import AlignTask

SWAPPED = (4, 11)  # a green and a blue square, as positions in the table


@pytest.fixture
def recipe_file(tmp_path, colour_table, tiny, monkeypatch) -> Path:
    """A recipe on the coloured squares, all for training, in which two rows have each other's caption and label."""
    table = pd.read_csv(colour_table).assign(split="train")
    first, second = SWAPPED
    for column in ("caption", "label"):
        table.loc[[first, second], column] = table.loc[[second, first], column].to_numpy()
    table.to_csv(tmp_path / "squares.csv", index=False)
    path = tmp_path / "squares.yaml"
    path.write_text(
        f"model:\n  checkpoint: {tiny}\n  image_lora: {{rank: 4}}\n  text_lora: {{rank: 4}}\n"
        "  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.003}}\n"
        "data:\n  batch_size: 8\n  table:\n    path: squares.csv\n    split: split\n"
        f"    images: {colour_table.parent}\n"
        "trainer:\n  max_epochs: 5\n  accelerator: cpu\n  enable_progress_bar: false\n"
    )
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def suspects(recipe_file, capsys):
    """Runs the command; returns the table it writes and what it prints."""

    def run(*words: str) -> tuple[pd.DataFrame, str]:
        assert main(["suspects", "--config", str(recipe_file), *words]) == 0
        return pd.read_csv("suspects.csv", keep_default_na=False), capsys.readouterr().out

    return run


def test_swapped_labels_come_first_with_the_right_ones(suspects, colour_table):
    before = Path("squares.csv").read_bytes()
    found, screen = suspects("--folds", "2", "--data.table.label", "label")
    assert list(found) == ["file", "row", "image", "label", "score", "better"]
    assert len(found) == 36
    worst = {line.row: (line.label, line.better) for line in found[:2].itertuples()}
    assert worst == {SWAPPED[0] + 2: ("blue", "green"), SWAPPED[1] + 2: ("green", "blue")}  # the header is row 1
    assert (found["better"][2:] == "").all()
    assert found["score"].is_monotonic_decreasing
    assert found["image"][0] == str(colour_table.parent / f"{found['row'][0] - 2}.png")
    lines = screen.splitlines()[-11:]  # after the progress bars
    assert lines[0] == f"{found['file'][0]}:{found['row'][0]}: {found['label'][0]!r}, better {found['better'][0]!r}"
    assert lines[10:] == ["36 rows scored, the worst fitting first; all in suspects.csv"]
    assert Path("squares.csv").read_bytes() == before
    assert {path.name for path in Path.cwd().iterdir()} == {"squares.csv", "squares.yaml", "suspects.csv"}


@pytest.mark.slow
def test_swapped_captions_come_first_with_one_that_fits_better(suspects):
    found, _ = suspects("--folds", "2", "--data.table.caption", "caption")
    assert list(found) == ["file", "row", "image", "caption", "score", "better"]
    assert set(found["row"][:2]) == {position + 2 for position in SWAPPED}
    for line in found[:2].itertuples():
        shown, said = ("green", "blue") if line.row == SWAPPED[0] + 2 else ("blue", "green")
        assert f"a {said} square" in line.caption
        assert f"a {shown} square" in line.better


def test_folds_keep_images_together_and_labels_even(colour_table):
    table = pd.read_csv(colour_table).assign(split="train")
    table.loc[30:, "split"] = "test"
    table["image"] = [str(colour_table.parent / name) for name in table["image"]]
    table = pd.concat([table, table[:6]], ignore_index=True)  # six images twice
    rows = Table(table, label="label", split="split").read(required=())
    folds = deal_folds(rows, 3, seed=0)
    assert (folds[30:36] == -1).all()
    assert set(np.delete(folds, range(30, 36))) == {0, 1, 2}
    assert (folds[:6] == folds[36:]).all()
    counts = np.array([np.bincount(rows.label_ids[:36][folds[:36] == fold], minlength=3) for fold in range(3)])
    assert counts.sum() == 30
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert (deal_folds(rows, 3, seed=0) == folds).all()
    assert (deal_folds(rows, 3, seed=1) != folds).any()


def test_a_file_that_exists_is_not_replaced_unasked(recipe_file, capsys):
    words = ["suspects", "--config", str(recipe_file), "--output"]
    Path("found.csv").write_text("mine")
    assert main([*words, "found.csv"]) == 2  # before anything is trained
    assert "found.csv not to exist, but it does. Remove it or pass --overwrite." in capsys.readouterr().err
    assert Path("found.csv").read_text() == "mine"
    Path("folder").mkdir()
    assert main([*words, "folder", "--overwrite"]) == 2
    assert "Expected --output to name a file in a folder that exists, but got folder." in capsys.readouterr().err


def test_images_that_cannot_be_read_are_left_out_and_reported(suspects, colour_table):
    Path("suspects.csv").write_text("of last time")
    Path("broken.png").write_bytes(b"no image")
    table = pd.read_csv("squares.csv")
    table["image"] = [str(colour_table.parent / name) for name in table["image"]]
    table.loc[7, "image"] = str(Path("broken.png").absolute())
    table.to_csv("squares.csv", index=False)
    words = ["--folds", "2", "--overwrite", "--data.table.label", "label", "--trainer.max_epochs", "1"]
    found, screen = suspects(*words, "--data.table.outside", "true", "--data.on_bad_image", "skip")
    assert set(found["row"]) == set(range(2, 38)) - {9}
    assert "skipped     1 row, neither trained on nor measured, as the images cannot be read" in screen
    assert "35 rows scored" in screen


def test_a_recipe_that_trains_nothing_is_refused(recipe_file, capsys):
    words = ["--data.table.label", "label", "--model.image_lora", "null", "--model.text_lora", "null"]
    assert main(["suspects", "--config", str(recipe_file), *words]) == 2
    assert "Expected something to train, but got none." in capsys.readouterr().err


def test_a_training_that_only_the_time_ends_is_refused(recipe_file, capsys):
    words = ["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:10:00"]
    assert main(["suspects", "--config", str(recipe_file), *words]) == 2
    assert "Expected trainer.max_epochs or trainer.max_steps to say how long the training is" in capsys.readouterr().err


@pytest.mark.parametrize("folds", [1, 19])
def test_number_of_folds_is_checked(colour_table, folds):
    rows = Table(str(colour_table), label="label", split="split").read(required=())
    with pytest.raises(RecipeError, match=f"Expected --folds to be from 2 to 18, the training images, but got {folds}"):
        deal_folds(rows, folds, seed=0)


def test_several_labels_a_row_are_refused(colour_table):
    table = Table(str(colour_table), label="label", label_separator="|", split="split")
    with pytest.raises(RecipeError, match="Expected a table with a caption or one label a row, but got several"):
        deal_folds(table.read(required=()), 3, seed=0)


def test_a_single_class_is_refused(colour_table, tmp_path):
    pd.read_csv(colour_table, dtype=str).assign(label="red").to_csv(tmp_path / "red.csv", index=False)
    table = Table(str(tmp_path / "red.csv"), label="label", split="split", images=str(colour_table.parent))
    with pytest.raises(
        RecipeError, match="Expected a table with a caption a row or several classes, but got 'red' alone"
    ):
        deal_folds(table.read(), 3, seed=0)


def test_tasks_are_trained_as_if_the_rows_they_judge_were_not_there(recipe_file):
    words = ["--data.table.label", "label", "--trainer.max_epochs", "1"]
    recipe = read_recipe(recipe_file, words)
    data = recipe.build_data()
    folds = deal_folds(data.rows, 3, seed=0)
    task = next(cross_fit(recipe, data, folds))
    pd.read_csv("squares.csv").drop(np.flatnonzero(folds == 0)).to_csv("others.csv", index=False)
    alone = read_recipe(recipe_file, [*words, "--data.table.path", "others.csv"])
    expected = alone.build_task()
    fit(alone, expected, alone.build_data(), RunFolder(recipe_file.parent / "run"))
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in task.state_dict().items())


def test_many_rows_are_compared_in_blocks(recipe_file, tiny, monkeypatch):
    data = read_recipe(recipe_file, ["--data.table.caption", "caption"]).build_data()
    one_fold = np.zeros(len(data.rows), dtype=np.int64)
    task = AlignTask(tiny, None, None)
    whole = rank_rows(torch.device("cpu"), [task], data, one_fold).set_index("row").sort_index()
    monkeypatch.setattr("finetune.pipeline.suspects.BLOCK", 20)
    parts = rank_rows(torch.device("cpu"), [task], data, one_fold).set_index("row").sort_index()
    assert parts["caption"].equals(whole["caption"])
    assert parts["score"].max() <= np.log(18) + 10
    assert not np.allclose(parts["score"], whole["score"])
    assert np.corrcoef(parts["score"].rank(), whole["score"].rank())[0, 1] > 0.5

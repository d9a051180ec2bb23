"""Data at fault, in whole commands: reported before anything is written, or skipped and listed."""

import csv
import shutil
from pathlib import Path

import pytest

from finetune.commands.cli import main


def test_faulty_table_is_reported_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("image,label,split\nnone.png,a,train\n")
    assert main(["fit", "--config", "quickstart", "--data.table.path", "bad.csv"]) == 2
    assert "bad.csv:2:image" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("task", ["AlignTask", "ClassificationTask"])
def test_a_training_that_can_learn_nothing_is_refused_before_a_weight_is_read(
    task, tmp_path, monkeypatch, capsys, colour_table, tiny, count_opens
):
    monkeypatch.chdir(tmp_path)
    lines = colour_table.read_text().replace(",red,test", ",blue,test").splitlines()
    images = [line if line.startswith("image") else f"{colour_table.parent}/{line}" for line in lines]
    kept = [line for line in images if ",train," not in line or ",red," in line]
    Path("one.csv").write_text("\n".join(kept) + "\n")
    Path("one.yaml").write_text(
        f"model: {{class_path: finetune.{task}, init_args: {{checkpoint: base}}}}\n"
        "data: {table: {path: one.csv, label: label, split: split, outside: true}}\n"
        "trainer: {max_epochs: 1}\nrun: {folder: runs}\n"
    )
    shutil.copytree(tiny, "base")  # which nobody else opens
    opens = count_opens(Path("base/model.safetensors"))
    assert main(["fit", "--config", "one.yaml"]) == 2
    message = "one.csv: Expected training rows of at least two classes, but got 'red'. All 6 training rows are"
    assert message in capsys.readouterr().err
    assert main(["check", "--config", "one.yaml"]) == 2
    assert message in capsys.readouterr().out
    assert not Path("runs").exists()
    assert opens() == 0


@pytest.fixture
def damaged(tmp_path, monkeypatch, colour_table):
    """A working directory with the colours, of which a training, a validation and a test image are cut off."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colour_table.parent, "colours")
    for name in ("0.png", "6.png", "9.png"):
        Path("colours", name).write_bytes(Path("colours", name).read_bytes()[:1_000])
    return "colours/colours.csv"


def test_unreadable_images_stop_a_test_or_are_skipped_and_listed(damaged, tiny, tmp_path, capsys):
    words = ["test", "--config", "quickstart", "--data.table.path", damaged, "--model.checkpoint", tiny]
    assert main(words) == 2
    assert f"error: {tmp_path}/{damaged}:11:image: Expected a whole image" in capsys.readouterr().err
    assert main([*words, "--data.on_bad_image", "skip"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0] == "skipped     1 row, neither trained on nor measured, as the images cannot be read"
    assert last[1].startswith(f"  {tmp_path}/{damaged}:11: {tmp_path}/colours/9.png: image file is truncated")


@pytest.mark.slow
def test_unreadable_images_stop_a_run_or_are_skipped_and_listed(damaged, tiny, tmp_path, capsys):
    options = ["--model.checkpoint", tiny, "--data.num_workers", "2", "--trainer.max_epochs", "1"]
    words = ["fit", "--config", "quickstart", "--data.table.path", damaged, *options]
    assert main([*words, "--run", "stops"]) == 2
    assert f"error: {tmp_path}/{damaged}:11:image: Expected a whole image" in capsys.readouterr().err
    assert not Path("runs/stops/finished.json").exists()

    assert main([*words, "--run", "skips", "--data.on_bad_image", "skip"]) == 0
    screen = capsys.readouterr().out
    assert "skipped     3 rows, neither trained on nor measured, as the images cannot be read; all in runs/" in screen
    assert f"  {tmp_path}/{damaged}:2: {tmp_path}/colours/0.png: image file is truncated" in screen
    with Path("runs/skips/skipped.csv").open(newline="") as file:
        skipped = list(csv.DictReader(file))
    assert [row["row"] for row in skipped] == ["2", "8", "11"]
    assert all(row["reason"].startswith("image file is truncated") for row in skipped)
    with Path("runs/skips/predictions.csv").open() as file:
        assert [line["row"] for line in csv.DictReader(file)] == ["12", "13", "23", "24", "25", "35", "36", "37"]
    assert main(["test", "runs/skips"]) == 0
    assert f"  {tmp_path}/{damaged}:11: " in capsys.readouterr().out

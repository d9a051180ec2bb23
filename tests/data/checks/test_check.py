"""What `finetune check` finds, on real files; and what it does not."""

import json
import subprocess
import sys
from pathlib import Path

import albumentations
import pytest

from finetune.commands.cli import main
from finetune.data.checks.check import Report, TableSettings, check_table, print_warnings, read_settings
from finetune.data.checks.concerns import find_concerns
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import CaptionList, RandomSplit, Table

from ..checked import about, labelled, write

# ---- the report


def test_rows_without_fault_are_looked_at(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no image")
    labels = ["cat", "Cat", "", "cat", "Cat"]
    images = ["a.png", "b.png", "c.png", "none.png", "d.png"]
    path = write(folder, image=images, label=labels, split=["train", "train", "train", "train", "trian"])
    table = Table(path, label="label", split="split")
    quick = check_table(TableSettings(table, mirrors=False))
    assert [(fault.row, fault.column) for fault in quick.faults] == [
        (4, "label"), (5, "image"), (6, "split"), (None, None)
    ]  # fmt: skip
    assert quick.faults[-1].rule == "rows in the split 'test'"
    assert about(quick.concerns) == ["single_rows", "near_equal_labels"]
    assert quick.rows is not None
    assert quick.rows.numbers.tolist() == [2, 3]
    full = check_table(TableSettings(table, mirrors=False), full=True)
    assert [fault.row for fault in full.faults] == [4, 5, 6, None, 3]
    assert full.failed
    assert full.total == "5 errors, 2 warnings"
    assert full.lines()[0] == "rows: 2 train, 0 val, 0 test"


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    report = check_table(TableSettings(Table(str(tmp_path / "no.csv"), label="label"), mirrors=False), full=True)
    assert [fault.rule for fault in report.faults] == ["the table to be a file"]
    assert report.rows is None
    assert report.as_json()["rows"] == {}


def test_everything_is_in_the_machine_readable_form(folder: Path) -> None:
    path = write(folder, image=["a.png"] * 20 + ["b.png"], caption=[""] * 20 + ["x"], n=range(21))
    report = check_table(TableSettings(Table(path, caption="caption", filter="n > 0"), mirrors=False))
    found = json.loads(json.dumps(report.as_json()))
    assert len(found["errors"]) == 19 + 1
    assert found["errors"][0] == {
        "file": path,
        "row": 3,
        "column": "caption",
        "value": None,
        "rule": "a caption",
        "repair": "Fill it in or remove the row.",
        "message": str(report.faults[0]),
    } | {"value": ""}
    assert found["removed"] == [{"condition": "n > 0", "rows": 1}]
    assert len(report.lines()) == 2 + 10 + 1
    assert report.lines()[1:3] == ["filter: 1 row removed by n > 0", f"error: {report.faults[0]}"]
    assert report.lines()[-1] == "… and 10 more"
    assert not Report().failed
    assert Report(recipe_error="x").failed


def test_warnings_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled(folder, ["cat", "Cat"] * 2)
    print_warnings(rows, find_concerns(rows, mirrors=False))
    assert capsys.readouterr().err == (
        "warning: The classes 'Cat', 'cat' differ only in case, spaces or punctuation.\n"
    )


# ---- the table of a recipe


RECIPE = """
model: {checkpoint: align-mini}
data:
  table:
    path: t.csv
    caption: {json_list: captions}
    split: {val: 0.2}
    separator: "\\t"
  augmentations:
    - class_path: albumentations.OneOf
      init_args:
        transforms:
          - class_path: albumentations.HorizontalFlip
"""


def test_settings_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    table = Table("t.csv", caption=CaptionList("captions"), split=RandomSplit(val=0.2), separator="\t")
    assert read_settings(path) == TableSettings(table, mirrors=True)
    words = [
        "--data.batch_size",
        "3",
        "--data.table.path",
        "u.csv",
        "--trainer.max_epochs=3",
        "--data.table.limit_rows=7",
    ]
    found = read_settings(path, [*words, "--data.init_args.table.caption", "text"])
    assert found is not None
    assert found.table == Table("u.csv", caption="text", split=RandomSplit(val=0.2), separator="\t", limit_rows=7)
    nested = "data: {class_path: finetune.ImageTextDataModule, init_args: {table: {path: t.csv, label: l}}}"
    path.write_text(nested)
    assert read_settings(path) == TableSettings(Table("t.csv", label="l"), mirrors=False)


@pytest.mark.parametrize(
    "text",
    [
        "data: {class_path: other.Module, init_args: {table: {path: t.csv, label: l}}}",
        "data: {table: {pth: t.csv, label: l}}",
        "data: {table: {path: t.csv}}",
        "data: {table: {path: t.csv, label: l, filter: 'x('}}",
        "data: 3",
        "data: {batch_size: 3}",
        "- a",
        "a: [",
        "",
    ],
)
def test_recipes_without_a_table_to_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert read_settings(tmp_path / "r.yaml") is None


# ---- the command


def recipe(folder: Path, *lines: str) -> Path:
    path = folder / "recipe.yaml"
    text = ["model: {checkpoint: align-mini}", "data:", f"  table: {{path: {folder / 't.csv'}, caption: caption}}"]
    path.write_text("\n".join([*text, "  image_size: 64", *lines, "trainer: {max_epochs: 1}"]))
    return path


def check(folder: Path, *words: str) -> tuple[int, dict[str, list[dict[str, object]]]]:
    output = folder / "check.json"
    code = main(["check", "--config", str(folder / "recipe.yaml"), "--output", str(output), *words])
    return code, json.loads(output.read_text())


def test_command_warns_of_the_checkpoints_limits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = ["cat " * 70, *"abcde"]
    write(folder, image=[f"{letter}.png" for letter in "abcdef"], caption=captions)
    recipe(folder)
    code, found = check(folder, "--full")
    assert code == 0
    assert found["errors"] == []
    assert [warning["about"] for warning in found["warnings"]] == ["long_texts", "small_images"]
    assert found["warnings"][0]["message"].startswith("1 caption is longer than 64 tokens; 8 tokens are cut off: 'cat")
    assert len(found["warnings"][1]["places"]) == 6
    printed = capsys.readouterr().out
    assert "warning: 1 caption is longer than 64 tokens" in printed
    assert "warning: 6 images are smaller than 64 x 64, the size to which every image is resized." in printed
    assert printed.splitlines()[-1] == f"0 errors, 2 warnings; all in {folder / 'check.json'}"
    assert [warning["about"] for warning in check(folder)[1]["warnings"]] == ["long_texts"]


def test_a_recipe_for_measuring_alone_need_not_say_how_it_trains(folder: Path) -> None:
    path = write(folder, image=["a.png", "b.png"], caption=["x", "x"], split=["train", "test"])
    words = ["--data.table.path", path, "--model.checkpoint", "align-mini", "--data.image_size", "64"]
    assert main(["check", "--config", "zero_shot", "--output", str(folder / "check.json"), *words]) == 0


def test_command_reports_faults_of_table_and_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, image=["a.png", "g.png"], caption=["", "x"])
    recipe(folder, "  batchsize: 3")
    code, found = check(folder)
    assert code == 2
    assert [error["row"] for error in found["errors"]] == [2, 3, None]
    assert "Did you mean 'batch_size'?" in str(found["errors"][-1]["message"])
    printed = capsys.readouterr().out
    assert printed.index("t.csv:2:caption: Expected a caption") < printed.index("Did you mean 'batch_size'")


def test_table_part_needs_no_torch(folder: Path) -> None:
    write(folder, image=["a.png", "b.png"], caption=["x", "y"])
    path = recipe(folder)
    code = (
        "import sys, pathlib; from finetune.data.checks.check import check_table, read_settings\n"
        f"settings = read_settings(pathlib.Path({str(path)!r})); report = check_table(settings)\n"
        "print([name for name in ('torch', 'transformers', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_data_module_finds_the_same(folder: Path) -> None:
    write(folder, image=["a.png", "b.png"], caption=["on the left", "cat " * 70], split=["train", "test"])
    table = Table(str(folder / "t.csv"), caption="caption", split="split")
    flip = albumentations.OneOf([albumentations.HorizontalFlip(), albumentations.Affine()])
    module = ImageTextDataModule(table, "align-mini", augmentations=[flip], image_size=32)
    assert about(module.find_concerns()) == ["mirrored_sides", "long_texts"]
    plain = ImageTextDataModule(table, "align-mini", augmentations=[albumentations.VerticalFlip()], image_size=32)
    assert about(plain.find_concerns()) == ["long_texts"]


def test_long_class_prompts(colour_table: Path) -> None:
    table = Table(str(colour_table), label="label", split="split")
    module = ImageTextDataModule(table, "align-mini", templates=("a {}", "very " * 63 + "{}"), image_size=32)
    (concern,) = module.find_limits()
    assert concern.message.startswith("3 class prompts are longer than 64 tokens; 6 tokens are cut off")


def test_exceptions_of_the_draw_are_told_with_their_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes of one image, an empty test split, an empty validation split; each image once, however many rows."""
    captions = [f"{letter} {text}" for letter in "abcdef" for text in range(3)]
    labels = [label for label in ("x", "x", "x", "x", "y", "z") for _ in range(3)]
    write(folder, image=[f"{letter}.png" for letter in "abcdef" for _ in range(3)], label=labels, caption=captions)
    seen = set()
    for seed in range(12):
        table = Table(str(folder / "t.csv"), label="label", split=RandomSplit(0.1, 0.3, seed))
        report = check_table(TableSettings(table, mirrors=False))
        assert report.rows is not None
        exceptions = report.as_json()["exceptions"]
        found = {Path(image).name for image in report.rows.images[report.rows.splits != report.rows.drawn].tolist()}
        assert {one["image"] for one in exceptions} == found
        assert all(one["split"] != one["drawn"] for one in exceptions)
        lines = [line for line in report.lines() if line.startswith("split: ")]
        for split, reason in (("train", "where their class would have none"), ("val", EMPTY), ("test", EMPTY)):
            names = [one["image"] for one in exceptions if one["split"] == split]
            if names:
                number = "1 image is" if len(names) == 1 else f"{len(names)} images are"
                assert f"split: {number} in {split}, {reason}: {', '.join(map(repr, names))}" in lines
                seen.add(split)
        assert len(lines) == len({one["split"] for one in exceptions})
        print_warnings(report.rows, [])
        assert capsys.readouterr().err.splitlines() == lines
    assert seen == {"train", "val", "test"}


EMPTY = "which would be empty"

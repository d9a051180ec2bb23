"""What `finetune check` finds, on real files; and what it does not."""

import json
import subprocess
import sys
from pathlib import Path

import albumentations
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune.cli import main
from finetune.data.check import Report, TableSettings, check_table, read_settings, tell
from finetune.data.concerns import Concern, find_concerns
from finetune.data.copies import find_copies
from finetune.data.datamodule import ImageTextDataModule
from finetune.data.decode import decode_images
from finetune.data.table import CaptionList, RandomSplit, Rows, Table


def write(folder: Path, **columns: object) -> str:
    path = folder / "t.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for at, letter in enumerate("abcdef"):
        draw(tmp_path / f"{letter}.png", at)
    return tmp_path


def labelled(folder: Path, labels: list[str], captions: list[str] | None = None, split: str = "train") -> Rows:
    columns = {"image": ["a.png"] * len(labels), "label": labels, "split": [split] * len(labels)}
    if captions is not None:
        columns["caption"] = captions
    path = write(folder, **columns)
    return Table(path, label="label", caption="caption" if captions else None, split="split").read(required=())


def about(concerns: list[Concern]) -> list[str]:
    return [concern.about for concern in concerns]


# ---- labels and captions


def test_a_sound_table_has_no_concern(folder: Path) -> None:
    rows = labelled(folder, ["cat", "dog"] * 4, ["a cat on the left", "a dog"] * 4)
    assert find_concerns(rows, mirrors=False) == []
    assert find_copies(rows) == []


def test_classes_with_one_row(folder: Path) -> None:
    (concern,) = find_concerns(labelled(folder, ["cat", "dog", "dog", "emu"]), mirrors=False)
    assert concern.message == "2 classes have one row only: 'cat', 'emu'."
    assert concern.places == (f"{folder / 't.csv'}:2", f"{folder / 't.csv'}:5")


@pytest.mark.parametrize(("most", "concerned"), [(40, False), (41, True)])
def test_imbalance(folder: Path, most: int, concerned: bool) -> None:
    concerns = find_concerns(labelled(folder, ["cat"] * most + ["dog"] * 2), mirrors=False)
    assert about(concerns) == ["imbalance"] * concerned
    if concerned:
        message = "The class 'cat' has 41 training rows, 'dog' 2: more than 20 times as many."
        assert concerns[0].message == message
    assert find_concerns(labelled(folder, ["cat"] * most + ["dog"] * 2, split="test"), mirrors=False) == []


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("ice cream", "ice_cream"), ("café", "cafe\u0301"), ("t-shirt", "tshirt")]
)
def test_near_equal_labels(folder: Path, names: tuple[str, str]) -> None:
    (concern,) = find_concerns(labelled(folder, [*names, "dog"] * 2), mirrors=False)
    assert concern.about == "near_equal_labels"
    assert all(repr(name) in concern.message for name in names)


def test_labels_of_signs_alone_are_not_near(folder: Path) -> None:
    assert find_concerns(labelled(folder, ["+", "-", "a", "b"] * 2), mirrors=False) == []


def test_equal_captions_for_different_classes(folder: Path) -> None:
    rows = labelled(folder, ["cat", "cat", "dog", "dog"], ["a pet", "a cat", "a pet", "a dog"])
    (concern,) = find_concerns(rows, mirrors=False)
    assert concern.about == "caption_of_several_classes"
    assert concern.message == "1 caption stands with different classes: 'a pet'."
    assert [place.rpartition(":")[2] for place in concern.places] == ["2", "4"]


@pytest.mark.parametrize(
    ("caption", "concerned"),
    [("turn LEFT here", True), ("the rightmost one", True), ("leftover soup", False), ("a bright copyright", False)],
)
def test_mirrored_sides(folder: Path, caption: str, concerned: bool) -> None:
    path = write(folder, image=["a.png", "b.png"], caption=[caption, "left"], split=["train", "test"])
    rows = Table(path, caption="caption", split="split").read()
    concerns = find_concerns(rows, mirrors=True)
    assert about(concerns) == ["mirrored_sides"] * concerned
    if concerned:
        assert concerns[0].places == (f"{path}:2",)
    assert find_concerns(rows, mirrors=False) == []


# ---- several labels a row


def several(folder: Path, labels: list[str], split: str = "train") -> Rows:
    path = write(folder, image=["a.png"] * len(labels), label=labels, split=[split] * len(labels))
    return Table(path, label="label", label_separator="|", split="split").read(required=())


def test_a_sound_table_of_several_labels_has_no_concern(folder: Path) -> None:
    assert find_concerns(several(folder, ["cat|dog", "dog | cat", "cat", "dog|emu", "emu"]), mirrors=True) == []


def test_rows_without_labels(folder: Path) -> None:
    (concern,) = find_concerns(several(folder, ["cat|dog", "", "dog|cat", " "]), mirrors=False)
    assert concern.about == "no_label"
    assert concern.message == "2 rows have no label: taken for images that show none of the classes."
    assert [place.rpartition(":")[2] for place in concern.places] == ["3", "5"]


def test_another_separator_than_the_cells(folder: Path) -> None:
    (concern,) = find_concerns(several(folder, ["cat,dog", "cat,dog", "emu", "emu"]), mirrors=False)
    assert concern.about == "no_label_separator"
    assert concern.message.startswith("No row has more than one label: data.table.label_separator may not be")


def test_classes_with_one_row_of_several_labels(folder: Path) -> None:
    (concern,) = find_concerns(several(folder, ["cat|dog|fox", "dog|cat", "dog|emu"]), mirrors=False)
    assert concern.message == "2 classes have one row only: 'emu', 'fox'."
    assert [place.rpartition(":")[2] for place in concern.places] == ["2", "4"]


@pytest.mark.parametrize(("most", "concerned"), [(40, False), (41, True)])
def test_imbalance_of_several_labels(folder: Path, most: int, concerned: bool) -> None:
    labels = ["cat|dog"] * 2 + ["cat|emu"] * (most - 2) + ["emu"]
    concerns = find_concerns(several(folder, labels), mirrors=False)
    assert about(concerns) == ["imbalance"] * concerned
    if concerned:
        message = "The class 'cat' has 41 training rows, 'dog' 2: more than 20 times as many."
        assert concerns[0].message == message
    assert find_concerns(several(folder, labels, split="test"), mirrors=False) == []


def test_sides_among_several_labels(folder: Path) -> None:
    concerns = find_concerns(several(folder, ["left hand|ring", "ring|left hand", "ring"]), mirrors=True)
    assert about(concerns) == ["mirrored_sides"]


# ---- the same picture in two splits


def copies_of(folder: Path, images: list[str], splits: list[str], **settings: str) -> list[Concern]:
    path = write(folder, image=images, caption=images, split=splits, id=[name[0] for name in images])
    return find_copies(Table(path, caption="caption", split="split", **settings).read(required=()))


def test_copies_in_two_splits(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    (concern,) = copies_of(folder, ["a.png", "b.png", "copy.png"], ["train", "train", "test"])
    assert concern.message == "1 picture lies in files of more than one split, byte for byte: 'a.png', 'copy.png'."
    assert [place.rpartition(":")[2] for place in concern.places] == ["2", "4"]
    assert copies_of(folder, ["a.png", "b.png", "copy.png"], ["train", "test", "train"]) == []


def test_files_of_equal_size_and_beginning_are_told_apart(folder: Path) -> None:
    beginning = bytes(20_000)
    for name, end in (("x.png", b"one"), ("y.png", b"two"), ("z.png", b"one"), ("w.png", b"six")):
        (folder / name).write_bytes(beginning + end)
    images, splits = ["x.png", "y.png", "z.png", "w.png"], ["train", "val", "test", "train"]
    (concern,) = copies_of(folder, images, splits)
    assert [place.rpartition(":")[2] for place in concern.places] == ["2", "4"]


def test_one_path_or_id_in_two_splits(folder: Path) -> None:
    (concern,) = copies_of(folder, ["a.png", "a.png", "b.png"], ["train", "test", "val"])
    assert concern.about == "image_in_several_splits"
    assert [place.rpartition(":")[2] for place in concern.places] == ["2", "3"]
    draw(folder / "a2.png", 77)
    (concern,) = copies_of(folder, ["a.png", "a2.png", "b.png"], ["train", "test", "val"], image_id="id")
    assert concern.about == "image_in_several_splits"


def test_copies_against_all_pairs(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    contents = generator.integers(0, 30, 60)
    names = [f"{at}.png" for at in range(60)]
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(bytes([content]) * 100)
    splits = generator.choice(["train", "val", "test"], 60)
    (concern,) = copies_of(tmp_path, names, splits.tolist())
    expected = {
        at + 2 for at in range(60) if any(contents[at] == contents[it] and splits[at] != splits[it] for it in range(60))
    }
    assert {int(place.rpartition(":")[2]) for place in concern.places} == expected


# ---- decoding


def test_every_image_is_decoded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(half[: len(half) // 2])
    (folder / "c.png").write_bytes(b"")
    draw(folder / "d.png", 9, (7, 90))
    images = ["a.png", "b.png", "c.png", "d.png", "b.png"]
    rows = Table(write(folder, image=images, one=images, two=images), caption=("one", "two")).read(required=())
    found = decode_images(rows, "image", processes=2)
    assert [(fault.row, fault.column) for fault in found.faults] == [(3, "image"), (4, "image"), (6, "image")]
    assert found.sizes[::2].tolist() == [[40, 30], [0, 0], [0, 0], [7, 90], [0, 0]]
    assert str(found.faults[0]).startswith(f"{folder / 't.csv'}:3:image: Expected a whole image (BMP, GIF")
    assert "It cannot be read: " in found.faults[0].repair
    assert "4/4" in capsys.readouterr().err


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
    assert report.lines()[1:3] == ["filter: 1 rows removed by n > 0", f"error: {report.faults[0]}"]
    assert report.lines()[-1] == "… and 10 more"
    assert not Report().failed
    assert Report(recipe_error="x").failed


def test_tell_prints_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled(folder, ["cat", "Cat"] * 2)
    tell(rows, find_concerns(rows, mirrors=False))
    assert capsys.readouterr().err == (
        "warning: The classes 'Cat', 'cat' differ in case, spaces or punctuation alone.\n"
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
    path.write_text("\n".join([*text, "  image_size: 64", *lines]))
    return path


def check(folder: Path, *words: str) -> tuple[int, dict[str, list[dict[str, object]]]]:
    output = folder / "out" / "check.json"
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
    assert "warning: 6 images are smaller than 64 x 64, the size that images are brought to." in printed
    assert printed.splitlines()[-1] == f"0 errors, 2 warnings; all in {folder / 'out' / 'check.json'}"
    assert [warning["about"] for warning in check(folder)[1]["warnings"]] == ["long_texts"]


def test_command_tells_faults_of_table_and_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        "import sys, pathlib; from finetune.data.check import check_table, read_settings\n"
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
    (concern,) = module.find_limits(module.rows)
    assert concern.message.startswith("3 class prompts are longer than 64 tokens; 6 tokens are cut off")

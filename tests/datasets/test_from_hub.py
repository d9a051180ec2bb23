"""Data sets in the formats of Hugging Face's library as images and a table, which recipes read as it is said."""

import csv
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser
from PIL import Image as Picture

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from finetune.core.shipped import shipped_folder
from finetune.data.table.table import Rows, Table

ROOT = Path(__file__).parents[2]
main = runpy.run_path(str(shipped_folder("datasets") / "from_hub.py"))["main"]


def picture(seed: int, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    Picture.fromarray(noise).save(file, kind)
    return file.getvalue()


def dataset(types: dict[str, Any], **columns: list[Any]) -> Dataset:
    """With an image column of the bytes that are given."""
    images = [None if data is None else {"bytes": data, "path": None} for data in columns.pop("image")]
    return Dataset.from_dict({"image": images, **columns}, features=Features({"image": Image(), **types}))


def saved(folder: Path, **splits: Dataset) -> str:
    DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def read(output: Path) -> list[dict[str, str]]:
    with (output / "table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_as_printed(screen: str) -> Rows:
    """The rows by the lines for a recipe that the script printed."""
    settings = yaml.safe_load(screen.split("\n\n", 1)[1])["data"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, "table")
    return parser.instantiate(parser.parse_object(settings)).table.read(required=("train",))


def run(command: list[Any], folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, without a network and with a cache of its own."""
    settings = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    settings.pop("PYTHONPATH", None)
    words = list(map(str, command))
    return subprocess.run(words, cwd=folder, env=settings, capture_output=True, text=True, check=False)


def test_folder_of_images_with_metadata_from_the_root_of_the_checkout(tmp_path: Path) -> None:
    """The folder `datasets` stands on the import path there, as the script's own."""
    for split in ("train", "validation", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        lines = [["file_name", "text"]]
        for number in range(3):
            data = picture(3 * ("train", "validation", "test").index(split) + number)
            (tmp_path / "photos" / split / f"{number}.jpg").write_bytes(data)
            lines.append([f"{number}.jpg", f'a "{split}" photo, number {number}\nin two lines'])
        with (tmp_path / "photos" / split / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    out = tmp_path / "out"
    done = run([sys.executable, "datasets/from_hub.py", tmp_path / "photos", "--output", out], ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{out}/table.csv: 9 rows (3 train, 3 val, 3 test), 9 pictures\n" in done.stdout
    rows = read(out)
    assert [(out / row["image"]).read_bytes() for row in rows] == [picture(seed) for seed in range(9)]
    assert [row["split"] for row in rows] == ["train"] * 3 + ["val"] * 3 + ["test"] * 3
    rows_read = read_as_printed(done.stdout)
    assert rows_read.captions.tolist() == [row["caption"] for row in rows]
    assert rows_read.captions[4] == 'a "validation" photo, number 1\nin two lines'


def test_parquet_by_the_command_and_a_second_time_the_same_bytes(tmp_path: Path) -> None:
    types = {"label": ClassLabel(names=["tabby cat", "dog"]), "image_file_path": Value("string")}
    (tmp_path / "beans").mkdir()
    for split in ("train", "test"):
        made = dataset(types, image=[picture(1), picture(2)], label=[0, 1], image_file_path=["a", "b"])
        made.to_parquet(tmp_path / "beans" / f"{split}-00000-of-00001.parquet")
    contents, command = [], [sys.executable, "-m", "finetune", "prepare", "from_hub"]
    for words, folder in (
        ([tmp_path / "beans", "--output", tmp_path / "data" / "beans"], ROOT),
        (["beans", "--limit", "2"], tmp_path),  # read without a copy in the library's cache
    ):
        done = run([*command, *words], folder, tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        contents.append((tmp_path / "data" / "beans" / "table.csv").read_bytes())
    assert contents[0] == contents[1]
    rows = read(tmp_path / "data" / "beans")
    assert [(row["label"], row["split"]) for row in rows] == [
        *(("tabby cat", "train"), ("dog", "train"), ("tabby cat", "test"), ("dog", "test"))
    ]
    assert list(rows[0]) == ["image", "label", "split"]  # a label is there, so other texts are not captions
    assert len(list((tmp_path / "data" / "beans" / "images" / "0000").iterdir())) == 2


def test_several_captions_repeated_pictures_and_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [["a cat", " a cat on a sofa ", ""], ["a dog"], None, [], ["none"], ["broken"]]
    images = [picture(1), picture(1), picture(2), picture(3), None, b"no picture"]
    made = dataset({"sentences": List(Value("string"))}, image=images, sentences=captions)
    assert main([saved(tmp_path / "made", train=made), "--output", str(tmp_path / "out")]) == 0
    screen = capsys.readouterr().out
    assert "2 rows (2 train), 1 pictures" in screen
    assert "left out: 2 rows without captions" in screen
    assert "left out: 2 rows without image" in screen
    assert "no row is test" in screen
    rows = read(tmp_path / "out")
    assert [json.loads(row["captions"]) for row in rows] == [["a cat", "a cat on a sofa"], ["a dog"]]
    rows_read = read_as_printed(screen)
    assert rows_read.captions.tolist() == ["a cat", "a cat on a sofa", "a dog"]
    assert len(set(rows_read.image_ids.tolist())) == 1


@pytest.mark.parametrize("text", ["a\rcat", "a cat\r\non a sofa", "a\ncat", '"a" cat, \rb', "a\u2028cat"])
def test_line_ends_in_texts_break_no_row(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = dataset({"text": Value("string")}, image=[picture(1), picture(2)], text=[text, "a dog"])
    assert main([saved(tmp_path / "made", train=made), "--output", str(tmp_path / "out")]) == 0
    assert read_as_printed(capsys.readouterr().out).captions.tolist() == [text, "a dog"]


def test_stated_columns_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types = {"thumbnail": Image(), "one": Value("string"), "two": Value("string"), "kind": Value("int64")}
    types["species"] = ClassLabel(names=["cat", "dog"])
    columns = {"one": ["a cat", "a dog", ""], "two": ["it sits", None, ""], "kind": [7, 8, 9], "species": [0, 1, -1]}
    small = [{"bytes": picture(seed, "PNG"), "path": None} for seed in range(3)]
    made = dataset(types, image=[picture(seed) for seed in range(3)], thumbnail=small, **columns)
    source = saved(tmp_path / "made", train=made, testA=made, dev=made)
    out = str(tmp_path / "out")
    chosen = ["--image", "thumbnail", "--caption", "one", "two", "--label", "species"]
    assert main([source, *chosen, "--split", "train=train", "--split", "testA=test", "--output", out]) == 0
    rows = read(tmp_path / "out")
    assert [(row["captions"], row["label"], row["split"]) for row in rows] == [
        ('["a cat", "it sits"]', "cat", "train"),
        ('["a dog"]', "dog", "train"),
        ('["a cat", "it sits"]', "cat", "test"),
        ('["a dog"]', "dog", "test"),
    ]
    assert {Path(row["image"]).suffix for row in rows} == {".png"}
    assert main([source, "--image", "image", "--label", "kind", "--split", "dev=val", "--output", out]) == 0
    assert [row["label"] for row in read(tmp_path / "out")] == ["7", "8", "9"]
    capsys.readouterr()


def test_paths_are_read_and_a_single_split_is_train(tmp_path: Path) -> None:
    (tmp_path / "1.bmp").write_bytes(picture(1, "BMP"))
    paths = [str(tmp_path / "1.bmp"), str(tmp_path / "absent.bmp")]
    Dataset.from_dict({"file": paths, "text": ["a", "b"]}).save_to_disk(tmp_path / "single")
    words = [str(tmp_path / "single"), "--image", "file", "--caption", "text", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert read(tmp_path / "out") == [{"image": "images/0000/00000000.bmp", "caption": "a", "split": "train"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    types = {"text": Value("string"), "url": Value("string"), "tags": List(ClassLabel(names=["a", "b"]))}
    columns = {"text": ["a cat"], "url": ["x"], "tags": [[0, 1]]}
    split = dataset(types, image=[picture(1)], **columns)
    return saved(tmp_path_factory.mktemp("made") / "made", train=split, testA=split)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--split", "train=train"],
            r"Expected one column of captions \(--caption\), or of labels \(--label\), but got 2",
        ),
        (
            ["--caption", "txet", "--split", "train=train"],
            r"Expected a column 'txet', but got none\. Did you mean 'text'\?",
        ),
        (["--caption", "text"], r"--split to say which of train, testA are train, val, test, but got testA=testA"),
        (["--split", "tset=test"], r"but got tset=test\. Write --split train=train"),
        (["--caption", "tags", "--split", "train=train"], r"--caption to name columns of texts, but got 0"),
        (["--label", "tags", "--split", "train=train"], r"one label a row, but got \[0, 1\]"),
        (
            ["--caption", "text", "--image", "tags", "--split", "train=train"],
            r"--image to name a column of images, paths",
        ),
        (
            ["--caption", "text", "--image", "url", "--split", "train=train"],
            r"Expected rows with image, caption, but got",
        ),
    ],
)
def test_what_is_wrong_is_reported_and_nothing_is_written(
    made: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([made, *words, "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith("error: Expected")
    assert re.search(message, printed), printed
    assert not list(tmp_path.iterdir())


def test_sources_that_are_not_there_and_foreign_folders(made: str, tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 2
    assert "to be a data set of the hub or a local one, but got: Couldn't find any data file" in capsys.readouterr().err
    (tmp_path / "old" / "old.py").parent.mkdir()
    (tmp_path / "old" / "old.py").touch()
    assert main([str(tmp_path / "old"), "--output", str(tmp_path / "out")]) == 2
    assert "--revision refs/convert/parquet" in capsys.readouterr().err
    (tmp_path / "mine.txt").touch()
    assert main([made, "--output", str(tmp_path)]) == 2
    assert "it holds something else" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([made, "--limit", "0"])
    assert "Expected --limit to be at least 1, but got 0" in capsys.readouterr().err


def test_no_folder_of_the_checkout_is_a_package_named_as_the_library() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()

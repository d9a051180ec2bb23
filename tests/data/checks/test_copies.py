"""The same picture in two splits, or under two classes."""

from pathlib import Path

import numpy as np

from finetune.core.errors import Concern
from finetune.data.checks.copies import find_contradictions, find_copies
from finetune.data.table.table import Table

from ..checked import write
from ..images import draw


def copies_of(folder: Path, images: list[str], splits: list[str], **settings: str) -> list[Concern]:
    path = write(folder, image=images, caption=images, split=splits, id=[name[0] for name in images])
    return find_copies(Table(path, caption="caption", split="split", **settings).read(required=()))


def test_copies_in_two_splits(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    (concern,) = copies_of(folder, ["a.png", "b.png", "copy.png"], ["train", "train", "test"])
    assert concern.message == "1 image is in files of more than one split, byte for byte: 'a.png', 'copy.png'."
    assert [place.rpartition(":")[2] for place in concern.places] == ["2", "4"]
    assert copies_of(folder, ["a.png", "b.png", "copy.png"], ["train", "test", "train"]) == []


def test_files_of_equal_size_and_beginning_are_distinguished(folder: Path) -> None:
    beginning = bytes(20_000)
    for name, end in (("x.png", b"one"), ("y.png", b"two"), ("z.png", b"one"), ("w.png", b"six")):
        (folder / name).write_bytes(beginning + end)
    images, splits = ["x.png", "y.png", "z.png", "w.png"], ["train", "val", "test", "train"]
    (concern,) = copies_of(folder, images, splits)
    assert [place.rpartition(":")[2] for place in concern.places] == ["2", "4"]


def test_files_that_are_gone_since_are_equal_to_no_others(folder: Path) -> None:
    path = write(folder, image=["a.png", "b.png", "c.png"], caption=["x", "y", "z"], split=["train", "test", "val"])
    rows = Table(path, caption="caption", split="split").read()
    for name in ("a.png", "b.png"):
        (folder / name).unlink()
    assert find_copies(rows) == []


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


# ---- one picture under two classes


def contradictions_of(folder: Path, images: list[str], labels: list[str], **settings: str) -> list[Concern]:
    path = write(folder, image=images, label=labels, split="train", id=[name[0] for name in images])
    return find_contradictions(Table(path, label="label", split="split", **settings).read(required=()))


def test_one_path_id_or_content_under_two_classes(folder: Path) -> None:
    images = ["a.png", "b.png", "a.png", "c.png"]
    (concern,) = contradictions_of(folder, images, ["cat", "dog", "dog", "cat"])
    assert concern.about == "image_of_several_classes"
    assert concern.message.startswith("1 image is of more than one class: 'a.png'. Keep the label that is right, or")
    assert [place.rpartition(":")[2] for place in concern.places] == ["2", "4"]
    assert contradictions_of(folder, images, ["cat", "dog", "cat", "cat"]) == []
    (folder / "copy.png").write_bytes((folder / "b.png").read_bytes())
    (concern,) = contradictions_of(folder, ["copy.png", "a.png", "b.png"], ["cat", "dog", "dog"])
    assert concern.about == "copy_of_several_classes"
    assert "1 image is in files of more than one class, byte for byte: 'copy.png', 'b.png'." in concern.message
    draw(folder / "a2.png", 77)
    (concern,) = contradictions_of(folder, ["a.png", "a2.png"], ["cat", "dog"], image_id="id")
    assert concern.about == "image_of_several_classes"


def test_several_labels_or_captions_of_a_picture_contradict_nothing(folder: Path) -> None:
    images, labels = ["a.png", "a.png"], ["cat", "dog"]
    assert contradictions_of(folder, images, labels, label_separator="|") == []
    path = write(folder, image=images, caption=labels)
    assert find_contradictions(Table(path, caption="caption").read(required=())) == []

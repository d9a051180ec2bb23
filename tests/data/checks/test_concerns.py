"""What is seldom meant in labels and captions; and what is no concern."""

from pathlib import Path

import pytest
from scipy.stats import binomtest

from finetune.data.checks.concerns import find_concerns
from finetune.data.checks.copies import find_copies
from finetune.data.table.table import Rows, Table

from ..checked import about, labelled, write

# ---- labels and captions


def test_a_sound_table_has_no_concern(folder: Path) -> None:
    images, labels = [f"{letter}.png" for letter in "abcdef"], ["cat", "dog"] * 3
    path = write(folder, image=images, label=labels, caption=["a cat on the left", "a dog"] * 3, split="train")
    rows = Table(path, label="label", caption="caption", split="split").read(required=())
    assert find_concerns(rows, mirrors=False) == []
    assert find_copies(rows) == []


def test_classes_with_one_row(folder: Path) -> None:
    (concern,) = find_concerns(labelled(folder, ["cat", "dog", "dog", "emu"]), mirrors=False)
    assert concern.message == "2 classes have only one row: 'cat', 'emu'."
    assert concern.places == (f"{folder / 't.csv'}:2", f"{folder / 't.csv'}:5")


def test_a_single_class(folder: Path) -> None:
    for captions in (None, ["a cat", "a cat asleep"]):
        (concern,) = find_concerns(labelled(folder, ["cat"] * 2, captions), mirrors=False)
        assert concern.about == "one_class"
        assert concern.message == "All rows are of one class, 'cat': nothing can be learnt or measured with it alone."


@pytest.mark.parametrize(("most", "concerned"), [(40, False), (41, True)])
def test_imbalance(folder: Path, most: int, concerned: bool) -> None:
    concerns = find_concerns(labelled(folder, ["cat"] * most + ["dog"] * 2), mirrors=False)
    assert about(concerns) == ["imbalance"] * concerned
    if concerned:
        message = "The class 'cat' has 41 training rows, 'dog' 2: more than 20 times as many."
        assert concerns[0].message == message
    assert find_concerns(labelled(folder, ["cat"] * most + ["dog"] * 2, split="test"), mirrors=False) == []


def split_rows(folder: Path, **labels: list[str]) -> Rows:
    """A table with these labels in each split."""
    column = [label for names in labels.values() for label in names]
    split = [name for name, names in labels.items() for _ in names]
    path = write(folder, image=["a.png"] * len(column), label=column, split=split)
    return Table(path, label="label", split="split").read(required=())


def test_classes_without_test_rows(folder: Path) -> None:
    rows = split_rows(folder, train=["cat", "dog", "emu", "fox"] * 2, val=["emu"], test=["cat"] * 15 + ["dog"] * 15)
    (concern,) = find_concerns(rows, mirrors=False)
    assert concern.about == "untested_classes"
    assert concern.message.startswith("2 classes have training rows and no test row: 'emu', 'fox'. Nothing measures")
    assert "data.table.split" in concern.message
    assert "`finetune prepare folders --per_class_test`" in concern.message
    assert find_concerns(split_rows(folder, train=["cat", "dog"] * 2, val=["cat"]), mirrors=False) == []  # an error


@pytest.mark.parametrize("number", [2, 9, 29, 30])
def test_few_test_rows(folder: Path, number: int) -> None:
    test = ["cat", "dog"] * (number // 2) + ["cat"] * (number % 2)
    concerns = find_concerns(split_rows(folder, train=["cat", "dog"] * 2, test=test), mirrors=False)
    assert about(concerns) == ["few_test_rows"] * (number < 30)
    if concerns:
        interval = binomtest(number // 2, number).proportion_ci(0.95, "wilson") if number % 2 == 0 else None
        words = f"{number} test rows: an accuracy of 50 % would be known to ± "
        assert concerns[0].message.startswith(words)
        points = int(concerns[0].message.removeprefix(words).split()[0])
        if interval is not None:
            assert points == round(50 * (interval.high - interval.low))
        assert points == {2: 41, 9: 27, 29: 17}[number]


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
    assert concern.message == "1 caption describes different classes: 'a pet'."
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
    assert concern.message == "2 rows have no label and count as showing none of the classes."
    assert [place.rpartition(":")[2] for place in concern.places] == ["3", "5"]


def test_another_separator_than_the_cells(folder: Path) -> None:
    (concern,) = find_concerns(several(folder, ["cat,dog", "cat,dog", "emu", "emu"]), mirrors=False)
    assert concern.about == "no_label_separator"
    assert concern.message.startswith("No row has more than one label: data.table.label_separator may not be")


def test_a_single_class_among_several_labels(folder: Path) -> None:
    assert about(find_concerns(several(folder, ["cat", "cat"]), mirrors=False)) == ["no_label_separator", "one_class"]
    # Which images show a cat at all can be learnt.
    assert "one_class" not in about(find_concerns(several(folder, ["cat", "cat", ""]), mirrors=False))


def test_classes_with_one_row_of_several_labels(folder: Path) -> None:
    (concern,) = find_concerns(several(folder, ["cat|dog|fox", "dog|cat", "dog|emu"]), mirrors=False)
    assert concern.message == "2 classes have only one row: 'emu', 'fox'."
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

"""Training rows of which nothing can be learnt, and classes without training rows, for each way to train."""

from pathlib import Path

import pandas as pd
import pytest

from finetune.core.errors import TableError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.training.classification_task import ClassificationTask
from finetune.training.task import AlignTask

from ..checked import about


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.open("align-mini")


def module(
    folder: Path, base: Base, splits: list[str], same_image: bool = False, **columns: object
) -> ImageTextDataModule:
    images = [str(folder / f"{0 if same_image else at}.png") for at in range(len(splits))]
    for image in images:
        Path(image).write_bytes(image.encode())
    texts = {name: values for name, values in columns.items() if isinstance(values, list)}
    settings = {name: value for name, value in columns.items() if name not in texts} | {name: name for name in texts}
    frame = pd.DataFrame({"image": images, "split": splits, **texts})
    return ImageTextDataModule(Table(frame, split="split", **settings), base, image_size=32)  # type: ignore[arg-type]


SPLITS = ["train", "train", "test", "test"]


@pytest.mark.parametrize("task", [AlignTask, ClassificationTask])
@pytest.mark.parametrize(
    "columns",
    [
        {"label": ["cat", "cat", "cat", "dog"]},
        {"label": ["cat", "cat", "cat", "dog"], "caption": ["a", "b", "c", "d"]},
        {"label": ["cat|dog", "dog|cat", "cat", "dog"], "label_separator": "|"},
    ],
)
def test_training_rows_of_one_class_are_refused(
    tmp_path: Path, base: Base, task: type[AlignTask], columns: dict
) -> None:
    data = module(tmp_path, base, SPLITS, **columns)
    with pytest.raises(
        TableError, match=r"Expected training rows of at least two classes, but got '.*All 2 training rows"
    ):
        task.require_learnable(data)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": ["A cat", "a c\u00e2t", "b", "c"]}, "training captions that differ to the model, but got 'A cat'"),
        ({"caption": ["a", "b", "c", "d"], "same_image": True}, "training rows of at least two images, but got"),
        (
            {"label": ["cote", "c\u00f4te", "cote", "x"]},
            "class names of training rows that differ to the model, but got 'cote'",
        ),
    ],
)
def test_texts_or_images_that_are_all_equal_are_refused(
    tmp_path: Path, base: Base, columns: dict, message: str
) -> None:
    with pytest.raises(TableError, match=message):
        AlignTask.require_learnable(module(tmp_path, base, SPLITS, **columns))


def test_a_head_tells_classes_of_equal_prompts_apart(tmp_path: Path, base: Base) -> None:
    equal = module(tmp_path, base, SPLITS, label=["cote", "c\u00f4te", "cote", "cote"])
    ClassificationTask.require_learnable(equal)
    with pytest.raises(TableError, match="class names of training rows that differ to the model"):
        AlignTask.require_learnable(equal)


def test_classes_that_only_test_rows_have(tmp_path: Path, base: Base) -> None:
    """A head is refused where it knows none of them; prompts answer for all, and captions may teach them."""
    some = module(tmp_path, base, [*SPLITS, "val"], label=["cat", "dog", "cat", "emu", "fox"])
    none = module(tmp_path, base, SPLITS, label=["cat", "dog", "emu", "fox"])
    for task in (AlignTask, ClassificationTask):
        task.require_learnable(some)
        (concern,) = task.find_concerns(some)
        assert concern.message.startswith(
            "2 classes have no training row, but 2 validation or test rows: 'emu', 'fox'. "
        )
        assert concern.places == ("DataFrame:3", "DataFrame:4")
    AlignTask.require_learnable(none)
    assert about(AlignTask.find_concerns(none)) == ["untrained_classes"]
    with pytest.raises(TableError, match=r"test rows of classes that training rows have, .*'cat', 'dog'.*'emu', 'fox'"):
        ClassificationTask.require_learnable(none)
    told = module(tmp_path, base, SPLITS, label=["cat", "dog", "emu", "fox"], caption=["a", "b", "c", "d"])
    assert AlignTask.find_concerns(told) == []
    assert about(ClassificationTask.find_concerns(told)) == ["untrained_classes"]


def test_sound_tables_are_no_concern(tmp_path: Path, base: Base) -> None:
    for columns in ({"label": ["cat", "dog", "cat", "dog"]}, {"label": ["a|b", "a", "b", ""], "label_separator": "|"}):
        data = module(tmp_path, base, SPLITS, **columns)
        for task in (AlignTask, ClassificationTask):
            task.require_learnable(data)
            assert task.find_concerns(data) == []
    AlignTask.require_learnable(module(tmp_path, base, SPLITS, caption=["a", "b", "c", "d"]))

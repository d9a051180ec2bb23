"""The labels that tables give to the images that they name."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.core.errors import RecipeError
from finetune.data.table.faults import TableFaultsError
from finetune.data.table.paths import plain_paths
from finetune.data.table.splits import RandomSplit
from finetune.data.table.table import Table
from finetune.inference.list_parts import IMAGE, Named
from finetune.inference.listing import is_table, is_tar

UNIT = "\x1f"
"""The character that separates units of a text; no label holds it."""


class TrueLabels(NamedTuple):
    """What tables say of images.

    Attributes:
        labels: The label of each image; None where there is none, or there are several.
        several: Number of images of which rows say different things.
    """

    labels: list[str | None]
    several: int


def read_true_labels(named: Sequence[Named], column: str, truth: str, images: Sequence[str]) -> TrueLabels:
    """Reads the labels of images.

    Args:
        named: What is handed over, of which tables, tars and DataFrames are read.
        column: The column of a table that holds the paths of images.
        truth: The column of labels; in tars the ending of the members that hold them, such as `cls`.
        images: The images.

    Raises:
        RecipeError: If no table is among what is named.
        TableFaultsError: If a table cannot be read, or lacks the column.
    """
    words = [word for word in named if isinstance(word, str)]
    tables: list[Named] = [word for word in dict.fromkeys(words) if is_table(Path(word)) and not Path(word).is_dir()]
    tables += [frame for frame in named if not isinstance(frame, str)]
    if not tables:
        raise RecipeError(f"Expected a table or tars with the column of --truth {truth}, but got {', '.join(words)}.")
    found: dict[str, set[str]] = {}
    for word in tables:
        # A separator lets cells be empty: such an image is classified all the same.
        split = RandomSplit(val=0.0, test=0.0)
        image = IMAGE if isinstance(word, str) and is_tar(Path(word)) else column
        read = Table(word, image=image, label=truth, label_separator=UNIT, split=split).inspect()
        if read.rows is None:
            raise TableFaultsError(read.faults)
        for path, label in zip(read.rows.images.tolist(), read.rows.label_ids.tolist(), strict=True):
            if label >= 0:
                found.setdefault(path, set()).add(read.rows.classes[label])
    labels = [found.get(path, set()) for path in plain_paths(images, str(Path.cwd()))]
    return TrueLabels([min(of) if len(of) == 1 else None for of in labels], sum(len(of) > 1 for of in labels))

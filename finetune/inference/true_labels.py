"""The labels that tables give to the images that they name."""

from collections.abc import Collection, Sequence
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
        labels: The labels of each image; None where nothing is known of it, or rows say different things.
        several: Number of images of which they do.
    """

    labels: list[Collection[str] | None]
    several: int


def read_true_labels(
    named: Sequence[Named], column: str, truth: str, images: Sequence[str], separator: str | None = None
) -> TrueLabels:
    """Reads the labels of images.

    Args:
        named: What is handed over, of which tables, tars and DataFrames are read.
        column: The column of a table that holds the paths of images.
        truth: The column of labels; in tars the ending of the members that hold them, such as `cls`.
        images: The images.
        separator: What separates several labels in a cell, where an empty cell says that there are none; None where a
            cell holds one, and an empty one says nothing.

    Raises:
        RecipeError: If no table is among what is named.
        TableFaultsError: If a table cannot be read, or lacks the column.
    """
    words = [word for word in named if isinstance(word, str)]
    tables: list[Named] = [word for word in dict.fromkeys(words) if is_table(Path(word)) and not Path(word).is_dir()]
    tables += [frame for frame in named if not isinstance(frame, str)]
    if not tables:
        raise RecipeError(f"Expected a table or tars with the column of --truth {truth}, but got {', '.join(words)}.")
    found: dict[str, set[tuple[str, ...]]] = {}
    for word in tables:
        # A separator lets cells be empty: such an image is classified all the same.
        split = RandomSplit(val=0.0, test=0.0)
        image = IMAGE if isinstance(word, str) and is_tar(Path(word)) else column
        read = Table(word, image=image, label=truth, label_separator=separator or UNIT, split=split).inspect()
        if read.rows is None:
            raise TableFaultsError(read.faults)
        for row, path in enumerate(read.rows.images.tolist()):
            labels = tuple(read.rows.classes[label] for label in read.rows.labels_of(row))
            if labels or separator:
                found.setdefault(path, set()).add(labels)
    said = [found.get(path, set()) for path in plain_paths(images, str(Path.cwd()))]
    return TrueLabels([min(of) if len(of) == 1 else None for of in said], sum(len(of) > 1 for of in said))

"""The labels that tables give to the images that they name."""

from collections.abc import Collection, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from finetune.core.errors import RecipeError
from finetune.data.checks.seen import SeenTable
from finetune.data.prepare.members import place_of
from finetune.data.table.faults import TableFaultsError
from finetune.data.table.paths import plain_paths
from finetune.data.table.splits import RandomSplit
from finetune.data.table.table import Table
from finetune.inference.list_parts import IMAGE, Named
from finetune.inference.listing import is_table, is_tar
from finetune.inference.truth import Truth
from finetune.run.folder import RunFolder

UNIT = "\x1f"
"""The character that separates units of a text; no label holds it."""

CHOSEN_BY = ("train", "val")
"""The splits whose images say nothing of how right a run is: it was trained on them or chosen by them."""


class TrueLabels(NamedTuple):
    """What tables say of images.

    Attributes:
        labels: The labels of each image; None where nothing is known of it, or rows say different things.
        several: Number of images of which they do.
        seen: Number of images that a run was trained on or chosen by, whose labels do not count.
    """

    labels: Sequence[str | Collection[str] | None]
    several: int
    seen: int = 0


def read_true_labels(
    named: Sequence[Named],
    column: str,
    truth: str,
    images: Sequence[str],
    separator: str | None = None,
    seen: SeenTable | None = None,
    cells: str | None = None,
) -> TrueLabels:
    """Reads the labels of images.

    Args:
        named: What is handed over, of which tables, tars and DataFrames are read.
        column: The column of a table that holds the paths of images.
        truth: The column of labels; in tars the ending of the members that hold them, such as `cls`.
        images: The images.
        separator: What separates several labels in a cell, where an empty cell says that there are none; None where a
            cell holds one, and an empty one says nothing.
        seen: The table of a run; the labels of images that it was trained on or chosen by are left out. None where all
            count.
        cells: The character between fields of a table; None goes by its name.

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
    known: set[str] = set()
    for word in tables:
        # A separator lets cells be empty: such an image is classified all the same.
        split = RandomSplit(val=0.0, test=0.0)
        image = IMAGE if isinstance(word, str) and is_tar(Path(word)) else column
        table = Table(word, image=image, label=truth, label_separator=separator or UNIT, split=split, separator=cells)
        read = table.inspect()
        if read.rows is None:
            raise TableFaultsError(read.faults)
        paths = read.rows.images.tolist()
        if seen is not None:
            held = seen.holds(read.rows.folder, read.rows.names(0, len(read.rows)), CHOSEN_BY)
            known.update(compress(paths, held))
        for row, path in enumerate(paths):
            labels = tuple(read.rows.classes[label] for label in read.rows.labels_of(row))
            if labels or separator:
                found.setdefault(path, set()).add(labels)
    asked = [*plain_paths(images, str(Path.cwd()))]
    said = [found.get(path, set()) for path in asked]
    given = [min(of) if len(of) == 1 and path not in known else None for path, of in zip(asked, said, strict=True)]
    left_out = sum(len(of) == 1 and path in known for path, of in zip(asked, said, strict=True))
    return TrueLabels(given, sum(len(of) > 1 for of in said), left_out)


def read_seen_table(model: str | Path) -> SeenTable | None:
    """Returns the table that a finished run was trained on; None of another model, or where none was kept.

    Args:
        model: As for `finetune.inference.checkpoint.find_checkpoint`.
    """
    run = RunFolder(Path(model))
    return SeenTable.read(run.table) if run.is_finished and run.table.is_file() else None


def leave_out_seen(truth: Truth, images: Sequence[str], seen: SeenTable) -> TrueLabels:
    """Leaves out the labels of images that a run was trained on or chosen by, which are known by their files.

    Args:
        truth: The labels of each image.
        images: Their paths or addresses, an empty text for one that is open.
        seen: The run's table.
    """
    folder = str(Path.cwd())
    held = seen.holds(folder, [place_of(path) for path in plain_paths(images, folder)], CHOSEN_BY).tolist()
    labels = [None if is_held else label for label, is_held in zip(truth, held, strict=True)]
    return TrueLabels(labels, 0, sum(label not in (None, "") for label in compress(truth, held)))

"""`Rows` as an Arrow file that is mapped into memory, so that neither a start nor a worker has to hold them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from finetune.data.table.cells import Integers
from finetune.data.table.filters import Removed
from finetune.data.table.label_sets import LabelSets
from finetune.data.table.mapped import MappedStrings, map_numbers, open_mapped, write_columns
from finetune.data.table.order import Items, Order
from finetune.data.table.rows import Rows
from finetune.data.table.splits import SPLITS

COLUMNS = (
    "images",
    "captions",
    "label_ids",
    "image_ids",
    "caption_ids",
    "splits",
    "drawn",
    "weights",
    "items",
    "file_ids",
    "numbers",
)
BY_SPLIT, ITEM_ROWS, ITEM_STARTS, SETS, ABOUT = "by_split", "item_rows", "item_starts", "label_sets", "rows"


def write_rows(rows: Rows, path: Path) -> None:
    """Writes rows, and their order. The names of the table and its files are left out: a start states them.

    Args:
        rows: At least one.
        path: The file.

    Raises:
        OSError: If it cannot be written.
    """
    by_split, items = [rows.indices(split) for split in SPLITS], rows.group("train")
    columns: dict[str, Any] = {name: getattr(rows, name) for name in COLUMNS}
    columns[BY_SPLIT] = _fill(np.concatenate(by_split), len(rows))
    about = {
        "classes": rows.classes,
        "folder": rows.folder,
        "removed": rows.removed,
        "splits": [len(part) for part in by_split],
        "images": [rows.count_images(split) for split in SPLITS],
        "items": None if items.starts is None else len(items.starts),
    }
    if items.starts is not None:
        columns |= {ITEM_ROWS: _fill(items.rows, len(rows)), ITEM_STARTS: _fill(items.starts, len(rows))}
    if rows.label_sets is not None:  # each set is that of some row, so there are at most as many
        about |= {"sets": len(rows.label_sets), "separator": rows.label_sets.separator}
        starts = rows.label_sets.starts
        columns[SETS] = pa.LargeListArray.from_arrays(
            _fill(starts, len(rows) + 1, int(starts[-1])), rows.label_sets.label_ids
        )
    write_columns(path, columns, {ABOUT: json.dumps(about)})


def open_rows(path: Path, source: str, files: tuple[str, ...], kept: Path | None = None) -> Rows:
    """Opens what `write_rows` wrote.

    Args:
        path: The file.
        source: The table as the user named it.
        files: The table's files.
        kept: See `Rows`.

    Raises:
        OSError: If the file cannot be opened.
    """
    place, file = str(path), open_mapped(str(path))
    about = json.loads(file.metadata[ABOUT.encode()])
    columns: dict[str, Any] = {
        name: MappedStrings(place, name) if file.is_text(name) else map_numbers(place, name) for name in COLUMNS
    }
    ends = np.cumsum([0, *about["splits"]]).tolist()
    by_split = tuple(map_numbers(place, BY_SPLIT, *part) for part in pairwise(ends))
    items = Items(by_split[SPLITS.index("train")], None)
    if (count := about["items"]) is not None:
        training = about["splits"][SPLITS.index("train")]
        items = Items(map_numbers(place, ITEM_ROWS, 0, training), map_numbers(place, ITEM_STARTS, 0, count))
    sets = None
    if "sets" in about:
        starts = map_numbers(place, f"{SETS}/offsets", 0, about["sets"] + 1)
        sets = LabelSets(map_numbers(place, f"{SETS}/values"), starts, about["separator"])
    return Rows(
        source=source,
        files=files,
        classes=tuple(about["classes"]),
        folder=about["folder"],
        removed=tuple(Removed(*each) for each in about["removed"]),
        label_sets=sets,
        order=Order(by_split, items, tuple(about["images"])),
        kept=kept,
        **columns,
    )


def _fill(values: npt.NDArray[Any], length: int, value: int = 0) -> Integers:
    """Makes a column as long as the others."""
    found = np.full(length, value, dtype=np.int64)
    found[: len(values)] = values
    return found

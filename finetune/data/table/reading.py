"""Reads a table once: its cells, those of a trial, their splits, and the rows that they stand for."""

from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from finetune.data.table.captions import read_captions
from finetune.data.table.cells import Cells, Integers, number_strings
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.filters import Removed
from finetune.data.table.labels import read_labels
from finetune.data.table.limit import choose_rows
from finetune.data.table.row_images import Hashes, check_image_ids, check_images, hash_images
from finetune.data.table.rows import Rows
from finetune.data.table.scratch import Scratch, gather
from finetune.data.table.sources import TextFormat, read_cells
from finetune.data.table.splits import Draw, RandomSplit, draw_splits, read_splits
from finetune.data.table.weights import read_weights

if TYPE_CHECKING:
    from finetune.data.table.table import Table


class Inspection(NamedTuple):
    """What a table holds in spite of its faults.

    Attributes:
        rows: The rows without fault, or None if there are none.
        faults: Everything that is wrong, by file and row.
    """

    rows: Rows | None
    faults: tuple[Fault, ...]


class TableReading:
    """One reading of a table. Columns are gone through part by part, and lie in the scratch between two steps.

    Args:
        table: What the columns mean.
        scratch: Where the columns lie.
    """

    def __init__(self, table: "Table", scratch: Scratch) -> None:
        self._table, self._scratch = table, scratch
        self._faults: list[Fault] = []

    def read(self) -> Inspection:
        """Reads and checks the table; there are no rows if there are faults.

        Raises:
            TableFaultsError: If a file cannot be read.
        """
        cells, removed = self._read_cells()
        cells, draw = self._limit(cells)
        rows = self._build(cells, draw, removed, self._faults)
        return Inspection(rows, _in_order(self._faults, cells.files))

    def read_in_spite(self) -> Inspection:
        """Reads the table, and keeps the rows that have no fault."""
        faults = self._faults
        try:
            cells, removed = self._read_cells()
            cells, draw = self._limit(cells)
            rows = self._build(cells, draw, removed, faults)
            if rows is None and len(whole := gather(cells.without(faults), self._scratch)):
                rows = self._build(whole, None, removed, [])
        except TableFaultsError as error:
            return Inspection(None, tuple(dict.fromkeys([*faults, *error.faults])))
        return Inspection(rows, _in_order(faults, cells.files))

    def _read_cells(self) -> tuple[Cells, tuple[Removed, ...]]:
        table, faults = self._table, self._faults
        row_filter = table.row_filter
        source = table.patterns if isinstance(table.path, str | PathLike) else table.path
        text_format = TextFormat(table.separator, table.quoting)
        cells, removed = read_cells(source, table.columns, text_format, row_filter, faults, self._scratch)
        if row_filter is not None and not len(cells) and not faults:
            counts = "; ".join(f"{condition}: {rows:,}" for condition, rows in removed)
            rule, repair = "rows that pass data.table.filter", f"Rows removed by each condition: {counts}."
            raise TableFaultsError([Fault(table.source, rule, repair, value=table.filter)])
        return cells, removed

    def _limit(self, cells: Cells) -> tuple[Cells, Draw | None]:
        """Keeps as many rows as asked for, and their splits: those of the whole table. None where all are kept."""
        table = self._table
        if table.limit_rows is None or table.limit_rows >= len(cells):
            return cells, None
        label_ids = read_labels(cells, table.label, table.label_separator, None, [], self._scratch).label_ids
        hashes = self._hash(cells)
        draw = self._split(cells, label_ids, [], hashes)
        chosen = choose_rows(table.limit_rows, hashes, draw.splits, label_ids)
        kept = np.zeros(len(cells), dtype=bool)
        kept[chosen] = True
        return gather(cells.where(kept), self._scratch), draw.take(chosen)

    def _hash(self, cells: Cells) -> Hashes:
        table = self._table
        seed = table.split.seed if isinstance(table.split, RandomSplit) else 0
        id_column = None if table.image_id == table.image else table.image_id  # equal paths are written in several ways
        return hash_images(cells, table.image, id_column, table.find_folder(), seed)

    def _split(self, cells: Cells, label_ids: Integers, faults: list[Fault], hashes: Hashes | None = None) -> Draw:
        """Reads or draws the split of each row."""
        split = self._table.split
        if isinstance(split, str):
            codes = read_splits(cells, split, faults)
            return Draw(codes, codes)
        return draw_splits(split, cells, self._hash(cells) if hashes is None else hashes, label_ids)

    def _build(self, cells: Cells, draw: Draw | None, removed: tuple[Removed, ...], faults: list[Fault]) -> Rows | None:
        """Interprets the cells, whose splits may be known, or returns None if there are faults."""
        table, scratch = self._table, self._scratch
        folder = table.find_folder()
        folders = [folder] * len(cells.files)
        if table.images is None and isinstance(table.split, RandomSplit):
            folders = table.split.folders_of(cells.files, folder)
        is_free = table.outside or (table.images is None and not isinstance(table.path, str | PathLike))
        roots = None if is_free else sorted(set(folders))
        images = check_images(cells, table.image, folders, faults, roots, scratch)
        captions, at = None, np.arange(len(cells))
        if table.caption is not None:
            captions, at = read_captions(cells, table.caption, faults, scratch)
        at = scratch.keep(at)
        labels = read_labels(cells, table.label, table.label_separator, table.names, faults, scratch)
        weights = scratch.keep(read_weights(cells, table.weight, faults))
        image_ids = None if table.image_id is None else check_image_ids(cells, table.image_id, faults, scratch)
        if isinstance(table.split, str):
            draw = self._split(cells, labels.label_ids, faults)
        if faults:
            return None
        if draw is None:
            draw = self._split(cells, labels.label_ids, faults)
        if image_ids is None or table.image_id == table.image:  # the same name in two splits' folders is two images
            image_ids = scratch.keep(number_strings(images)[1])
        items = np.arange(len(cells)) if table.image_id is None else image_ids
        if captions is None:
            captions, caption_ids = scratch.take(labels.texts(), labels.text_ids), labels.text_ids
        else:
            caption_ids = scratch.keep(number_strings(captions)[1])
        return Rows(
            source=table.source,
            files=cells.files,
            images=scratch.take(images, at),
            captions=captions,
            label_ids=scratch.take(labels.label_ids, at),
            classes=labels.classes,
            image_ids=scratch.take(image_ids, at),
            caption_ids=caption_ids,
            splits=scratch.take(draw.splits, at),
            drawn=scratch.take(draw.drawn, at),
            folder=folder,
            weights=scratch.take(weights, at),
            items=scratch.take(items, at),
            file_ids=scratch.take(cells.file_ids, at),
            numbers=scratch.take(cells.numbers, at),
            removed=removed,
            label_sets=labels.sets,
        )


def _in_order(faults: Iterable[Fault], files: tuple[str, ...]) -> tuple[Fault, ...]:
    place = {file: at for at, file in enumerate(files)}
    return tuple(sorted(faults, key=lambda fault: (place.get(fault.file, -1), fault.row is not None, fault.row or 0)))

"""A table of images with captions or labels: its files, the meaning of its columns, and its rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np

from finetune.core.errors import RecipeError, did_you_mean
from finetune.core.freed import give_back
from finetune.data.remote.transfer import RemoteError
from finetune.data.table.captions import CaptionList, caption_columns, read_captions
from finetune.data.table.cells import Cells, Integers
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.filters import Removed, parse_filter
from finetune.data.table.kept import KeptTable
from finetune.data.table.label_sets import check_label_separator
from finetune.data.table.labels import read_labels
from finetune.data.table.limit import choose_rows
from finetune.data.table.paths import plain_folder
from finetune.data.table.places import Place, Source, check_local, check_source, expand, write_out
from finetune.data.table.row_images import Hashes, check_image_ids, check_images, hash_images
from finetune.data.table.rows import Rows
from finetune.data.table.sources import TextFormat, find_files, find_folder, read_cells
from finetune.data.table.splits import Draw, RandomSplit, draw_splits, read_splits
from finetune.data.table.weights import read_weights

Quoting = Literal["minimal", "none"]

__all__ = ["CaptionList", "Inspection", "RandomSplit", "Rows", "Table"]


class Inspection(NamedTuple):
    """What a table holds in spite of its faults.

    Attributes:
        rows: The rows without fault, or None if there are none.
        faults: Everything that is wrong, by file and row.
    """

    rows: Rows | None
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Table:
    """Images with captions, or images with labels, one a row.

    A table is a CSV, TSV, JSON lines (`.jsonl`) or Parquet file, text also as `.gz` or `.zst`; or tar shards. With
    `caption`, a row's text is its caption; with `label` alone, the text is the label in a template. With `label`, the
    labels decide what matches and what is evaluated, even beside captions. Cells are strings: "None", "NA" and "007"
    stay what they are, and spaces around captions, labels and splits do not count.

    Args:
        path: File, or pattern such as `part-*.parquet`, on this machine or a server (`s3://`, `gs://`, `hf://`,
            `https://`), where spans such as `{00000..00099}.tar` name files too; in Python also a `Path` or a
            DataFrame.
        image: Column of image paths.
        caption: Column of captions. Several columns, or `{json_list: COLUMN}` with a list in each cell, give an image
            several captions: training draws one each epoch, evaluation keeps all.
        label: Column of labels, one a row.
        label_separator: What separates several labels in a cell; an empty cell is an image without labels. Null reads
            the cell as one label.
        split: Column that holds `train`, `val` or `test`; or fractions to draw, or files for val and test.
        images: Folder that the image paths are relative to; null for the folder of each row's own file or pattern.
        outside: Whether images may lie outside of that folder, where `..`, absolute paths or links lead. A DataFrame
            without `images` may name any file.
        image_id: Column that is equal for rows of the same image, of which training draws one each epoch. Null takes
            equal paths for the same image, and trains on every row each epoch.
        names: CSV file without header that gives labels their display names, such as `n01440764,tench`.
        weight: Column of the rows' weights in the loss, numbers of 0 or more.
        filter: Which rows to keep, such as `clip_score > 0.3 and faces == 0`; a condition that an empty cell leaves
            unknown drops the row.
        limit_rows: Keeps at most this many rows for quick trials, of each split and class its share. Their splits are
            those of the whole table; a higher limit adds rows to them.
        separator: Character between fields; null for tabs in `.tsv` files and commas in others.
        quoting: `minimal` if double quotes enclose fields as in CSV, `none` if they are characters like any other.
            Null decides by the file, and refuses quotes that seem to swallow rows.

    Raises:
        RecipeError: If neither `caption` nor `label` is given, or another argument cannot be used.

    Example:
        >>> Table("photos.csv", caption="text", split=RandomSplit(val=0.2, test=0.2)).image
        'image'
    """

    path: Source
    image: str = "image"
    caption: str | tuple[str, ...] | CaptionList | None = None
    label: str | None = None
    label_separator: str | None = None
    split: str | RandomSplit = field(default_factory=RandomSplit)
    images: Place | None = None
    outside: bool = False
    image_id: str | None = None
    names: Place | None = None
    weight: str | None = None
    filter: str | None = None
    limit_rows: int | None = None
    separator: str | None = None
    quoting: Quoting | None = None

    def __post_init__(self) -> None:
        write_out(self, "path", "images", "names")
        check_source(self.path)
        check_local("data.table.images", self.images)
        check_local("data.table.names", self.names)
        if self.caption is None and self.label is None:
            raise RecipeError(
                "Expected data.table.caption or data.table.label to name a column, but got neither. "
                "Pass --data.table.caption COLUMN, or --data.table.label COLUMN."
            )
        caption_columns(self.caption)
        check_label_separator(self.label_separator, self.label, self.caption is not None)
        if self.names is not None and self.label is None:
            raise RecipeError(
                "Expected data.table.names to go with data.table.label, but got no label. "
                "Pass --data.table.label COLUMN."
            )
        if not isinstance(self.image, str):
            raise RecipeError(f"Expected data.table.image to name a column, but got {self.image!r}.")
        if not isinstance(self.split, str | RandomSplit):
            raise RecipeError(
                "Expected data.table.split to name a column, or to hold fractions or files (in Python a RandomSplit), "
                f"but got {self.split!r}. Leave it out to draw a tenth of the images for val and for test."
            )
        if self.limit_rows is not None and self.limit_rows < 1:
            raise RecipeError(f"Expected data.table.limit_rows to be at least 1, but got {self.limit_rows}.")
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise RecipeError(
                f"Expected data.table.separator to be one character, but got {self.separator!r}. "
                'For tabs let the file\'s name end in .tsv, or write "\\t" in double quotes in the recipe.'
            )
        if self.quoting is not None and self.quoting not in get_args(Quoting):
            raise RecipeError(
                f"Expected data.table.quoting to be null, {' or '.join(get_args(Quoting))}, but got {self.quoting!r}. "
                "Write none where quotes are part of the texts, minimal where they enclose them as in CSV."
            )
        if isinstance(self.split, RandomSplit) and self.split.files and not isinstance(self.path, str):
            raise RecipeError(
                "Expected data.table.split to be fractions for a DataFrame, but got files. Join the frames."
            )
        if self.filter is not None:
            parse_filter(self.filter)

    def read(self, required: Sequence[str] = ("train", "test")) -> Rows:
        """Reads and checks the table.

        Args:
            required: Splits that must have rows. Training can do without validation rows.

        Raises:
            TableFaultsError: If there are faults; names all faults of the files, their rows and their images.
        """
        rows, faults = self._find_kept(self._read)
        if rows is None:
            raise TableFaultsError(faults)
        rows.require(*required)
        return rows

    def inspect(self) -> Inspection:
        """Reads the table in spite of its faults, and keeps the rows that have none."""
        try:
            return self._find_kept(self._read_in_spite)
        except TableFaultsError as error:
            return Inspection(None, error.faults)

    def _find_kept(self, read: Callable[[], Inspection]) -> Inspection:
        """Opens the rows of a large table where an earlier start kept them; reads the others."""
        kept = self._kept()
        if kept is None:
            return read()
        if rows := kept.open():
            return Inspection(rows, ())
        with kept.held():
            if rows := kept.open():  # another process was faster
                return Inspection(rows, ())
            found = read()
            if found.rows is None or found.faults:
                return found
            rows = kept.keep(found.rows)
        del found
        give_back()
        return Inspection(rows, ())

    def _kept(self) -> KeptTable | None:
        if not isinstance(self.path, str | PathLike):
            return None
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "path"}
        also = [] if self.names is None else [str(Path(self.names).expanduser())]
        files = [file for pattern in self._patterns for file in find_files(pattern)]
        try:
            return KeptTable.find(self.source, files, also, (own, self._find_folder()))
        except (TableFaultsError, RemoteError, OSError):  # which reading will explain
            return None

    def _read(self) -> Inspection:
        faults: list[Fault] = []
        cells, removed = self._read_cells(faults)
        cells, draw = self._limit(cells)
        rows = self._build(cells, draw, removed, faults)
        return Inspection(rows, tuple(_in_order(faults, cells.files)))

    def _read_in_spite(self) -> Inspection:
        faults: list[Fault] = []
        try:
            cells, removed = self._read_cells(faults)
            cells, draw = self._limit(cells)
            rows = self._build(cells, draw, removed, faults)
            if rows is None and len(whole := cells.without(faults)):
                rows = self._build(whole, None, removed, [])
        except TableFaultsError as error:
            return Inspection(None, tuple(dict.fromkeys([*faults, *error.faults])))
        return Inspection(rows, tuple(_in_order(faults, cells.files)))

    @property
    def source(self) -> str:
        """The table as the user named it."""
        return expand(fspath(self.path)) if isinstance(self.path, str | PathLike) else "DataFrame"

    @property
    def _patterns(self) -> tuple[str, ...]:
        """The table's own path or pattern, and those of the splits."""
        beside = self.split.files.values() if isinstance(self.split, RandomSplit) else ()
        return (fspath(cast(Place, self.path)), *beside)

    def _read_cells(self, faults: list[Fault]) -> tuple[Cells, tuple[Removed, ...]]:
        split = self.split if isinstance(self.split, str) else None
        names = (self.image, *caption_columns(self.caption), self.label, split, self.image_id, self.weight)
        row_filter = None if self.filter is None else parse_filter(self.filter)
        wanted = [name for name in names if name is not None]
        source = self._patterns if isinstance(self.path, str | PathLike) else self.path
        cells, removed = read_cells(source, wanted, TextFormat(self.separator, self.quoting), row_filter, faults)
        if row_filter is not None and not len(cells) and not faults:
            counts = "; ".join(f"{condition}: {rows:,}" for condition, rows in removed)
            rule, repair = "rows that pass data.table.filter", f"Rows removed by each condition: {counts}."
            raise TableFaultsError([Fault(self.source, rule, repair, value=self.filter)])
        return cells, removed

    def _limit(self, cells: Cells) -> tuple[Cells, Draw | None]:
        """Keeps as many rows as asked for, and their splits: those of the whole table. None where all are kept."""
        if self.limit_rows is None or self.limit_rows >= len(cells):
            return cells, None
        label_ids = read_labels(cells, self.label, self.label_separator, None, []).label_ids
        seed = self.split.seed if isinstance(self.split, RandomSplit) else 0
        hashes = hash_images(cells, self.image, self.image_id, self._find_folder(), seed)
        draw = self._split(cells, label_ids, [], hashes)
        kept = choose_rows(self.limit_rows, hashes, draw.splits, label_ids)
        return cells.take(kept), draw.take(kept)

    def _split(self, cells: Cells, label_ids: Integers, faults: list[Fault], hashes: Hashes | None = None) -> Draw:
        """Reads or draws the split of each row."""
        if isinstance(self.split, str):
            codes = read_splits(cells, self.split, faults)
            return Draw(codes, codes)
        if hashes is None:
            hashes = hash_images(cells, self.image, self.image_id, self._find_folder(), self.split.seed)
        return draw_splits(self.split, cells, hashes, label_ids)

    def _build(self, cells: Cells, draw: Draw | None, removed: tuple[Removed, ...], faults: list[Fault]) -> Rows | None:
        """Interprets the cells, whose splits may be known, or returns None if there are faults."""
        folder = self._find_folder()
        folders = [folder] * len(cells.files)
        if self.images is None and isinstance(self.split, RandomSplit):
            folders = self.split.folders_of(cells.files, folder)
        is_free = self.outside or (self.images is None and not isinstance(self.path, str | PathLike))
        files = check_images(cells, self.image, folders, faults, None if is_free else sorted(set(folders)))
        captions, at = None, np.arange(len(cells))
        if self.caption is not None:
            captions, at = read_captions(cells, self.caption, faults)
        labels = read_labels(cells, self.label, self.label_separator, self.names, faults)
        weights = read_weights(cells, self.weight, faults)
        image_ids = files.ids
        if self.image_id is not None:
            image_ids = check_image_ids(cells, self.image_id, faults)
        if isinstance(self.split, str):
            draw = self._split(cells, labels.label_ids, faults)
        if faults:
            return None
        if draw is None:
            draw = self._split(cells, labels.label_ids, faults)
        if self.image_id == self.image:  # the same name in the folders of two splits is two images
            image_ids = files.ids
        if captions is None:
            captions, caption_ids = labels.texts(), labels.text_ids
        else:
            caption_ids = np.unique(captions, return_inverse=True)[1].astype(np.int64)
        return Rows(
            source=self.source,
            files=cells.files,
            images=files.paths[files.ids][at],
            captions=captions,
            label_ids=labels.label_ids[at],
            classes=labels.classes,
            image_ids=image_ids[at],
            caption_ids=caption_ids,
            splits=draw.splits[at],
            drawn=draw.drawn[at],
            folder=folder,
            weights=weights[at],
            items=(np.arange(len(cells)) if self.image_id is None else image_ids)[at],
            file_ids=cells.file_ids[at],
            numbers=cells.numbers[at],
            removed=removed,
            label_sets=labels.sets,
        )

    def _find_folder(self) -> str:
        if self.images is None:
            return find_folder(fspath(self.path)) if isinstance(self.path, str | PathLike) else str(Path.cwd())
        folder = Path(self.images).expanduser().absolute()
        if not folder.is_dir():
            beside = [other.name for other in folder.parent.glob("*") if other.is_dir()]
            repair = did_you_mean(folder.name, beside) if beside else f"{folder.parent} holds no folder."
            rule = "data.table.images to be a folder"
            raise TableFaultsError([Fault(self.source, rule, repair, value=str(self.images))])
        return plain_folder(str(folder))


def _in_order(faults: list[Fault], files: tuple[str, ...]) -> list[Fault]:
    place = {file: at for at, file in enumerate(files)}
    return sorted(faults, key=lambda fault: (place.get(fault.file, -1), fault.row is not None, fault.row or 0))

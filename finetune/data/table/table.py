"""A table of images with captions or labels: its files, the meaning of its columns, and its rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Literal, cast, get_args

from finetune.core.errors import RecipeError, did_you_mean
from finetune.core.freed import give_back
from finetune.data.remote.transfer import RemoteError
from finetune.data.table.captions import CaptionList, caption_columns
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.filters import RowFilter, parse_filter
from finetune.data.table.kept import KeptTable
from finetune.data.table.label_sets import check_label_separator
from finetune.data.table.paths import plain_folder
from finetune.data.table.places import Place, Source, check_local, check_source, expand, write_out
from finetune.data.table.reading import Inspection, TableReading
from finetune.data.table.rows import Rows
from finetune.data.table.scratch import MEMORY, Scratch
from finetune.data.table.sources import find_files, find_folder
from finetune.data.table.splits import RandomSplit

Quoting = Literal["minimal", "none"]

__all__ = ["CaptionList", "Inspection", "RandomSplit", "Rows", "Table"]


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

    def _read(self, scratch: Scratch = MEMORY) -> Inspection:
        return TableReading(self, scratch).read()

    def _read_in_spite(self, scratch: Scratch) -> Inspection:
        return TableReading(self, scratch).read_in_spite()

    def _find_kept(self, read: Callable[[Scratch], Inspection]) -> Inspection:
        """Opens the rows of a large table where an earlier start kept them; reads the others."""
        kept = self._kept()
        if kept is None:
            return read(MEMORY)
        if rows := kept.open():
            return Inspection(rows, ())
        with kept.held():
            if rows := kept.open():  # another process was faster
                return Inspection(rows, ())
            found = self._read_large(kept, read)
        give_back()
        return found

    def _read_large(self, kept: KeptTable, read: Callable[[Scratch], Inspection]) -> Inspection:
        try:
            with kept.scratch() as scratch:
                found = read(scratch)
                return found if found.rows is None or found.faults else Inspection(kept.keep(found.rows), ())
        except OSError as error:
            kept.warn(error)
            return read(MEMORY)

    def _kept(self) -> KeptTable | None:
        if not isinstance(self.path, str | PathLike):
            return None
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "path"}
        also = [] if self.names is None else [str(Path(self.names).expanduser())]
        files = [file for pattern in self.patterns for file in find_files(pattern)]
        try:
            return KeptTable.find(self.source, files, also, (own, self.find_folder()))
        except (TableFaultsError, RemoteError, OSError):  # which reading will explain
            return None

    @property
    def source(self) -> str:
        """The table as the user named it."""
        return expand(fspath(self.path)) if isinstance(self.path, str | PathLike) else "DataFrame"

    @property
    def patterns(self) -> tuple[str, ...]:
        """The paths or patterns of a table that is no DataFrame: its own, and those of the splits."""
        beside = self.split.files.values() if isinstance(self.split, RandomSplit) else ()
        return (fspath(cast(Place, self.path)), *beside)

    @property
    def columns(self) -> list[str]:
        """The columns that are read, that of the images first."""
        split = self.split if isinstance(self.split, str) else None
        names = (self.image, *caption_columns(self.caption), self.label, split, self.image_id, self.weight)
        return [name for name in names if name is not None]

    @property
    def row_filter(self) -> RowFilter | None:
        """The filter, parsed."""
        return None if self.filter is None else parse_filter(self.filter)

    def find_folder(self) -> str:
        """Returns the folder that image paths are relative to.

        Raises:
            TableFaultsError: If `images` names none.
        """
        if self.images is None:
            return find_folder(fspath(self.path)) if isinstance(self.path, str | PathLike) else str(Path.cwd())
        folder = Path(self.images).expanduser().absolute()
        if not folder.is_dir():
            beside = [other.name for other in folder.parent.glob("*") if other.is_dir()]
            repair = did_you_mean(folder.name, beside) if beside else f"{folder.parent} holds no folder."
            rule = "data.table.images to be a folder"
            raise TableFaultsError([Fault(self.source, rule, repair, value=str(self.images))])
        return plain_folder(str(folder))

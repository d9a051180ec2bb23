"""Parts of what is embedded: a shard, or some rows of a table or files of a folder. Each is one file of the output."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

import pandas as pd

from finetune.data.prepare.members import Member
from finetune.data.remote.places import is_remote
from finetune.data.remote.store import open_store
from finetune.data.table.cells import as_strings
from finetune.data.table.csv_files import STATE_SEPARATOR
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.image_files import ALLOW_OUTSIDE
from finetune.data.table.scratch import gather
from finetune.data.table.sources import TextFormat, read_cells
from finetune.inference.vectors import Skipped

STDIN = "-"
"""What stands for the lines of standard input."""
PASS_SEPARATOR = "pass --separator"
"""How the character between the fields of a table is stated without a recipe."""
PASS_PATHS = f"pass the images in place of the table: {STDIN} reads their paths from standard input, one a line."
"""How images that lie outside of their table's folder are read without a recipe."""


class Entries(NamedTuple):
    """What a part holds.

    Attributes:
        ids: What each row is known by.
        values: The path or address of each image, or each text.
        skipped: Rows that hold neither.
    """

    ids: Sequence[str]
    values: Sequence[str]
    skipped: Sequence[Skipped] = ()


class Part(ABC):
    """A part of what is embedded.

    Attributes:
        name: The name of its file, without ending.
    """

    name: str

    @abstractmethod
    def stamp(self) -> str:
        """Returns what changes with the content of the part. Neither images nor shards are read for it."""

    @abstractmethod
    def read(self) -> Entries:
        """Reads what the part holds.

        Raises:
            TableError: If it cannot be read.
            RemoteError: If it cannot be fetched.
        """


class RowsPart(Part):
    """Rows that are known already.

    Args:
        name: The name of its file.
        entries: The rows.
        are_files: Whether the values are paths.
    """

    def __init__(self, name: str, entries: Entries, are_files: bool) -> None:
        self.name = name
        self._ids, self._values = as_strings(entries.ids), as_strings(entries.values)
        self._skipped = entries.skipped
        self._are_files = are_files

    def stamp(self) -> str:
        """Hashes ids and texts, or ids and paths with the sizes and times of the files."""
        found = sha256(repr(self._skipped).encode())
        for row, value in zip(self._ids.tolist(), self._values.tolist(), strict=True):
            found.update(repr((row, value, _stamp_file(value) if self._are_files else None)).encode())
        return found.hexdigest()

    def read(self) -> Entries:
        """Returns the rows."""
        return Entries(self._ids.tolist(), self._values.tolist(), self._skipped)


class ShardPart(Part):
    """A tar, whose headers are read when its turn comes.

    Args:
        name: The name of its file.
        tar: Path or URL of the tar.
        column: The column of what is embedded: `image`, or that of texts.
    """

    def __init__(self, name: str, tar: str, column: str) -> None:
        self.name = name
        self._tar = tar
        self._column = column

    def stamp(self) -> str:
        """Names the tar with its size and time, and the column."""
        return repr((self._tar, _stamp_file(self._tar), self._column))

    def read(self) -> Entries:
        """Reads the addresses of pictures, or the texts. Samples with a fault are left out.

        A tar on a server is fetched here: where that fails, its pictures are not damaged.
        """
        if is_remote(self._tar):
            open_store().fetch(self._tar)
        return read_column(self._tar, self._column)


def read_column(file: str | pd.DataFrame, column: str, separator: str | None = None) -> Entries:
    """Reads a column of a table's file as it is. Rows that are empty or have a fault are left out.

    Args:
        file: Path or URL of the file; or a DataFrame.
        column: The column.
        separator: The character between fields; None goes by the file's name.

    Raises:
        TableFaultsError: If the file cannot be read, or lacks the column.
    """
    faults: list[Fault] = []
    source = (file,) if isinstance(file, str) else file
    try:
        cells, _ = read_cells(source, [column], TextFormat(separator), None, faults)
    except TableFaultsError as error:
        raise TableFaultsError([*map(name_option, error.faults)]) from error
    if faults:
        cells = gather(cells.without(faults))
    ids = [str(number) for number in cells.numbers.tolist()]
    found = drop_empty(cells.files[0], ids, cells.columns[column].tolist())
    return found._replace(skipped=(*list_faults(faults), *found.skipped))


def name_option(fault: Fault) -> Fault:
    """Names what a command takes in place of a recipe's key.

    Args:
        fault: What is wrong with a table.
    """
    repair = fault.repair.replace(STATE_SEPARATOR, PASS_SEPARATOR).replace(ALLOW_OUTSIDE, PASS_PATHS)
    return fault._replace(repair=repair)


def drop_empty(source: str, ids: Sequence[str], texts: Sequence[str]) -> Entries:
    """Leaves out rows without a text.

    Args:
        source: Where the rows are.
        ids: What each is known by there.
        texts: Their texts.
    """
    kept = [at for at, text in enumerate(texts) if text.strip()]
    empty = tuple(
        Skipped(f"{source}:{row}", "an empty text") for row, text in zip(ids, texts, strict=True) if not text.strip()
    )
    return Entries([ids[at] for at in kept], [texts[at] for at in kept], empty)


def list_faults(faults: Iterable[Fault]) -> tuple[Skipped, ...]:
    """Returns the rows that were left out for their faults.

    Args:
        faults: What is wrong with a table.
    """
    return tuple(Skipped(f"{fault.file}:{fault.row}", f"expected {fault.rule}") for fault in faults)


def _stamp_file(path: str) -> object:
    """Size and time of a file, or of the tar that an image lies in, or its version; None where there is none."""
    if is_remote(path):
        return open_store().known(path).fingerprint
    member = Member.parse(path)
    try:
        found = os.stat(path if member is None else member.tar)  # noqa: PTH116 (as above)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns

"""Finds a table's files (one, many by a pattern, or a DataFrame) and reads each with the reader of its format."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import escape, glob
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from finetune.core.frame_files import PARQUET
from finetune.data.remote.places import is_remote
from finetune.data.remote.store import open_store
from finetune.data.remote.transfer import RemoteError
from finetune.data.table.bounds import find_long_cells
from finetune.data.table.cells import Cells
from finetune.data.table.csv_files import read_csv
from finetune.data.table.faults import Fault, TableFaultsError, naming, of_remote
from finetune.data.table.filters import Removed, RowFilter, columns_to_read
from finetune.data.table.json_lines import read_json_lines
from finetune.data.table.paths import plain_folder
from finetune.data.table.scratch import MEMORY, GrowingCells, Scratch
from finetune.data.table.text_files import COMPRESSIONS, check_file

if TYPE_CHECKING:
    from pandas import DataFrame

JSON_LINES = (".jsonl", ".ndjson", ".json")
TABS = (".tsv", ".tab")
TAR = ".tar"
WILDCARD = re.compile(r"[*?\[]")


class TextFormat(NamedTuple):
    """How CSV files and the like are written.

    Attributes:
        separator: The character between fields; None goes by the file's extension.
        quoting: `minimal` if double quotes enclose fields, `none` if not; None decides by the file.
    """

    separator: str | None = None
    quoting: str | None = None


Read: TypeAlias = tuple[Cells, tuple[Removed, ...]]
Reading: TypeAlias = Iterator[tuple[Cells, list[int]]]


def read_cells(
    source: "tuple[str, ...] | DataFrame",
    names: Sequence[str],
    text_format: TextFormat,
    row_filter: RowFilter | None,
    faults: list[Fault],
    scratch: Scratch = MEMORY,
) -> Read:
    """Reads and filters columns of all files of a table, some rows at a time.

    Args:
        source: Paths, or patterns such as `part-*.parquet`; or a DataFrame.
        names: The columns to keep, that of the images first.
        text_format: How text files are written.
        row_filter: Which rows to keep.
        faults: Receives the faults of rows.
        scratch: Where the cells lie.

    Returns:
        The cells, and how many rows each condition of the filter removed.

    Raises:
        TableFaultsError: If a file cannot be read or lacks a column, with the faults of all files.
    """
    conditions = row_filter.conditions if row_filter else ()
    grown, totals = GrowingCells(scratch), [0] * len(conditions)
    broken: list[Fault] = []
    for reading in _readings(source, list(dict.fromkeys(names)), text_format, row_filter, faults):
        try:
            grown.append(_count_removed(reading, totals))
        except RemoteError as error:
            broken.append(of_remote(error))
        except TableFaultsError as error:
            broken += error.faults
    if broken:
        raise TableFaultsError([*faults, *broken])
    cells = grown.finish()
    faults += find_long_cells(cells)
    return cells, tuple(Removed(condition.text, rows) for condition, rows in zip(conditions, totals, strict=True))


def _count_removed(reading: Reading, totals: list[int]) -> Iterator[Cells]:
    """Adds up how many rows each condition removed."""
    for cells, counts in reading:
        totals[:] = map(add, totals, counts)
        yield cells


def find_files(pattern: str) -> list[str]:
    """Returns the files that a path, a URL or a pattern of either names, sorted.

    Raises:
        TableFaultsError: If no file matches, or a server does not answer.
    """
    if is_remote(pattern):
        try:
            return [file.url for file in open_store().find(pattern)]
        except RemoteError as error:
            raise TableFaultsError([of_remote(error)]) from error
    path = Path(pattern).expanduser()
    if not path.exists() and (pattern_of_span := re.sub(r"\{\d+\.\.\d+\}", "*", pattern)) != pattern:
        repair = f"Spans name files on servers alone. Write {pattern_of_span}"
        raise TableFaultsError([Fault(pattern, "a file or a pattern", repair)])
    if path.exists() or not WILDCARD.search(pattern):
        check_file(path)
        return [str(path)]
    count = _count_literal(path)
    escaped = Path(escape(str(Path(*path.parts[:count]))), *path.parts[count:])
    found = [name for name in sorted(glob(str(escaped), recursive=True)) if Path(name).is_file()]  # noqa: PTH207
    if not found:
        repair = f"No file matches it in {find_folder(pattern)}."
        if "[" in str(Path(*path.parts[count:])):
            repair += " There [ab] stands for one of the characters between the brackets: write [[] for a bracket."
        raise TableFaultsError([Fault(pattern, "files that match the pattern", repair)])
    return found


def list_files(pattern: str) -> list[str]:
    """Returns what `find_files` does, without asking a server that was asked before.

    Args:
        pattern: A path, a URL or a pattern of either.
    """
    return [file.url for file in open_store().listed(pattern)] if is_remote(pattern) else find_files(pattern)


def find_folder(pattern: str) -> str:
    """Returns the folder of a table's file, or for a pattern the folder before its first wildcard."""
    if is_remote(pattern):
        return re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]
    path = Path(pattern).expanduser().absolute()
    folder = path.parent if path.exists() else Path(*path.parts[: min(_count_literal(path), len(path.parts) - 1)])
    return plain_folder(str(folder))


def _count_literal(path: Path) -> int:
    """Counts the leading parts of a pattern that hold no wildcard, or that exist as they are written."""
    parts = path.parts
    wild = (at for at, part in enumerate(parts) if WILDCARD.search(part) and not Path(*parts[: at + 1]).exists())
    return next(wild, len(parts))


def _readings(
    source: "tuple[str, ...] | DataFrame",
    names: list[str],
    text_format: TextFormat,
    row_filter: RowFilter | None,
    faults: list[Fault],
) -> list[Reading]:
    if not isinstance(source, tuple):
        from finetune.data.table.arrow_files import read_frame  # Arrow takes a second, which CSV is spared

        return [read_frame(source, names, row_filter)]
    files = [file for pattern in source for file in find_files(pattern)]
    tars = [file for file in files if kind_of(file) == TAR]
    if 0 < len(tars) < len(files):
        other, repair = next(file for file in files if file not in tars), "Let the pattern end in .tar."
        raise TableFaultsError([Fault(other, f"only tars beside {tars[0]}", repair, value=Path(other).name)])
    return [_read_file(file, names, text_format, row_filter, faults) for file in files]


def _read_file(
    file: str, names: list[str], text_format: TextFormat, row_filter: RowFilter | None, faults: list[Fault]
) -> Reading:
    if kind_of(file) == TAR:
        from finetune.data.table.tar_files import read_tar  # imports Pillow, which other tables are spared
        from finetune.data.table.tar_index import Tar

        tar = Tar.of_remote(file) if is_remote(file) else Tar.of_path(Path(file))
        yield from _filter(read_tar(tar, columns_to_read(names, row_filter), faults), names, row_filter, faults)
    elif not is_remote(file):
        yield from _read_path(Path(file), names, text_format, row_filter, faults)
    else:
        with open_store().open(file) as path, naming(path, file, faults):
            for cells, counts in _read_path(path, names, text_format, row_filter, faults):
                yield replace(cells, files=(file,)), counts


def _read_path(
    path: Path, names: list[str], text_format: TextFormat, row_filter: RowFilter | None, faults: list[Fault]
) -> Reading:
    kind = kind_of(path.name)
    if kind in PARQUET:
        from finetune.data.table.arrow_files import read_parquet

        return read_parquet(path, names, row_filter)
    wanted = columns_to_read(names, row_filter)
    if kind in JSON_LINES:
        parts = read_json_lines(path, wanted, faults)
    else:
        separator = text_format.separator or ("\t" if kind in TABS else ",")
        parts = read_csv(path, wanted, separator, text_format.quoting, faults)
    return _filter(parts, names, row_filter, faults)


def _filter(parts: Iterator[Cells], names: list[str], row_filter: RowFilter | None, faults: list[Fault]) -> Reading:
    if row_filter is None:
        for cells in parts:
            yield cells, []
        return
    from finetune.data.table.arrow_filter import filter_cells

    for cells in parts:
        kept, counts = filter_cells(cells, row_filter, faults)
        yield kept.select(names), counts


def is_remote_tar(file: str) -> bool:
    """Whether a table's file is a shard on a server.

    Args:
        file: A path or a URL.
    """
    return is_remote(file) and kind_of(file) == TAR


def kind_of(file: str | Path) -> str:
    """Returns the extension that says how a file is written, compression aside.

    Args:
        file: A path or a URL; it need not exist.

    Example:
        >>> kind_of("a/photos.csv.gz"), kind_of("photos")
        ('.csv', '')
    """
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""

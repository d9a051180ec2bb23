"""Parquet files and DataFrames as cells, filtered while Arrow scans them."""

import json
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import parquet

from finetune.core.files import write_file
from finetune.data.table.arrow_filter import compile_filter, count_removed, nan_to_null, typed_fields
from finetune.data.table.bounds import check_width
from finetune.data.table.cells import Cells, Strings, as_strings, check_columns
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.filters import RowFilter, columns_to_read

if TYPE_CHECKING:
    from pandas import DataFrame

FRAME = "DataFrame"
BATCH = 1 << 15  # rows decoded at a time; with four batches read ahead, memory stays small


Reading: TypeAlias = Iterator[tuple[Cells, list[int]]]


def read_parquet(path: Path, names: Sequence[str], row_filter: RowFilter | None) -> Reading:
    """Reads columns of a Parquet file, some rows at a time. Rows are counted from 0, as pandas' `iloc` does.

    Texts stay as they are, numbers are written out, lists become JSON, null and NaN are empty cells.

    Args:
        path: The file; faults name it as given here.
        names: The columns to keep.
        row_filter: Which rows to keep.

    Yields:
        Cells, at least once; and how many rows each condition of the filter removed, with the first.

    Raises:
        TableFaultsError: If the file cannot be read or lacks a column.
    """
    try:
        yield from _scan(ds.dataset(str(path), format="parquet"), str(path), names, row_filter)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        rule, repair = "a whole Parquet file of texts and numbers", "Write it again, or save the table as CSV."
        raise TableFaultsError([Fault(str(path), rule, repair, value=str(error))]) from error


def read_frame(frame: "DataFrame", names: Sequence[str], row_filter: RowFilter | None) -> Reading:
    """Reads columns of a DataFrame, some rows at a time. Rows are counted from 0, as its `iloc` does.

    Args:
        frame: The table; `str` turns the names of its columns into texts.
        names: The columns to keep.
        row_filter: Which rows to keep.

    Raises:
        TableFaultsError: If a column is missing, or Arrow cannot read it.
    """
    table = _as_table(frame, columns_to_read(names, row_filter))
    try:
        yield from _scan(ds.dataset(table), FRAME, names, row_filter)
    except pa.ArrowException as error:
        raise _no_cells(error) from error


def write_frame(frame: "DataFrame", names: Sequence[str], row_filter: RowFilter | None, path: Path) -> None:
    """Writes columns of a DataFrame as a Parquet file, in which `read_parquet` finds what `read_frame` does.

    Args:
        frame: As for `read_frame`.
        names: Likewise.
        row_filter: Likewise; the columns that it compares are written, too, and no row is left out.
        path: The file.

    Raises:
        TableFaultsError: As `read_frame`.
    """
    table = _as_table(frame, columns_to_read(names, row_filter))
    with write_file(path) as file:
        parquet.write_table(table, file)


def _as_table(frame: "DataFrame", wanted: Sequence[str]) -> pa.Table:
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    if wrong := check_columns(FRAME, None, list(frame.columns), wanted):
        raise TableFaultsError(wrong)
    try:
        return pa.table({name: _as_array(frame[name]) for name in wanted})
    except pa.ArrowException as error:
        raise _no_cells(error) from error
    except UnicodeEncodeError as error:
        fault = Fault(FRAME, "texts that are UTF-8", "Rename the file, or correct the text.", value=ascii(error.object))
        raise TableFaultsError([fault]) from error


def _no_cells(error: pa.ArrowException) -> TableFaultsError:
    rule, repair = "columns of texts and numbers", "Convert them first."
    return TableFaultsError([Fault(FRAME, rule, repair, value=str(error))])


def _as_array(series: Any) -> pa.Array:
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, OverflowError):  # objects of several types or a type of their own, numbers too large
        for row, value in enumerate(series):
            if hasattr(value, "getexif"):  # of Pillow
                rule, repair = "the path of an image", "Save the images as files, and their paths in this column."
                fault = Fault(FRAME, rule, repair, row, str(series.name), f"a {type(value).__name__}")
                raise TableFaultsError([fault]) from None
        if any(isinstance(value, list | tuple | dict | np.ndarray) for value in series):
            raise
        missing = series.isna()
        return pa.array(
            [None if gone else str(value) for value, gone in zip(series, missing, strict=True)], pa.string()
        )


def _scan(dataset: ds.Dataset, file: str, names: Sequence[str], row_filter: RowFilter | None) -> Reading:
    names_found = dataset.schema.names
    faults = check_width(file, None, len(names_found))
    faults = faults or check_columns(file, None, names_found, columns_to_read(names, row_filter))
    if faults:
        raise TableFaultsError(faults)
    met, kept, counts = None, None, list[int]()
    if row_filter is not None:
        fields = typed_fields(row_filter, dataset.schema, file, faults)
        if faults:
            raise TableFaultsError(faults)
        conditions = compile_filter(row_filter, fields)
        try:
            kept, counts = count_removed(dataset, conditions)
        except pa.ArrowInvalid as error:
            rule, repair = "numbers where data.table.filter compares with numbers", "Compare with texts, or convert it."
            raise TableFaultsError([Fault(file, rule, repair, value=str(error))]) from error
        met = reduce(and_, conditions)
    scanner = dataset.scanner(
        columns=list(names), filter=met, batch_size=BATCH, batch_readahead=4, fragment_readahead=1
    )
    nested = frozenset(name for name in names if _is_list(dataset.schema.field(name).type))
    numbers = None if kept is None else np.flatnonzero(kept)
    start = 0
    yield Cells.of_file(file, np.empty(0, np.int64), {name: as_strings([]) for name in names}, nested), counts
    for batch in scanner.to_batches():
        columns = {name: _as_cells(column, file, name) for name, column in zip(names, batch.columns, strict=True)}
        stop = start + len(batch)
        own = np.arange(start, stop) if numbers is None else numbers[start:stop]
        yield Cells.of_file(file, own, columns, nested), [0] * len(counts)
        start = stop
    assert numbers is None or len(numbers) == start, (len(numbers), start)  # both scans keep the order of the rows
    if numbers is None and not start:
        raise TableFaultsError([Fault(file, "a table with rows", "Write one for each image.")])


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _as_cells(column: pa.Array, file: str, name: str) -> Strings:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if _is_list(kind):
        values = ["" if value is None else json.dumps(value, ensure_ascii=False) for value in column.to_pylist()]
        return as_strings(values)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        rule, repair = "texts, numbers or lists of texts", "Save images as files, and their paths in this column."
        raise TableFaultsError([Fault(file, rule, repair, column=name, value=str(kind))])
    if pa.types.is_floating(kind):
        column = nan_to_null(column, kind)
    return as_strings(column.cast(pa.large_string()).fill_null("").to_pylist())

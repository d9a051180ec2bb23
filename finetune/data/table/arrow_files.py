"""Parquet files and DataFrames as cells, filtered while Arrow scans them."""

import json
from collections.abc import Sequence
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from finetune.data.table.arrow_filter import compile_filter, count_removed, nan_to_null, typed_fields
from finetune.data.table.bounds import check_width
from finetune.data.table.cells import Cells, Strings, as_strings, check_columns
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.filters import RowFilter, columns_to_read

if TYPE_CHECKING:
    from pandas import DataFrame

FRAME = "DataFrame"
BATCH = 1 << 15  # rows decoded at a time; with four batches read ahead, memory stays small


def read_parquet(path: Path, names: Sequence[str], row_filter: RowFilter | None) -> tuple[Cells, list[int]]:
    """Reads columns of a Parquet file. Rows are counted from 0, as pandas' `iloc` does.

    Texts stay as they are, numbers are written out, lists become JSON, null and NaN are empty cells.

    Args:
        path: The file; faults name it as given here.
        names: The columns to keep.
        row_filter: Which rows to keep.

    Returns:
        The cells, and how many rows each condition of the filter removed.

    Raises:
        TableFaultsError: If the file cannot be read or lacks a column.
    """
    try:
        return _scan(ds.dataset(str(path), format="parquet"), str(path), names, row_filter)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        rule, repair = "a whole Parquet file of texts and numbers", "Write it again, or save the table as CSV."
        raise TableFaultsError([Fault(str(path), rule, repair, value=str(error))]) from error


def read_frame(frame: "DataFrame", names: Sequence[str], row_filter: RowFilter | None) -> tuple[Cells, list[int]]:
    """Reads columns of a DataFrame. Rows are counted from 0, as its `iloc` does.

    Args:
        frame: The table; `str` turns the names of its columns into texts.
        names: The columns to keep.
        row_filter: Which rows to keep.

    Raises:
        TableFaultsError: If a column is missing, or Arrow cannot read it.
    """
    wanted = columns_to_read(names, row_filter)
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    if wrong := check_columns(FRAME, None, list(frame.columns), wanted):
        raise TableFaultsError(wrong)
    try:
        table = pa.table({name: _as_array(frame[name]) for name in wanted})
        return _scan(ds.dataset(table), FRAME, names, row_filter)
    except pa.ArrowException as error:
        rule, repair = "columns of texts and numbers", "Convert them first."
        raise TableFaultsError([Fault(FRAME, rule, repair, value=str(error))]) from error


def _as_array(series: Any) -> pa.Array:
    try:
        return pa.array(series, from_pandas=True)
    except pa.ArrowException:  # objects of several types, or of a type of their own, such as paths
        if any(isinstance(value, list | tuple | dict | np.ndarray) for value in series):
            raise
        missing = series.isna()
        return pa.array(
            [None if gone else str(value) for value, gone in zip(series, missing, strict=True)], pa.string()
        )


def _scan(
    dataset: ds.Dataset, file: str, names: Sequence[str], row_filter: RowFilter | None
) -> tuple[Cells, list[int]]:
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
    pieces: list[list[Strings]] = [[as_strings([])] for _ in names]
    scanner = dataset.scanner(
        columns=list(names), filter=met, batch_size=BATCH, batch_readahead=4, fragment_readahead=1
    )
    for batch in scanner.to_batches():
        for name, column, piece in zip(names, batch.columns, pieces, strict=True):
            piece.append(_as_cells(column, file, name))
    columns = {name: np.concatenate(piece) for name, piece in zip(names, pieces, strict=True)}
    length = len(next(iter(columns.values())))
    numbers = np.arange(length) if kept is None else np.flatnonzero(kept)
    assert len(numbers) == length, (len(numbers), length)  # both scans keep the order of the rows
    if kept is None and not length:
        raise TableFaultsError([Fault(file, "a table with rows", "Write one for each image.")])
    nested = frozenset(name for name in names if _is_list(dataset.schema.field(name).type))
    return Cells.of_file(file, numbers, columns, nested), counts


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


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

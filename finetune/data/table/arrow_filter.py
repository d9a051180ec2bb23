"""Row filters as Arrow expressions, for Arrow's scans and for cells in memory."""

import ast
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from finetune.data.table.cells import Cells, Mask, parse_numbers
from finetune.data.table.faults import Fault
from finetune.data.table.filters import RowFilter, read_literal

OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def compile_filter(row_filter: RowFilter, fields: Mapping[str, pc.Expression]) -> list[pc.Expression]:
    """Compiles each condition. A comparison with an empty cell is unknown, and an unknown condition is not met.

    Args:
        row_filter: The filter.
        fields: Each column as numbers or as texts, whichever the filter compares it with.
    """
    return [_compile(condition.node, fields) for condition in row_filter.conditions]


def _compile(node: ast.expr, fields: Mapping[str, pc.Expression]) -> pc.Expression:
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        return reduce(join, (_compile(value, fields) for value in node.values))
    if isinstance(node, ast.UnaryOp):
        return ~_compile(node.operand, fields)
    assert isinstance(node, ast.Compare), node
    lefts = [node.left, *node.comparators]
    pairs = zip(lefts, node.ops, node.comparators, strict=False)
    return reduce(operator.and_, (_compare(left, operation, right, fields) for left, operation, right in pairs))


def _compare(left: ast.expr, operation: ast.cmpop, right: ast.expr, fields: Mapping[str, pc.Expression]) -> Any:
    if isinstance(operation, ast.In | ast.NotIn):
        assert isinstance(left, ast.Name), left
        assert isinstance(right, ast.Tuple | ast.List), right
        field, values = fields[left.id], [read_literal(value) for value in right.elts]
        found = pc.if_else(field.is_valid(), field.isin(values), pa.scalar(None, pa.bool_()))
        return ~found if isinstance(operation, ast.NotIn) else found
    operands = [
        fields[side.id] if isinstance(side, ast.Name) else pc.scalar(read_literal(side)) for side in (left, right)
    ]
    return OPERATORS[type(operation)](*operands)


def typed_fields(row_filter: RowFilter, schema: pa.Schema, file: str, faults: list[Fault]) -> dict[str, pc.Expression]:
    """Casts the columns of a typed table to what a filter compares them with, with null for empty cells.

    Args:
        row_filter: The filter.
        schema: The table's schema.
        file: The table.
        faults: Receives a fault for each column that cannot be cast.
    """
    fields = {}
    for name in row_filter.columns:
        kind, field = schema.field(name).type, pc.field(name)
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            field = field.cast(kind)
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
        is_number = any(
            test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
        )
        compared = "texts" if name in row_filter.texts else "numbers"
        if is_text:
            field = field.cast(pa.large_string())  # nulls alone have a type of their own
            field = pc.if_else(pc.utf8_trim_whitespace(field) == "", pa.scalar(None, pa.large_string()), field)
        if compared == "numbers":  # as float64, which a CSV's numbers are compared as
            field = (pc.utf8_trim_whitespace(field) if is_text else field).cast(pa.float64(), safe=is_text)
            field = nan_to_null(field, pa.float64())
        if not is_text and (compared == "texts" or not is_number):
            rule = f"{compared}, as data.table.filter compares it"
            repair = "Compare it with what it holds, or compare another column."
            faults.append(Fault(file, rule, repair, column=name, value=str(kind)))
        fields[name] = field
    return fields


def nan_to_null(column: Any, kind: pa.DataType) -> Any:
    """Replaces NaN in a column by null: both are empty cells.

    Args:
        column: A column of floating-point numbers, or the expression of one.
        kind: Its type.
    """
    return pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)


def count_removed(dataset: ds.Dataset, conditions: list[pc.Expression]) -> tuple[Mask, list[int]]:
    """Returns which rows meet all conditions, and how many each condition removed from those the earlier ones left."""
    scanner = dataset.scanner(
        columns={str(at): condition for at, condition in enumerate(conditions)}, batch_size=1 << 17
    )
    counts, kept = [0] * len(conditions), [np.empty(0, dtype=bool)]
    for batch in scanner.to_batches():
        alive = np.ones(len(batch), dtype=bool)
        for at, column in enumerate(batch.columns):
            passed = alive & column.fill_null(False).to_numpy(zero_copy_only=False)
            counts[at] += int(alive.sum() - passed.sum())
            alive = passed
        kept.append(alive)
    return np.concatenate(kept), counts


def filter_cells(cells: Cells, row_filter: RowFilter, faults: list[Fault]) -> tuple[Cells, list[int]]:
    """Filters the rows of text files, whose cells are strings.

    Args:
        cells: Cells that include the filter's columns.
        row_filter: The filter.
        faults: Receives a fault for each cell that is no number but is compared with one.

    Returns:
        The remaining rows, and how many each condition removed.
    """
    columns, unread = {}, np.zeros(len(cells), dtype=bool)
    for name in row_filter.columns:
        if name in row_filter.texts:
            columns[name] = pa.array(
                [text if text.strip() else None for text in cells.columns[name].tolist()], pa.string()
            )
            continue
        numbers, wrong = parse_numbers(cells.columns[name])
        repair = f"data.table.filter compares {name} with numbers. Correct the cell or leave it empty."
        faults += cells.faults_where(wrong, name, "a number", repair)
        unread |= wrong
        columns[name] = pa.array(numbers, mask=np.isnan(numbers))
    fields = {name: pc.field(name) for name in columns}
    kept, counts = count_removed(ds.dataset(pa.table(columns)), compile_filter(row_filter, fields))
    return cells.take(kept & ~unread), counts

"""Row filters: comparisons of columns, parsed from a text that can express nothing else."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune.core.errors import RecipeError

LONGEST = 10_000  # characters
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.In, ast.NotIn)
REPAIR = "Write comparisons of columns with numbers, texts or columns, joined by and, or, not: score > 0.3 and n == 0."


class Condition(NamedTuple):
    """One of the conditions that `and` joins at the top of a filter.

    Attributes:
        text: The condition as it is shown.
        node: Its checked syntax tree.
    """

    text: str
    node: ast.expr


class Removed(NamedTuple):
    """How many rows a condition removed from those that the earlier conditions left.

    Attributes:
        condition: The condition's text.
        rows: Number of removed rows.
    """

    condition: str
    rows: int


@dataclass(frozen=True)
class RowFilter:
    """A checked filter.

    Attributes:
        conditions: The conditions, all of which a row must meet.
        numbers: Columns compared with numbers or with each other.
        texts: Columns compared with texts.
    """

    conditions: tuple[Condition, ...]
    numbers: frozenset[str]
    texts: frozenset[str]

    @property
    def columns(self) -> list[str]:
        """Every column that the filter compares, sorted."""
        return sorted(self.numbers | self.texts)


def columns_to_read(names: Sequence[str], row_filter: RowFilter | None) -> list[str]:
    """Lists the columns to keep and those that a filter compares, each once.

    Args:
        names: The columns to keep.
        row_filter: The filter, if there is one.
    """
    return list(dict.fromkeys([*names, *(row_filter.columns if row_filter else ())]))


def parse_filter(text: str) -> RowFilter:
    """Reads a filter such as `score > 0.3 and 0 < faces <= 2 and kind not in ('ad', 'logo')`.

    The text is parsed as a Python expression and never evaluated. A filter may use and, or, not, the comparisons,
    `in` with a list of literals, names of columns, numbers and texts.

    Args:
        text: The filter.

    Raises:
        RecipeError: If the filter holds anything else, or compares a column with both numbers and texts.

    Example:
        >>> [condition.text for condition in parse_filter("a > 1 and (b == 'x' or a < 0)").conditions]
        ['a > 1', "b == 'x' or a < 0"]
    """
    if len(text) > LONGEST:
        raise RecipeError(f"Expected data.table.filter to have at most {LONGEST:,} characters, but got {len(text):,}.")
    kinds: dict[str, type] = {}
    try:
        tree = ast.parse(text.replace("\n", " ").strip(), mode="eval").body
        terms = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        for term in terms:
            _check(term, kinds)
        conditions = tuple(Condition(ast.unparse(term), term) for term in terms)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise RecipeError(
            f"Expected data.table.filter to be an expression, but got {text!r} ({reason}). {REPAIR}"
        ) from error
    return RowFilter(
        conditions,
        numbers=frozenset(column for column, kind in kinds.items() if kind is float),
        texts=frozenset(column for column, kind in kinds.items() if kind is str),
    )


def _refuse(node: ast.AST, expected: str) -> RecipeError:
    found = ast.unparse(node)
    found = found if len(found) <= 80 else f"{found[:79]}…"
    return RecipeError(f"Expected data.table.filter to hold {expected}, but got {found!r}. {REPAIR}")


def _check(node: ast.expr, kinds: dict[str, type]) -> None:
    """Refuses everything outside the language, and notes what each column is compared with."""
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, kinds)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, kinds)
    elif isinstance(node, ast.Compare):
        left = node.left
        for operation, right in zip(node.ops, node.comparators, strict=True):
            _check_comparison(node, left, operation, right, kinds)
            left = right
    else:
        raise _refuse(node, "only comparisons joined by and, or, not")


def _check_comparison(
    whole: ast.Compare, left: ast.expr, operation: ast.cmpop, right: ast.expr, kinds: dict[str, type]
) -> None:
    if not isinstance(operation, COMPARISONS):
        raise _refuse(whole, "the comparisons <, <=, >, >=, ==, !=, in, not in alone")
    if isinstance(operation, ast.In | ast.NotIn):
        if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
            raise _refuse(whole, "'in' with a list of numbers or texts, as in kind in ('cat', 'dog')")
        operands = [left, *right.elts]
        columns, values = [left], right.elts
    else:
        operands = [left, right]
        columns = [operand for operand in operands if isinstance(operand, ast.Name)]
        values = [operand for operand in operands if not isinstance(operand, ast.Name)]
    names = [column.id for column in columns if isinstance(column, ast.Name)]
    if len(names) != len(columns) or not names:
        raise _refuse(whole, "a column in each comparison")
    found = {type(read_literal(value)) for value in values} or {float}
    for name in names:
        found.add(kinds.setdefault(name, next(iter(found))))
    if len(found) > 1:
        raise _refuse(whole, f"comparisons of {' and '.join(names)} with numbers or with texts, not with both")


def read_literal(node: ast.expr) -> float | str:
    """Reads the number or text that a node holds.

    Raises:
        RecipeError: If the node holds neither.
    """
    sign, inner = 1.0, node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign, inner = (-1.0 if isinstance(node.op, ast.USub) else 1.0), node.operand
    value: Any = inner.value if isinstance(inner, ast.Constant) else None
    if isinstance(value, str) and inner is node:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:
        return sign * value
    raise _refuse(node, "only columns, numbers below 2**63 and texts to compare")

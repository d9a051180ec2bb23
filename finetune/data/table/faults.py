"""What can be wrong with a table: one fault each, and the error that shows the first ten of them."""

from collections.abc import Sequence
from typing import NamedTuple

from finetune.core.errors import TableError

SHOWN = 10
LONGEST_VALUE = 80


class Fault(NamedTuple):
    """One thing that is wrong with a table.

    Attributes:
        file: The table, as the user named it.
        row: Row as a spreadsheet shows it (the header is row 1), the key of a sample in a tar, or None for the file
            as a whole.
        column: Name of the column, or None for the row as a whole.
        value: What was found, or None where nothing was.
        rule: What was expected, a noun phrase.
        repair: What to do about it, one or two sentences.
    """

    file: str
    row: int | str | None
    column: str | None
    value: str | None
    rule: str
    repair: str

    def __str__(self) -> str:
        """`file:row:column: Expected ..., but got 'value'. Repair.`"""
        where = ":".join(str(part) for part in (self.file, self.row, self.column) if part is not None)
        value = self.value
        if value is not None and len(value) > LONGEST_VALUE:
            value = f"{value[: LONGEST_VALUE // 2 - 1]}…{value[-LONGEST_VALUE // 2 :]}"  # the end of a path says most
        return f"{where}: Expected {self.rule}, but got {'none' if value is None else repr(value)}. {self.repair}"


class TableFaultsError(TableError):
    """Everything that is wrong with a table, found in one pass.

    Args:
        faults: All of them; the message shows the first ten and tells the count.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults[:SHOWN]]
        if hidden := len(self.faults) - len(lines):
            lines.append(f"… and {hidden:,} more; `finetune check` lists all.")
        return "\n".join(lines)

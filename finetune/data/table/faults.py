"""What is wrong with a table: one `Fault` for each place, and the error that shows the first ten."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from finetune.core.errors import TableError
from finetune.data.remote.transfer import RemoteError

SHOWN = 10
LONGEST_VALUE = 80


class Fault(NamedTuple):
    """One thing that is wrong with a table.

    Attributes:
        file: The table, as the user named it.
        rule: What was expected, a noun phrase.
        repair: How to repair it, in one or two sentences.
        row: Row as a spreadsheet shows it (the header is row 1), the key of a sample in a tar, or None for the whole
            file.
        column: Name of the column, or None for the whole row.
        value: What was found, or None if nothing was.
    """

    file: str
    rule: str
    repair: str
    row: int | str | None = None
    column: str | None = None
    value: str | None = None

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.row, self.column) if part is not None)
        value = self.value
        if value is not None and len(value) > LONGEST_VALUE:
            value = f"{value[: LONGEST_VALUE // 2 - 1]}…{value[-LONGEST_VALUE // 2 :]}"  # the end of a path says most
        return f"{where}: Expected {self.rule}, but got {'none' if value is None else repr(value)}. {self.repair}"


@contextmanager
def naming(path: Path, file: str, faults: list[Fault]) -> Iterator[None]:
    """Lets the faults that are found inside name a file as the user knows it, which was read from elsewhere.

    Args:
        path: Where it is read from.
        file: How the user knows it.
        faults: The list that receives them.

    Raises:
        TableFaultsError: As inside.
    """
    before = len(faults)

    def rename(fault: Fault) -> Fault:
        return fault._replace(file=file) if fault.file == str(path) else fault

    try:
        yield
    except TableFaultsError as error:
        raise TableFaultsError([*map(rename, error.faults)]) from error
    finally:
        faults[before:] = map(rename, faults[before:])


def of_remote(error: RemoteError) -> Fault:
    """Returns the fault of a file that cannot be had from its server.

    Args:
        error: What was raised.
    """
    return Fault(error.url, f"it {error.rule}", error.repair, value=error.found)


class TableFaultsError(TableError):
    """Everything that is wrong with a table, found in one pass.

    Args:
        faults: All faults; the message shows the first ten and counts the others.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults[:SHOWN]]
        if hidden := len(self.faults) - len(lines):
            lines.append(f"… and {hidden:,} more; `finetune check` lists all.")
        return "\n".join(lines)

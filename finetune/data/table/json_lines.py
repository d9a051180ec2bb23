"""JSON lines as cells: one object a line, its keys the columns."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.data.table.bounds import MOST_BYTES
from finetune.data.table.cells import Cells, check_columns
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.text_files import TextFile

_DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=lambda constant: None if constant == "NaN" else constant
)


@dataclass(frozen=True)
class Fields:
    """Turns JSON objects into cells, and notes which keys they have.

    Args:
        names: The keys to keep.
        found: Every key that some object has.
        nested: The kept keys under which some object has a list or an object.
    """

    names: Sequence[str]
    found: dict[str, None] = field(default_factory=dict)
    nested: set[str] = field(default_factory=set)

    def read(self, record: Mapping[str, Any]) -> list[str]:
        """Returns the kept values of an object: lists and objects as JSON, null and absent ones as empty cells.

        Args:
            record: As `read_record` returns it.

        Raises:
            ValueError: If a value holds NUL characters or halves of surrogate pairs.
        """
        cells = [_as_cell(record.get(name)) for name in self.names]
        self.found.update(dict.fromkeys(record))
        self.nested.update(name for name in self.names if isinstance(record.get(name), list | dict))
        return cells

    def missing(self, file: str) -> list[Fault]:
        """Returns a fault for each kept key that no object has.

        Args:
            file: The file of the objects.
        """
        return check_columns(file, None, list(self.found), self.names)


def read_json_lines(path: Path, names: Sequence[str], faults: list[Fault]) -> Iterator[Cells]:
    """Reads columns of a file with a JSON object on each line, some rows at a time. A row's number is its line's.

    Numbers keep the characters they are written with, lists stay JSON; null, NaN and absent keys are empty cells.

    Args:
        path: The file; faults name it as given here.
        names: The keys to keep; each must be in some line.
        faults: Receives a fault for each line that is no JSON object.

    Raises:
        TableFaultsError: If the file cannot be read, is empty, or lacks a key.
    """
    file, text = str(path), TextFile.open(path)
    fields, before, count = Fields(names), len(faults), 0
    for part in Cells.of_records(file, names, _read_lines(text, fields, file, faults)):
        count += len(part)
        yield replace(part, nested=frozenset(fields.nested))
    if not count and len(faults) == before:
        raise TableFaultsError([Fault(file, "a JSON object on each line", "Write one for each image.")])
    if fields.found and (missing := fields.missing(file)):
        raise TableFaultsError([*faults, *missing])


def _read_lines(text: TextFile, fields: Fields, file: str, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    lines = (line for block in text.blocks() for line in block.removesuffix("\n").split("\n"))
    for number, line in enumerate(lines, start=1):  # splitlines would also split within texts
        if not line.strip():
            continue
        if len(line) > MOST_BYTES:
            rule, repair = f"at most {MOST_BYTES:,} characters", "Shorten the texts or remove the line."
            faults.append(Fault(file, rule, repair, number, value=f"{len(line):,} characters"))
            continue
        try:
            yield number, fields.read(read_record(line))
        except (ValueError, RecursionError) as error:
            repair = f"Write one object a line, in double quotes, all on one line ({error})."
            faults.append(Fault(file, "a JSON object", repair, number, value=line.strip()))


def read_record(text: str) -> dict[str, Any]:
    """Reads a JSON object; numbers keep the characters they are written with, and NaN becomes null.

    Args:
        text: The JSON.

    Raises:
        ValueError: If the text is no JSON, or no object.
    """
    record = _DECODER.decode(text)
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}")
    return record


def _as_cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if "\0" in text:
        raise ValueError("a NUL character in a text")
    text.encode()  # refuses halves of surrogate pairs
    return text

"""JSON lines as cells: one object a line, its keys the columns."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.data.table.cells import Cells, check_columns
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.text_files import read_text

_DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=lambda constant: None if constant == "NaN" else constant
)


def read_json_lines(path: Path, names: Sequence[str], faults: list[Fault]) -> Cells:
    """Reads columns of a file with a JSON object on each line. A row's number is its line's.

    Numbers stay the characters they are written with, lists stay JSON, null, NaN and absent keys are empty cells.

    Args:
        path: The file; faults name it as it is given here.
        names: The keys to keep; each must be in some line.
        faults: Receives a fault for each line that is no JSON object.

    Raises:
        TableFaultsError: If the file cannot be read, has no line, or lacks a key.
    """
    file, text = str(path), read_text(path, lambda before: before.count("\n") + 1)
    keys, nested = dict[str, None](), set[str]()
    before = len(faults)
    cells = Cells.gather(file, names, _read_records(text, names, keys, nested, file, faults))
    if not len(cells) and len(faults) == before:
        rule, repair = "a JSON object on each line", "Write one for each image."
        raise TableFaultsError([Fault(file, None, None, None, rule, repair)])
    if keys and (missing := check_columns(file, None, list(keys), names)):
        raise TableFaultsError([*faults, *missing])
    return replace(cells, nested=frozenset(nested))


def _read_records(
    text: str, names: Sequence[str], keys: dict[str, None], nested: set[str], file: str, faults: list[Fault]
) -> Iterator[tuple[int, list[str]]]:
    """Yields number and cells of each line, and notes the keys it has and those of lists and objects."""
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split within texts
        if not line.strip():
            continue
        try:
            record = read_record(line)
            cells = [as_cell(record.get(name)) for name in names]
        except (ValueError, RecursionError) as error:
            repair = f"Write one object a line, in double quotes, all on one line ({error})."
            faults.append(Fault(file, number, None, line.strip(), "a JSON object", repair))
            continue
        keys.update(dict.fromkeys(record))
        nested.update(name for name in names if isinstance(record.get(name), list | dict))
        yield number, cells


def read_record(text: str) -> dict[str, Any]:
    """Reads a JSON object, numbers as the characters they are written with, NaN as null.

    Args:
        text: The JSON.

    Raises:
        ValueError: If it is no JSON, or no object.
    """
    record = _DECODER.decode(text)
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}")
    return record


def as_cell(value: Any) -> str:
    """A value of a JSON object as a cell: lists and objects as JSON, null as an empty one.

    Args:
        value: As `read_record` gives it.

    Raises:
        ValueError: If it holds what is no text.
    """
    return check_text(
        "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


def check_text(text: str) -> str:
    """Returns a text that can be a cell.

    Args:
        text: From a file.

    Raises:
        ValueError: If it holds NUL characters or halves of surrogate pairs.
    """
    if "\0" in text:
        raise ValueError("a NUL character in a text")
    text.encode()
    return text

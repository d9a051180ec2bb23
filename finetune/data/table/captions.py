"""Reads the captions of each row: from one column, from several, or from a list in the cell."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from finetune.core.errors import RecipeError
from finetune.data.table.cells import Cells, Integers, Strings, as_strings
from finetune.data.table.faults import Fault
from finetune.data.table.scratch import MEMORY, Scratch


@dataclass(frozen=True)
class CaptionList:
    """A column with a list of captions in each cell.

    Args:
        json_list: The column. Its cells are JSON such as `["a cat", "a cat on a sofa"]`; in Parquet and JSON lines
            they may be lists.
    """

    json_list: str


CaptionColumns: TypeAlias = str | tuple[str, ...] | CaptionList


def caption_columns(caption: CaptionColumns | None) -> tuple[str, ...]:
    """Lists the columns that hold captions.

    Raises:
        RecipeError: If a list of columns is empty or names one twice.
    """
    if caption is None:
        return ()
    if isinstance(caption, CaptionList):
        return (caption.json_list,)
    if isinstance(caption, str):
        return (caption,)
    if not caption or len(set(caption)) < len(caption):
        raise RecipeError(f"Expected data.table.caption to name columns, each once, but got {list(caption)}.")
    return tuple(caption)


def read_captions(
    cells: Cells, caption: CaptionColumns, faults: list[Fault], scratch: Scratch = MEMORY
) -> tuple[Strings, Integers]:
    """Reads the captions of all rows; spaces around them do not count.

    With several columns, a row may leave some of them empty, but not all.

    Args:
        cells: Cells that include the columns.
        caption: The columns.
        faults: Receives a fault for each row without a caption, or with a list where one text is expected.
        scratch: Where the captions lie.

    Returns:
        The captions, row by row, and the position in `cells` of each caption's row.
    """
    names, is_list = caption_columns(caption), isinstance(caption, CaptionList)
    rule = "a caption" if len(names) == 1 else f"a caption in one of {', '.join(names)}"
    repair = "Fill it in or remove the row."
    if is_list:
        rule, repair = "a JSON list of captions", 'Write it as in ["a cat", "a cat on a sofa"], each caption filled in.'
    captions, counts = scratch.column(), list[Integers]()
    for part in cells.parts(*names):
        texts, own = _read_lists(part, names[0]) if is_list else _read_filled(part, names)
        captions.append(texts)
        counts.append(own)
    lengths = np.concatenate(counts)
    if not is_list:
        for name in names:
            advice = f"Set data.table.caption to {{json_list: {name}}}, or write one text."
            faults += cells.faults_of_nested(name, advice)
    faults += cells.faults_where(lengths == 0, names[0], rule, repair)
    return captions.finish(), np.repeat(np.arange(len(cells)), lengths)


def _read_filled(cells: Cells, names: Sequence[str]) -> tuple[Strings, Integers]:
    """The captions that are filled in, row by row, and how many each row has."""
    texts = np.stack([np.strings.strip(cells.columns[name]) for name in names], axis=1)
    filled = texts != ""
    return texts[filled], filled.sum(axis=1)


def _read_lists(cells: Cells, column: str) -> tuple[Strings, Integers]:
    parsed = [*_parse_lists(cells.columns[column].tolist())]
    return as_strings([text for texts in parsed for text in texts]), np.array([*map(len, parsed)], dtype=np.int64)


def _parse_lists(values: list[str]) -> Iterator[list[str]]:
    """Yields the captions of each cell, and no caption for a cell that is no list of texts."""
    for value in values:
        try:
            texts = json.loads(value)
        except (ValueError, RecursionError):
            texts = []
        if not isinstance(texts, list) or not all(isinstance(text, str) and _is_text(text) for text in texts):
            texts = []
        yield [text.strip() for text in texts]


def _is_text(text: str) -> bool:
    """Whether there is something in a text that JSON wrote, and neither NUL nor half of a surrogate pair."""
    return bool(text.strip()) and "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)

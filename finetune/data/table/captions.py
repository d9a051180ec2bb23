"""Reads the captions of each row: from one column, from several, or from a list in the cell."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from finetune.core.errors import RecipeError
from finetune.data.table.cells import Cells, Integers, Strings, as_strings
from finetune.data.table.faults import Fault


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


def read_captions(cells: Cells, caption: CaptionColumns, faults: list[Fault]) -> tuple[Strings, Integers]:
    """Reads the captions of all rows; spaces around them do not count.

    With several columns, a row may leave some of them empty, but not all.

    Args:
        cells: Cells that include the columns.
        caption: The columns.
        faults: Receives a fault for each row without a caption, or with a list where one text is expected.

    Returns:
        The captions, row by row, and the position in `cells` of each caption's row.
    """
    if isinstance(caption, CaptionList):
        return _read_lists(cells, caption.json_list, faults)
    names = caption_columns(caption)
    texts = np.stack([np.strings.strip(cells.columns[name]) for name in names], axis=1)
    filled = texts != ""
    for name in names:
        repair = f"Set data.table.caption to {{json_list: {name}}}, or write one text."
        faults += cells.faults_of_nested(name, repair)
    rule = "a caption" if len(names) == 1 else f"a caption in one of {', '.join(names)}"
    faults += cells.faults_where(~filled.any(axis=1), names[0], rule, "Fill it in or remove the row.")
    return texts[filled], np.nonzero(filled)[0]


def _read_lists(cells: Cells, column: str, faults: list[Fault]) -> tuple[Strings, Integers]:
    values = cells.columns[column].tolist()
    parsed = list(_parse_lists(values))
    wrong = np.array([not texts for texts in parsed], dtype=bool)
    repair = 'Write it as in ["a cat", "a cat on a sofa"], each caption filled in.'
    faults += cells.faults_where(wrong, column, "a JSON list of captions", repair)
    lengths = [len(texts) for texts in parsed]
    return as_strings([text for texts in parsed for text in texts]), np.repeat(np.arange(len(parsed)), lengths)


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

"""Lists what a user names in parts: images of files, folders, tables and tars, or texts of tables and tars."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from finetune.core.errors import RecipeError, TableError
from finetune.core.places import show
from finetune.data.remote.places import check_remote, is_remote
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.paths import plain_paths
from finetune.data.table.rows import Rows
from finetune.data.table.sources import find_files
from finetune.data.table.splits import RandomSplit
from finetune.data.table.table import Table
from finetune.inference.listing import is_table, is_tar, list_folder, require_files
from finetune.inference.parts import (
    STDIN,
    Entries,
    Part,
    RowsPart,
    ShardPart,
    drop_empty,
    list_faults,
    name_option,
    read_column,
)
from finetune.inference.vectors import Skipped

ROWS = 2048
"""Rows of a part that is no shard."""
IMAGE = "image"
"""The column of a tar's pictures."""
FRAME = "DataFrame"
"""What stands for the name of a DataFrame."""

Named: TypeAlias = str | pd.DataFrame
"""What is handed over: a path, a pattern, or `-`; or a DataFrame."""


class Group(NamedTuple):
    """What one word of the user names.

    Attributes:
        stem: A name for its parts.
        place: Where it lies.
        entries: Its rows; of a shard None.
    """

    stem: str
    place: str
    entries: Entries | None


class Found(NamedTuple):
    """What all words of the user name.

    Attributes:
        parts: The parts, in the order of the words.
        hidden: Files in folders that were left out, as they or a folder around them are hidden.
    """

    parts: list[Part]
    hidden: list[str]


class Images(NamedTuple):
    """The images that all words of the user name.

    Attributes:
        images: Paths as they are named, and addresses in tars, each once: those of files first, then word by word.
        skipped: Rows of tables and tars that name none.
        hidden: As in `Found`.
    """

    images: list[str]
    skipped: list[Skipped]
    hidden: list[str]


def list_images(named: Sequence[Named], column: str = IMAGE, rows: int = ROWS, separator: str | None = None) -> Found:
    """Lists images in parts. What a table names several times is one image.

    Args:
        named: Image files, folders, tables, tars, patterns of these; DataFrames; or `-` for paths on standard input.
        column: The column of a table that holds the paths of images.
        rows: Rows of a part that is no shard.
        separator: The character between fields of a table; None goes by its name.

    Raises:
        RecipeError: If the separator is none.
        TableError: If a file does not exist, a folder holds no image, or a table cannot be read.
    """
    groups, hidden = _group_images(named, column, separator, _plain_entries)
    return Found(_require_distinct([*_divide(groups, IMAGE, rows, are_files=True)]), hidden)


def read_images(named: Iterable[Path | Named], column: str = IMAGE, separator: str | None = None) -> Images:
    """Lists images in one part, tars too.

    Args:
        named: As for `list_images`.
        column: Likewise.
        separator: Likewise.

    Raises:
        RecipeError: Likewise.
        TableError: As `list_images`, or if a tar cannot be read, or nothing is left that could be an image.
    """
    words = [str(word) if isinstance(word, Path) else word for word in named]
    groups, hidden = _group_images(words, column, separator, _named_entries)
    found = [ShardPart(at.stem, at.place, IMAGE).read() if at.entries is None else at.entries for at in groups]
    values = [value for entries in found for value in entries.values]
    skipped = [left_out for entries in found for left_out in entries.skipped]
    if skipped and not values:
        raise TableError(f"Expected images to read, but got none: {skipped[0].place}: {skipped[0].reason}.")
    distinct: dict[str, str] = {}
    for value, place in zip(values, plain_paths(values, str(Path.cwd())), strict=True):
        distinct.setdefault(place, value)
    return Images([*distinct.values()], skipped, hidden)


def list_texts(named: Sequence[Named], column: str, rows: int = ROWS, separator: str | None = None) -> Found:
    """Lists texts in parts.

    Args:
        named: Tables, tars, patterns of these; DataFrames; or `-` for texts on standard input, one a line.
        column: The column of a table that holds the texts; in a tar the ending of the members that do, such as `txt`.
        rows: Rows of a part that is no shard.
        separator: The character between fields of a table; None goes by its name.

    Raises:
        RecipeError: If the separator is none.
        TableError: If something is no table, or cannot be read.
    """
    words, frames = _part_frames(named)
    _check_urls(words)
    _check_separator(separator)
    groups = [Group(FRAME, place, read_column(frame, column)) for place, frame in frames.items()]
    for word in dict.fromkeys(words):
        if word == STDIN:
            lines = _read_lines()
            numbers = [str(number) for number in range(1, len(lines) + 1)]
            groups.append(Group("stdin", word, drop_empty("standard input", numbers, lines)))
            continue
        if not is_table(Path(word)):
            raise TableError(
                f"Expected {word} to be a table or tars of texts, but got another kind of file. Save the texts as a "
                f"column of a CSV, or pass one text a line: {STDIN}"
            )
        groups += [
            Group(Path(file).stem, file, None if is_tar(Path(file)) else read_column(file, column, separator))
            for file in find_files(word)
        ]
    return Found(_require_distinct([*_divide(groups, column, rows, are_files=False)]), [])


def _group_images(
    named: Sequence[Named], column: str, separator: str | None, enter: Callable[[Iterable[tuple[str, str]]], Entries]
) -> tuple[list[Group], list[str]]:
    """The groups of images that are named, and hidden files; `enter` makes entries of ids and paths of files."""
    words, frames = _part_frames(named)
    _check_urls(words)
    _check_separator(separator)
    hidden: list[str] = []
    files = [word for word in words if word != STDIN and not is_table(Path(word)) and not Path(word).is_dir()]
    require_files(files)
    groups = [Group("images", "", enter(zip(files, files, strict=True)))] if files else []
    groups += [Group(FRAME, place, _read_images(frame, column, None)) for place, frame in frames.items()]
    for word in dict.fromkeys(words):
        if word == STDIN:
            groups.append(Group("stdin", word, enter((line, line) for line in _read_lines() if line)))
        elif Path(word).is_dir():
            images, left_out = list_folder(Path(word))
            hidden += left_out
            named_there = [Path(image).relative_to(word).as_posix() for image in images]
            groups.append(Group(Path(word).resolve().name, word, enter(zip(named_there, images, strict=True))))
        elif is_tar(Path(word)):
            groups += [Group(Path(tar).stem, tar, None) for tar in find_files(word)]
        elif is_table(Path(word)):
            groups.append(Group(Path(word).stem, word, _read_images(word, column, separator)))
    return groups, hidden


def _part_frames(named: Sequence[Named]) -> tuple[list[str], dict[str, pd.DataFrame]]:
    """Tells words from DataFrames, which are known by their number."""
    frames = [word for word in named if isinstance(word, pd.DataFrame)]
    numbered = {f"{FRAME} {number}": frame for number, frame in enumerate(frames, 1)}
    return [word for word in named if isinstance(word, str)], numbered


def _divide(groups: Sequence[Group], column: str, rows: int, are_files: bool) -> Iterator[Part]:
    """Yields the parts of groups; groups of equal names get a hash of where they lie."""
    groups = list({_place(group.place): group for group in groups}.values())  # a pattern may name a tar once more
    stems = [re.sub(r"[^\w.-]+", "_", group.stem).lstrip(".")[:80] or "rows" for group in groups]
    times = Counter(stem.lower() for stem in stems)
    for stem, group in zip(stems, groups, strict=True):
        name = f"{stem}-{_hash(_place(group.place))[:8]}" if times[stem.lower()] > 1 else stem
        if group.entries is None:
            yield ShardPart(name, _place(group.place), column)
            continue
        ids, values, skipped = group.entries
        for number, start in enumerate(range(0, max(len(ids), 1), rows)):
            some = Entries(ids[start : start + rows], values[start : start + rows], () if number else skipped)
            yield RowsPart(f"{name}-{number:05}", some, are_files)


def _check_urls(named: Iterable[str]) -> None:
    """Refuses URLs that cannot be opened, or that hold what may not be written down."""
    for word in filter(is_remote, named):
        check_remote(word, "INPUT")


def _check_separator(separator: str | None) -> None:
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise RecipeError(
            f"Expected the separator to be one character, but got {separator!r}. Name the one between fields, as ';'."
        )


def _require_distinct(parts: list[Part]) -> list[Part]:
    """Refuses two parts that would be one file, as of a folder `a` and a tar `a-00000.tar`."""
    names = Counter(part.name.lower() for part in parts)
    if names and names.most_common(1)[0][1] > 1:
        raise RecipeError(
            f"Expected parts of different names, but got {names.most_common(1)[0][0]!r} twice. Rename a tar, or embed "
            "one after the other."
        )
    return parts


def open_table(
    table: Named, column: str, condition: str | None = None, separator: str | None = None
) -> tuple[Rows, list[Fault]]:
    """Reads which images a table names: the rows without a fault, and the faults of the others.

    Args:
        table: The table.
        column: The column that holds the paths of images.
        condition: Which rows to keep, see `Table.filter`.
        separator: The character between fields; None goes by the table's name.

    Raises:
        TableFaultsError: If no row is without a fault.
    """
    # Each row has its own path for a caption: whatever the table says of its images, nobody asks for it.
    split = RandomSplit(val=0.0, test=0.0)
    whole = Table(table, image=column, caption=column, split=split, filter=condition, separator=separator).inspect()
    faults = [name_option(fault) for fault in whole.faults]
    if whole.rows is None:
        raise TableFaultsError(faults)
    return whole.rows, faults


def _read_images(table: Named, column: str, separator: str | None) -> Entries:
    """The images of a table, each once. Rows with a fault are left out."""
    rows, faults = open_table(table, column, separator=separator)
    first = np.sort(np.unique(rows.image_ids, return_index=True)[1])
    ids = [str(number) for number in rows.numbers[first].tolist()]
    return Entries(ids, rows.images[first].tolist(), list_faults(faults))


def _plain_entries(named: Iterable[tuple[str, str]]) -> Entries:
    """Ids and paths of files; those that are not UTF-8, which no file of vectors could hold, are left out."""
    rows = list(named)
    whole = [row for row in rows if show(row[1]) == row[1]]
    strange = tuple(Skipped(show(path), "its name is not UTF-8") for _, path in rows if show(path) != path)
    paths = [os.path.abspath(path) for _, path in whole]  # noqa: PTH100 (a Path for each of a million takes seconds)
    return Entries([row for row, _ in whole], paths, strange)


def _named_entries(named: Iterable[tuple[str, str]]) -> Entries:
    """Ids and paths of files as they are."""
    rows = list(named)
    return Entries([row for row, _ in rows], [path for _, path in rows])


def _read_lines() -> list[str]:
    try:
        lines = [line.removesuffix("\r") for line in sys.stdin.buffer.read().decode().removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise RecipeError(f"Expected UTF-8 on standard input, but got: {error}. Save it as UTF-8.") from error
    if not any(lines):
        raise RecipeError("Expected lines on standard input, but got none. Pass one path or text a line.")
    return lines


def _place(word: str) -> str:
    """The same path from every working directory; none of files that were named one by one."""
    return word if not word or is_remote(word) else str(Path(word).absolute())


def _hash(text: str) -> str:
    return sha256(text.encode(errors="backslashreplace")).hexdigest()

"""What a row's image is: its file, its id, and the hash that decides on its split and whether a trial keeps it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.data.prepare.members import place_of
from finetune.data.remote.places import is_remote
from finetune.data.table.cells import Cells, Integers, Strings, as_strings, number_strings
from finetune.data.table.faults import Fault
from finetune.data.table.image_files import ImageSearch
from finetune.data.table.paths import plain_folder, plain_paths
from finetune.data.table.scratch import MEMORY, Scratch, strip_column

Hashes: TypeAlias = npt.NDArray[np.uint64]


def check_images(
    cells: Cells,
    column: str,
    folders: Sequence[str],
    faults: list[Fault],
    roots: Sequence[str] | None = None,
    scratch: Scratch = MEMORY,
) -> Strings:
    """Finds the image of each row, whose path is relative to the folder of the row's file.

    Args:
        cells: The rows.
        column: The column of image paths.
        folders: The folder of each of the table's files, absolute and plain.
        faults: Receives a fault for each image that is not there, or lies elsewhere.
        roots: The folders that images lie in; None for anywhere.
        scratch: Where the paths lie.

    Returns:
        String array of shape (N,): absolute paths, or addresses in tars.
    """
    shards = {file if is_remote(file) else plain_folder(str(Path(file).absolute())) for file in cells.files}
    searches = [ImageSearch(folder, roots, shards) for folder in dict.fromkeys(folders)]
    order = {search.folder: at for at, search in enumerate(searches)}
    of_files = np.array([order[folder] for folder in folders])
    paths = scratch.column()
    for part in cells.parts(column):
        found, own = as_strings([""] * len(part)), of_files[part.file_ids]
        for at, search in enumerate(searches):
            rows = own == at
            found[rows] = _check(part.take(rows), column, search, faults)
        paths.append(found)
    found_all: Strings = paths.finish()
    return found_all


def _check(cells: Cells, column: str, search: ImageSearch, faults: list[Fault]) -> Strings:
    values = cells.columns[column]
    paths, refused = search.find(values)
    if refused:
        wrong = np.array([value in refused for value in values.tolist()], dtype=bool)
        found = cells.faults_where(wrong, column, "", "")
        faults += [fault._replace(**refused[str(fault.value)]._asdict()) for fault in found]
    return paths


def check_image_ids(cells: Cells, column: str, faults: list[Fault], scratch: Scratch = MEMORY) -> Integers:
    """Returns the id of each row's image as a number."""
    names, empty = strip_column(cells, column, scratch)
    faults += cells.faults_where(empty, column, "the id of an image", "Fill it in or remove the row.")
    numbers: Integers = scratch.keep(number_strings(names)[1])
    return numbers


def hash_images(cells: Cells, column: str, id_column: str | None, folder: str, seed: int) -> Hashes:
    """Hashes the id of each row's image, or its path relative to a folder; in a tar, its place.

    Args:
        cells: The rows.
        column: The column of image paths.
        id_column: The column of image ids, or None.
        folder: Absolute path.
        seed: Another number gives other hashes.

    Returns:
        Uint64 array of shape (N,).
    """
    if id_column is not None:
        parts = (np.strings.strip(part.columns[id_column]).tolist() for part in cells.parts(id_column))
        return hash_keys(chain.from_iterable(parts), len(cells), seed)
    return hash_keys(_iterate_keys(cells, column, folder), len(cells), seed)


def hash_keys(keys: Iterable[str], count: int, seed: int) -> Hashes:
    """Hashes keys with BLAKE2b, evenly over the numbers from 0 to 2**64 - 1.

    Args:
        keys: The texts.
        count: How many there are.
        seed: Another number gives other hashes.

    Returns:
        Uint64 array of shape (count,).
    """
    digests = (blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest() for key in keys)
    return np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64, count)


def _iterate_keys(cells: Cells, column: str, folder: str) -> Iterator[str]:
    """The path of each image relative to the folder, which does not change with its place; others stay absolute."""
    prefix, shards = folder.rstrip(os.sep) + os.sep, {*filter(is_remote, cells.files)}
    for part in cells.parts(column):
        for path in plain_paths(part.columns[column].tolist(), folder, shards):
            yield place_of(path).removeprefix(prefix).replace(os.sep, "/")

"""What a row's image is: its file, its id, and the hash that decides on its split and whether a trial keeps it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.data.prepare.members import place_of
from finetune.data.remote.places import is_remote
from finetune.data.table.cells import Cells, Integers, Strings, as_strings
from finetune.data.table.faults import Fault
from finetune.data.table.image_files import ImageFiles, find_images
from finetune.data.table.paths import plain_folder, plain_paths

Hashes: TypeAlias = npt.NDArray[np.uint64]


def check_images(
    cells: Cells, column: str, folders: Sequence[str], faults: list[Fault], roots: Sequence[str] | None = None
) -> ImageFiles:
    """Finds the image of each row, whose path is relative to the folder of the row's file.

    Args:
        cells: The rows.
        column: The column of image paths.
        folders: The folder of each of the table's files, absolute and plain.
        faults: Receives a fault for each image that is not there, or lies elsewhere.
        roots: The folders that images lie in; None for anywhere.
    """
    if len(set(folders)) > 1:
        paths = as_strings([""] * len(cells))
        for folder in dict.fromkeys(folders):
            own = np.array([other == folder for other in folders])[cells.file_ids]
            part = cells.take(own)
            files = check_images(part, column, [folder], faults, roots)
            paths[own] = files.paths[files.ids]
        distinct, ids = np.unique(paths, return_inverse=True)
        return ImageFiles(distinct, ids.astype(np.int64))
    values = cells.columns[column]
    shards = {file if is_remote(file) else plain_folder(str(Path(file).absolute())) for file in cells.files}
    files, refused = find_images(values, folders[0], roots, shards)
    if refused:
        wrong = np.isin(values, as_strings(list(refused)))
        found = cells.faults_where(wrong, column, "", "")
        faults += [fault._replace(**refused[str(fault.value)]._asdict()) for fault in found]
    return files


def check_image_ids(cells: Cells, column: str, faults: list[Fault]) -> Integers:
    """Returns the id of each row's image as a number."""
    names = np.strings.strip(cells.columns[column])
    faults += cells.faults_where(names == "", column, "the id of an image", "Fill it in or remove the row.")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


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
    names = cells.columns[column]
    if id_column is not None:
        return hash_keys(iter(np.strings.strip(cells.columns[id_column])), len(cells), seed)
    return hash_keys(_iterate_keys(names, folder, cells.files), len(cells), seed)


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


def _iterate_keys(names: Strings, folder: str, shards: Sequence[str]) -> Iterator[str]:
    """The path of each image relative to the folder, which does not change with its place; others stay absolute."""
    prefix = folder.rstrip(os.sep) + os.sep
    for path in plain_paths(names, folder, {*filter(is_remote, shards)}):
        yield place_of(path).removeprefix(prefix).replace(os.sep, "/")

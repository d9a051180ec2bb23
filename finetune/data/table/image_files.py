"""Finds the image file of each path in a table, and gives each file an id."""

# Strings and os.path, as a Path object for each of a million rows would take seconds.
# ruff: noqa: PTH112, PTH113, PTH118, PTH122, PTH208

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote, unquote_plus

import numpy as np

from finetune.core.errors import suggest
from finetune.data.prepare.members import Member
from finetune.data.remote.places import is_remote
from finetune.data.table.cells import Integers, Strings, as_strings
from finetune.data.table.paths import plain_paths


class ImageFiles(NamedTuple):
    """The image of each row.

    Attributes:
        paths: String array of shape (images,): absolute paths, each once, sorted.
        ids: Int64 array of shape (N,): the position in `paths` of each row's image.
    """

    paths: Strings
    ids: Integers


class Refusal(NamedTuple):
    """Why a value names no image file: what was expected, and how to repair it."""

    rule: str
    repair: str


_ELSEWHERE = Refusal(
    "an image on this machine, as the table is on another",
    "Name the folder of the images on this machine (--data.table.images), or put them into tar shards.",
)


@dataclass(frozen=True)
class _Folder:
    """The files of one folder, listed once: that is faster than looking for each file, above all on network disks."""

    path: str

    @cached_property
    def files(self) -> Mapping[str, bool] | None:
        """Its files, and whether each is a link."""
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.is_symlink() for entry in entries if _is_file(entry)}
        except (OSError, ValueError):  # ValueError: a name that holds NUL
            return None

    @cached_property
    def real(self) -> str:
        """Where it lies once links are followed."""
        return os.path.realpath(self.path)

    def locate(self, name: str) -> str:
        """Returns where a file lies once links are followed."""
        path = os.path.join(self.real, name)
        return os.path.realpath(path) if (self.files or {}).get(name) else path

    @cached_property
    def _nearest(self) -> dict[str, str]:
        names = sorted(self.files or (), reverse=True)  # of several the first in order stays
        exact, decoded = {_fold(name): name for name in names}, {_fold(unquote(name)): name for name in names}
        stems = {os.path.splitext(key)[0]: name for key, name in (decoded | exact).items()}
        return stems | decoded | exact

    @cached_property
    def _alike(self) -> str | None:
        """The folder whose path differs only as a file's name may, if any."""
        anchor, *parts = Path(self.path).parts
        found = anchor
        for part in parts:
            if not os.path.isdir(path := os.path.join(found, part)):
                near = _find_near(part, {_fold(name): name for name in sorted(_list(found))})
                if near is None or not os.path.isdir(path := os.path.join(found, near)):
                    return None
            found = path
        return found

    def explain_missing(self, name: str) -> str:
        """Says that there is no such file, and names the one that differs only in case, spelling or ending, if any."""
        if self.files is None:
            near, missing = self._alike, f"{self.path} is no folder that can be listed."
            return missing if near in (None, self.path) else f"{missing} {suggest(self.path, str(near))}"
        near, missing = _find_near(name, self._nearest), f"No file is at {self.path}{os.sep}{name}."
        return missing if near is None else f"{missing} {suggest(name, near)}"


def find_images(
    values: Strings, folder: str, roots: Sequence[str] | None = None, files: Container[str] = ()
) -> tuple[ImageFiles, dict[str, Refusal]]:
    """Finds the file of each row's image.

    Args:
        values: String array of shape (N,): absolute paths, paths relative to `folder`, or addresses in tars.
        folder: Absolute path.
        roots: Absolute paths of the folders that images lie in, links followed; None for anywhere.
        files: Absolute paths of files that may lie anywhere: the tars that the table itself is read from.

    Returns:
        The files, and the reason for each value that names no file.
    """
    names, inverse = np.unique(values, return_inverse=True)
    paths = [*plain_paths(names.tolist(), folder, files)]
    within = None if roots is None else tuple(os.path.realpath(root).rstrip(os.sep) + os.sep for root in roots)
    folders: dict[str, _Folder] = {}
    refused: dict[str, Refusal] = {}
    for name, path in zip(names.tolist(), paths, strict=True):
        member = Member.parse(path)
        place = path if member is None else member.tar
        if is_remote(place) and place in files:
            continue
        if is_remote(folder):
            refused[name] = _ELSEWHERE
            continue
        parent, base = os.path.split(place)
        listed = folders.get(parent)
        if listed is None:
            listed = folders[parent] = _Folder(parent)
        if listed.files is None or base not in listed.files:
            refused[name] = _refuse(name, listed, base)
        elif within is not None and place not in files and not (real := listed.locate(base)).startswith(within):
            refused[name] = _refuse_outside(real, folder)
    distinct, ids = np.unique(as_strings(paths), return_inverse=True)
    return ImageFiles(distinct, ids[inverse].astype(np.int64)), refused


def _refuse(value: str, folder: _Folder, name: str) -> Refusal:
    if not value.strip():
        return Refusal("the path of an image", "Fill it in or remove the row.")
    if is_remote(value):
        return Refusal("the path of an image on this machine", "Download it first, e.g. with img2dataset.")
    if "\\" in value and os.sep == "/":
        return Refusal("an image file", f"{folder.explain_missing(name)} Write folders with '/'.")
    return Refusal("an image file", folder.explain_missing(name))


def _refuse_outside(place: str, folder: str) -> Refusal:
    repair = (
        f"The file is {place}. If you trust the table's author, name a folder that holds all images "
        "(--data.table.images), or pass --data.table.outside true."
    )
    return Refusal(f"an image in {folder}", repair)


def _is_file(entry: "os.DirEntry[str]") -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _find_near(name: str, known: Mapping[str, str]) -> str | None:
    """Looks up a name as it is written, or as an address on the web would write it; then without its ending."""
    keys = [_fold(spelt) for spelt in (name, unquote(name), unquote_plus(name))]
    found = [known.get(key) for key in (*keys, *(os.path.splitext(key)[0] for key in keys))]
    return next((near for near in found if near is not None), None)


def _fold(name: str) -> str:
    return normalize("NFKC", name.strip()).casefold()

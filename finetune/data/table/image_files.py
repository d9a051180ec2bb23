"""Finds the image file of each path in a table, and gives each file an id."""

# Strings and os.path, as a Path object for each of a million rows would take seconds.
# ruff: noqa: PTH112, PTH113, PTH118, PTH122, PTH208

import os
from array import array
from bisect import bisect_left
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote, unquote_plus

import numpy as np

from finetune.core.errors import suggest
from finetune.data.prepare.members import Member
from finetune.data.remote.places import is_remote
from finetune.data.table.cells import Strings, as_strings, find_distinct
from finetune.data.table.paths import plain_paths

ALLOW_OUTSIDE = "name a folder that holds all images (--data.table.images), or pass --data.table.outside true."
"""How a recipe lets images lie outside of their table's folder."""


NAME_FOLDER = "If the images lie in another folder, name that one (--data.table.images)."


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
    def _listing(self) -> "tuple[array[int], frozenset[str]] | None":
        """Hashes of its files' names, ascending, 8 bytes each; and the names of those that are links."""
        hashes, links = array("q"), set[str]()
        try:
            with os.scandir(self.path) as entries:
                for entry in filter(_is_file, entries):
                    hashes.append(hash(entry.name))
                    if entry.is_symlink():
                        links.add(entry.name)
        except (OSError, ValueError):  # ValueError: a name that holds NUL
            return None
        return array("q", np.sort(np.frombuffer(hashes, np.int64)).tobytes()), frozenset(links)

    def __contains__(self, name: str) -> bool:
        if self._listing is None:
            return False
        known, _ = self._listing
        at = bisect_left(known, key := hash(name))
        return at < len(known) and known[at] == key

    @cached_property
    def real(self) -> str:
        """Where it lies once links are followed."""
        return os.path.realpath(self.path)

    def locate(self, name: str) -> str:
        """Returns where a file lies once links are followed."""
        path = os.path.join(self.real, name)
        return os.path.realpath(path) if self._listing is not None and name in self._listing[1] else path

    @cached_property
    def _nearest(self) -> dict[str, str]:
        names = sorted(_list_files(self.path), reverse=True)  # of several the first in order stays
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
        if self._listing is None:
            near, missing = self._alike, f"{self.path} is no folder that can be listed."
            return f"{missing} {suggest(self.path, str(near)) if near not in (None, self.path) else NAME_FOLDER}"
        near, missing = _find_near(name, self._nearest), f"No file is at {self.path}{os.sep}{name}."
        return missing if near is None else f"{missing} {suggest(name, near)}"


@dataclass(frozen=True)
class ImageSearch:
    """Finds the files of images.

    Args:
        folder: Absolute path that the images' paths are relative to.
        roots: Absolute paths of the folders that images lie in, links followed; None for anywhere.
        files: Absolute paths of files that may lie anywhere: the tars that the table itself is read from.
    """

    folder: str
    roots: Sequence[str] | None = None
    files: Container[str] = ()
    _folders: dict[str, _Folder] = field(default_factory=dict)

    @cached_property
    def _within(self) -> tuple[str, ...] | None:
        if self.roots is None:
            return None
        return tuple(os.path.realpath(root).rstrip(os.sep) + os.sep for root in self.roots)

    def find(self, values: Strings) -> tuple[Strings, dict[str, Refusal]]:
        """Finds the file of each row's image.

        Args:
            values: String array of shape (N,): absolute paths, paths relative to the folder, or addresses in tars.

        Returns:
            String array of shape (N,): absolute paths, or addresses; and the reason for each value that names no file.
        """
        names, _, inverse = find_distinct(values)
        paths = [*plain_paths(names.tolist(), self.folder, self.files)]
        refused = {}
        for name, path in zip(names.tolist(), paths, strict=True):
            if (refusal := self._refuse(name, path)) is not None:
                refused[name] = refusal
        return as_strings(paths)[inverse], refused

    def _refuse(self, name: str, path: str) -> Refusal | None:
        """Why a name, as a plain path, is refused."""
        member = Member.parse(path)
        place = path if member is None else member.tar
        if is_remote(place) and place in self.files:
            return None
        if is_remote(self.folder):
            return _ELSEWHERE
        parent, base = os.path.split(place)
        listed = self._folders.get(parent)
        if listed is None:
            listed = self._folders[parent] = _Folder(parent)
        if base not in listed:
            return _refuse(name, listed, base)
        if self._within is None or place in self.files or (real := listed.locate(base)).startswith(self._within):
            return None
        return _refuse_outside(real, self.folder)


def _refuse(value: str, folder: _Folder, name: str) -> Refusal:
    if not value.strip():
        return Refusal("the path of an image", "Fill it in or remove the row.")
    if is_remote(value):
        return Refusal("the path of an image on this machine", "Download it first, e.g. with img2dataset.")
    if "\\" in value and os.sep == "/":
        return Refusal("an image file", f"{folder.explain_missing(name)} Write folders with '/'.")
    return Refusal("an image file", folder.explain_missing(name))


def _refuse_outside(place: str, folder: str) -> Refusal:
    return Refusal(f"an image in {folder}", f"The file is {place}. If you trust the table's author, {ALLOW_OUTSIDE}")


def _is_file(entry: "os.DirEntry[str]") -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _list_files(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if _is_file(entry)]
    except (OSError, ValueError):
        return []


def _find_near(name: str, known: Mapping[str, str]) -> str | None:
    """Looks up a name as it is written, or as an address on the web would write it; then without its ending."""
    keys = [_fold(spelt) for spelt in (name, unquote(name), unquote_plus(name))]
    found = [known.get(key) for key in (*keys, *(os.path.splitext(key)[0] for key in keys))]
    return next((near for near in found if near is not None), None)


def _fold(name: str) -> str:
    return normalize("NFKC", name.strip()).casefold()

"""A bounded folder of what was fetched, which several processes read and fill at once."""

import os
import posixpath
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from finetune.core.cache import cache_folder
from finetune.core.errors import RecipeError
from finetune.core.places import is_at, name_place
from finetune.data.remote.locks import (
    HAS_LOCKS,
    close,
    leave,
    lock,
    lock_or_wait,
    open_shared,
    open_to_write,
    remove_unused,
    share,
)
from finetune.data.remote.patterns import find_remote
from finetune.data.remote.transfer import RemoteError, RemoteFile, Transfer

LIMIT = "ALIGN_FINETUNE_REMOTE_LIMIT"
"""The variable that says how much the folder may hold, such as `200GB`."""

_SHARE = 0.5
"""Of the disk's free room, what the folder may take where nobody says how much."""

_FORGIVEN = 60.0
"""Seconds after which a file that could not be had is asked for again: each row of a shard that is gone would ask."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def open_store() -> "Store":
    """Returns the store of this process, in the folder of `$ALIGN_FINETUNE_CACHE`, bounded by `LIMIT`."""
    return _open_store(cache_folder() / "remote", os.environ.get(LIMIT))


@lru_cache(maxsize=1)
def _open_store(folder: Path, limit: str | None) -> "Store":
    return Store(folder, None if limit is None else _parse_limit(limit))


def _parse_limit(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if found is None:
        raise RecipeError(f"Expected ${LIMIT} to be a size such as 200GB, but got {text!r}. Correct it.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


class NoRoomError(Exception):
    """A file that is fetched ahead finds no room, as all that could make it is in use."""


class Store:
    """Files that were fetched, each whole and under a name that says its URL and version.

    Who reads a file holds a shared lock on it, who fetches one an exclusive lock; what is locked is not removed. The
    system lets go of a lock when its process ends. Where room is needed, the files that were used longest ago go first;
    those in use are kept, even if they are more than the limit. What is being fetched counts as if it were there.

    Args:
        folder: Where the files lie. It is yours alone to read.
        limit: Most bytes; None for half of the disk's room.
        transfer: Asks the servers.
    """

    def __init__(self, folder: Path, limit: int | None = None, transfer: Transfer | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.transfer = transfer or Transfer()
        self._known: dict[str, RemoteFile] = {}
        self._listed: dict[str, list[RemoteFile]] = {}
        self._failed: dict[str, tuple[float, RemoteError]] = {}

    def find(self, pattern: str) -> list[RemoteFile]:
        """Asks a server which files a URL or pattern names, and remembers their versions.

        Args:
            pattern: See `find_remote`.

        Raises:
            RemoteError: If there is none, or the server does not answer.
        """
        files = self._listed[pattern] = find_remote(pattern, self.transfer)
        for file in files:
            self._known[file.url] = file
            self._failed.pop(file.url, None)
        return files

    def listed(self, pattern: str) -> list[RemoteFile]:
        """Returns what `find` found, and asks where it was not asked yet.

        Args:
            pattern: See `find_remote`.
        """
        return self._listed.get(pattern) or self.find(pattern)

    def known(self, url: str) -> RemoteFile:
        """Returns a file as it was when this process or the one that started it first asked.

        Args:
            url: The file.
        """
        if url not in self._known:
            self._known[url] = self.transfer.look(url)
        return self._known[url]

    @contextmanager
    def open(self, url: str, ahead: bool = False) -> Iterator[Path]:
        """Yields the path of a file, fetched if need be, which stays there as long as the block runs.

        Args:
            url: The file.
            ahead: Whether it is fetched within the limit only, as nobody asks for it yet.

        Raises:
            RemoteError: If it cannot be had.
            NoRoomError: If it is fetched ahead, and the files in use leave no room.
        """
        file = self.known(url)
        source = self._open(file, ahead)
        try:
            yield self._path(file)
        finally:
            close(source)

    def fetch(self, url: str) -> None:
        """Fetches a file unless it is there.

        Args:
            url: The file.

        Raises:
            RemoteError: If it cannot be had.
        """
        close(self._open(self.known(url)))

    def read(self, url: str, offset: int, length: int) -> bytes:
        """Reads a part of a file, which is fetched whole if need be.

        Args:
            url: The file.
            offset: Position of the first byte.
            length: Number of bytes.

        Raises:
            RemoteError: If it cannot be had.
        """
        source = self._open(self.known(url))
        try:
            return os.pread(source.fileno(), length, offset)
        finally:
            close(source)

    @property
    def room(self) -> int:
        """Most bytes that the files may take together."""
        with name_place(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._limit(sum(size for _, size, _ in self._list()))

    def _limit(self, held: int) -> int:
        return int(_SHARE * (shutil.disk_usage(self.folder).free + held)) if self.limit is None else self.limit

    def _path(self, file: RemoteFile) -> Path:
        return self.folder / f"{file.fingerprint}-{posixpath.basename(file.url)[-100:]}"

    def _open(self, file: RemoteFile, ahead: bool = False) -> BinaryIO:
        """Opens a file under a shared lock."""
        if not HAS_LOCKS:
            raise RemoteError(file.url, "to be read on Linux or macOS", "Windows", "Download it first.")
        path = self._path(file)
        while True:
            source = open_shared(path, file.size) or self._fetch(file, path, ahead)
            if source is not None:
                return source

    def _fetch(self, file: RemoteFile, path: Path, ahead: bool) -> BinaryIO | None:
        """Fetches a file, or waits until another process has, and opens it under a shared lock, all the time locked.

        Returns:
            The file; None where another process did not have it in the end.
        """
        failed_at, error = self._failed.get(file.url, (-_FORGIVEN, None))
        if error is not None and time.monotonic() - failed_at < _FORGIVEN:
            raise error
        part = path.with_name(f"{path.name}.part")
        with name_place(path), ExitStack() as opened:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            target = open_to_write(part)
            opened.callback(leave, target)
            if lock_or_wait(target) and is_at(target, part):  # else another process is or was at it
                self._fill(file, target, part, path, ahead)
            share(target)
            if not is_at(target, path):
                return None
            opened.pop_all()
            return target

    def _fill(self, file: RemoteFile, target: BinaryIO, part: Path, path: Path, ahead: bool) -> None:
        """Fetches a file under a name of its own, which becomes the file's once it is whole."""
        if path.exists():
            part.unlink()
            return
        try:
            self._reserve(file, target, ahead)
            self.transfer.fetch(file, target)
            target.truncate()
            target.flush()
            os.fsync(target.fileno())
            part.replace(path)
        except BaseException as stop:
            part.unlink(missing_ok=True)
            if isinstance(stop, RemoteError):
                self._failed[file.url] = time.monotonic(), stop
            raise

    def _reserve(self, file: RemoteFile, target: BinaryIO, ahead: bool) -> None:
        """Makes room for a file, which counts from now on; one process or thread does so at a time."""
        with open_to_write(self.folder.with_name(f"{self.folder.name}.lock")) as turn, lock(turn):
            target.truncate(0)
            self._make_room(file.url, file.size or 0, ahead)
            target.truncate(file.size or 0)

    def _make_room(self, url: str, needed: int, ahead: bool) -> None:
        """Removes the files that were used longest ago, and leaves those in use."""
        entries = self._list()
        held = sum(size for _, size, _ in entries)
        limit = self._limit(held)
        if needed > limit:
            rule = f"to fit into what fetched files may take ({limit:,} bytes in {self.folder})"
            repair = f"Raise ${LIMIT}, or put $ALIGN_FINETUNE_CACHE on a larger disk."
            raise RemoteError(url, rule, f"{needed:,} bytes", repair)
        for _, size, path in sorted(entries):
            if held + needed <= limit:
                return
            if remove_unused(path):
                held -= size
        if ahead and held + needed > limit:
            raise NoRoomError

    def _list(self) -> list[tuple[int, int, Path]]:
        """When each file was used last, and its size."""
        entries = []
        for path in self.folder.iterdir():
            try:
                about = path.stat()
            except OSError:  # another process was faster
                continue
            entries.append((about.st_mtime_ns, about.st_size, path))
        return entries

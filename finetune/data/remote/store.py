"""A bounded folder of what was fetched, which several processes read and fill at once."""

import os
import posixpath
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from finetune.core.cache import cache_folder
from finetune.core.errors import RecipeError
from finetune.core.places import is_at, name_place
from finetune.data.remote.patterns import find_remote
from finetune.data.remote.transfer import RemoteError, RemoteFile, Transfer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LIMIT = "ALIGN_FINETUNE_REMOTE_LIMIT"
"""The variable that says how much the folder may hold, such as `200GB`."""

_SHARE = 0.5
"""Of the disk's free room, what the folder may take where nobody says how much."""

_HELD = 16
"""Shards that a process keeps open, those it read last."""

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


class Store:
    """Files that were fetched, each whole and under a name that says its URL and version.

    Who reads a file holds a shared lock on it, who fetches one an exclusive lock; what is locked is not removed. The
    system lets go of a lock when its process ends. Where room is needed, the files that were used longest ago go first;
    those in use are kept, even if they are more than the limit.

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
        self._held: OrderedDict[str, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()

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
    def open(self, url: str) -> Iterator[Path]:
        """Yields the path of a file, fetched if need be, which stays there as long as the block runs.

        Args:
            url: The file.

        Raises:
            RemoteError: If it cannot be had.
        """
        file = self.known(url)
        source = self._open(file)
        try:
            yield self._path(file)
        finally:
            _close(source)

    def fetch(self, url: str) -> None:
        """Fetches a file unless it is there.

        Args:
            url: The file.

        Raises:
            RemoteError: If it cannot be had.
        """
        _close(self._open(self.known(url)))

    def read(self, url: str, offset: int, length: int) -> bytes:
        """Reads a part of a file, which is fetched whole if need be.

        Args:
            url: The file.
            offset: Position of the first byte.
            length: Number of bytes.

        Raises:
            RemoteError: If it cannot be had.
        """
        with self._lock:
            if url not in self._held:
                self._held[url] = self._open(self.known(url))
            self._held.move_to_end(url)
            content = os.pread(self._held[url].fileno(), length, offset)
            while len(self._held) > _HELD:
                _close(self._held.popitem(last=False)[1])
        return content

    def _path(self, file: RemoteFile) -> Path:
        return self.folder / f"{file.fingerprint}-{posixpath.basename(file.url)[-100:]}"

    def _open(self, file: RemoteFile) -> BinaryIO:
        """Opens a file under a shared lock."""
        if fcntl is None:
            raise RemoteError(file.url, "to be read on Linux or macOS", "Windows", "Download it first.")
        path = self._path(file)
        while True:
            source = _open_whole(path, file.size)
            if source is not None:
                os.utime(source.fileno())
                return source
            self._fetch(file, path)

    def _fetch(self, file: RemoteFile, path: Path) -> None:
        """Fetches a file, or waits until another process has."""
        failed_at, error = self._failed.get(file.url, (-_FORGIVEN, None))
        if error is not None and time.monotonic() - failed_at < _FORGIVEN:
            raise error
        part = path.with_name(f"{path.name}.part")
        with name_place(path):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with part.open("ab") as target:
                fcntl.flock(target, fcntl.LOCK_EX)
                if path.exists() or not is_at(target, part):  # another process was at it
                    _unlock(target)
                    return
                try:
                    self._make_room(file.url, file.size or 0)
                    target.truncate(0)
                    self.transfer.fetch(file, target)
                    target.flush()
                    os.fsync(target.fileno())
                    part.replace(path)
                except BaseException as stop:
                    part.unlink(missing_ok=True)
                    if isinstance(stop, RemoteError):
                        self._failed[file.url] = time.monotonic(), stop
                    raise
                finally:
                    _unlock(target)

    def _make_room(self, url: str, needed: int) -> None:
        """Removes the files that were used longest ago, and leaves those in use."""
        entries = []
        for path in self.folder.iterdir():
            try:
                about = path.stat()
            except OSError:  # another process was faster
                continue
            entries.append((about.st_mtime_ns, about.st_size, path))
        held = sum(size for _, size, _ in entries)
        limit = self.limit
        if limit is None:
            limit = int(_SHARE * (shutil.disk_usage(self.folder).free + held))
        if needed > limit:
            rule = f"to fit into what fetched files may take ({limit:,} bytes in {self.folder})"
            repair = f"Raise ${LIMIT}, or put $ALIGN_FINETUNE_CACHE on a larger disk."
            raise RemoteError(url, rule, f"{needed:,} bytes", repair)
        for _, size, path in sorted(entries):
            if held + needed <= limit:
                return
            if _remove_unused(path):
                held -= size


def _open_whole(path: Path, size: int | None) -> BinaryIO | None:
    """Opens a file under a shared lock; None where it is not there, or not as long as it should be."""
    try:
        source = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(source, fcntl.LOCK_SH)
    if is_at(source, path):  # not removed before it was locked
        if size is None or os.fstat(source.fileno()).st_size == size:
            return source
        path.unlink(missing_ok=True)
    _unlock(source)
    source.close()
    return None


def _close(source: BinaryIO) -> None:
    """Lets go of a file that was in use until now."""
    os.utime(source.fileno())
    _unlock(source)
    source.close()


def _unlock(file: BinaryIO) -> None:
    """Lets go of a lock, which closing alone would not: a process that was forked meanwhile has the file open too."""
    fcntl.flock(file, fcntl.LOCK_UN)


def _remove_unused(path: Path) -> bool:
    """Removes a file, unless a process reads or fetches it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = is_at(file, path)
            if is_there:
                path.unlink()
            _unlock(file)
            return is_there
    except OSError:  # in use, or removed by another process
        pass
    return False

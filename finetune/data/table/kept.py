"""Large tables are read once: their rows are kept in a file, which the starts, workers and ranks that follow open."""

# Strings and os.path, as a Path object for each of a million images would take seconds.
# ruff: noqa: PTH112, PTH120

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from finetune.core.cache import cache_folder, remove_unused
from finetune.core.files import read_json, write_json
from finetune.core.sealed import break_seal, fingerprint_once, is_sealed, seal, state_of
from finetune.data.prepare import members
from finetune.data.prepare.members import Member
from finetune.data.remote.places import is_remote
from finetune.data.remote.store import open_store
from finetune.data.table.rows import Rows
from finetune.data.table.scratch import Scratch

KEPT_FROM = 4 << 20
"""Bytes of a table's files from which its rows are kept; fewer are read in less than a second."""

ROWS, IMAGES = "rows.arrow", "images.json"
CHUNK = 100_000

MOST_FOLDERS = 100_000
"""Folders of images that a start looks at."""


@dataclass(frozen=True)
class KeptTable:
    """A folder that keeps the rows of a table, and what is computed of them, under the table's content and settings.

    Args:
        folder: The folder.
        source: The table as the user named it.
        files: Its files.
    """

    folder: Path
    source: str
    files: tuple[str, ...]

    @classmethod
    def find(cls, source: str, files: Sequence[str], also: Sequence[str], settings: object) -> "KeptTable | None":
        """Finds the folder of a table, which need not be there yet.

        None for a small table, and for one on a server that does not say when it changes.

        Args:
            source: As for the class.
            files: Likewise.
            also: Other files that the rows depend on.
            settings: What else they depend on; its `repr` counts.

        Raises:
            OSError: If a file cannot be read.
        """
        if sum(map(_size_of, files)) < KEPT_FROM:
            return None
        known = [_content_of(file) for file in (*files, *also)]
        if not all(known):
            return None
        key = blake2b(repr((known, settings, _code())).encode(errors="surrogateescape"), digest_size=16).hexdigest()
        return cls(cache_folder() / "tables" / key, source, tuple(files))

    def open(self) -> Rows | None:
        """Opens the rows; None where they are not kept, not as they were written, or their images have changed."""
        path = self.folder / ROWS
        if not is_sealed(path) or not self._has_its_images():
            return None
        from finetune.data.table.rows_file import open_rows  # Arrow takes a second, which small tables are spared

        with suppress(OSError):  # the folder may be another user's
            os.utime(self.folder / IMAGES)
        return open_rows(path, self.source, self.files, self.folder)

    def keep(self, rows: Rows) -> Rows:
        """Writes rows, and opens what was written. Where nothing can be written, warns and returns the rows.

        Args:
            rows: The rows, as they were read.
        """
        from finetune.data.table.rows_file import write_rows

        path = self.folder / ROWS
        try:
            remove_unused(self.folder.parent.glob(f"*/{IMAGES}"))
            for former in self.folder.glob("*"):  # what was computed of the rows as they were
                break_seal(former)
            write_rows(rows, path)
            write_json(self.folder / IMAGES, {folder: _describe(folder) for folder in _folders_of(rows)})
            seal(path)
            return self.open() or rows
        except OSError as error:
            self.warn(error)
            return rows

    def warn(self, error: OSError) -> None:
        """Says that the rows are not kept.

        Args:
            error: Why nothing can be written.
        """
        warnings.warn(
            f"The rows of {self.source} are not kept in {self.folder.parent}: {error.strerror or error}. "
            "Each start reads the table anew. Set ALIGN_FINETUNE_CACHE to another folder.",
            stacklevel=2,
        )

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """Makes a folder for what has been read, as long as the table is read.

        Raises:
            OSError: If it cannot be made.
        """
        from finetune.data.table.disk_scratch import DiskScratch

        folder = self.folder / "reading"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield DiskScratch(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets other processes that hold the folder wait, so that one of them reads the table for all."""
        lock = FileLock(self.folder / "lock", mode=0o600)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError):  # a disk without locks, or none to write on: `keep` will say so
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def _has_its_images(self) -> bool:
        """Whether the folders of the images hold the files that they held."""
        try:
            known = read_json(self.folder / IMAGES)
            return all(_describe(place, former) == former for place, former in known.items())
        except (OSError, ValueError, AttributeError):
            return False


def _size_of(file: str) -> int:
    return (open_store().known(file).size or 0) if is_remote(file) else Path(file).stat().st_size


def _content_of(file: str) -> tuple[object, ...]:
    """What a file is known by; a tar by size and time of change, as reading it would take long. Nothing if unknown."""
    if is_remote(file):
        known = open_store().known(file)
        return (known.fingerprint,) if known.version else ()
    path = str(Path(file).absolute())
    return (path, *state_of(path)) if path.lower().endswith(".tar") else (path, fingerprint_once(Path(path)))


def _folders_of(rows: Rows) -> list[str]:
    """The folders of all images, or evenly spaced ones of very many; of images in tars, the tars."""
    found = set[str]()
    for start in range(0, len(rows), CHUNK):
        for path in {*rows.images[start : start + CHUNK].tolist()}:
            found.add(os.path.dirname(path) if (member := Member.parse(path)) is None else member.tar)
    found = {place for place in found if not is_remote(place)}
    return sorted(found)[:: max(1, -(-len(found) // MOST_FOLDERS))]


def _describe(place: str, former: Sequence[object] = ()) -> list[object]:
    """Size, time of change and inode of a folder or tar, and a hash of the names of a folder's files.

    The files are listed where the folder changed, as by a folder that was made in it, which changes no image.

    Args:
        place: The folder or tar.
        former: What it was; its hash is taken over where nothing changed.
    """
    state: list[object] = [*state_of(place)]
    if former and state == [*former[:3]]:
        return [*former]
    if not os.path.isdir(place):
        return [*state, ""]
    with os.scandir(place) as entries:
        names = sorted(f"{entry.name}\0{entry.is_symlink()}" for entry in entries if entry.is_file())
    listed = blake2b("\0".join(names).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    if former and [state[2], listed] == [*former[2:]]:
        return [*former]
    return [*state, listed]


@cache
def _code() -> str:
    """What reads tables: this code and the libraries that it leaves texts and numbers to."""
    modules = [*sorted(Path(__file__).parent.glob("*.py")), Path(members.__file__)]
    content = b"".join(module.read_bytes() for module in modules)
    libraries = [version(name) for name in ("numpy", "pyarrow")]
    return blake2b(content + repr(libraries).encode(), digest_size=16).hexdigest()

"""What a tar holds: read from its headers once, and from a small file in the cache whenever it is asked for again."""

import os
import tarfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from finetune.core.cache import cache_folder, remove_unused_files
from finetune.core.files import write_file
from finetune.core.sealed import SETTLED
from finetune.data.prepare.images import EXTENSIONS
from finetune.data.remote.store import open_store
from finetune.data.table.bounds import MOST_BYTES

PICTURES = {extension.removeprefix(".") for extension in EXTENSIONS}

_FORM = "1"
"""Part of each index's name, to be changed with what an index holds."""

_KEPT = 1 << 16
"""Bytes of the largest text that an index keeps."""


class Entry(NamedTuple):
    """A file in a tar.

    Attributes:
        name: Its name.
        offset: Position of its first byte in the tar.
        size: Number of its bytes.
        content: Its bytes, if it is a short text; else None.
    """

    name: str
    offset: int
    size: int
    content: bytes | None

    @property
    def key(self) -> str:
        """The name up to the first dot of its last part; empty for a hidden file."""
        folder, slash, name = self.name.rpartition("/")
        start = name.partition(".")[0]
        return f"{folder}{slash}{start}" if start else ""

    @property
    def ending(self) -> str:
        """What follows that dot, in lower case."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


@dataclass(frozen=True)
class Tar:
    """A tar, wherever it lies.

    Attributes:
        name: How the user named it.
        address: What addresses of its members begin with, see `Member`.
        fingerprint: Changes with its content; empty where that cannot be known.
        open: Yields the path at which it can be read.
    """

    name: str
    address: str
    fingerprint: str
    open: Callable[[], AbstractContextManager[Path]]

    @classmethod
    def of_path(cls, path: Path) -> Self:
        """A tar on this machine, known by path, size and date.

        Args:
            path: As the user named it.
        """
        about, place = path.stat(), str(path.absolute())
        is_settled = time.time() - about.st_mtime > SETTLED
        known_by = f"{place} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}" if is_settled else ""
        return cls(str(path), place, known_by, lambda: nullcontext(path))

    @classmethod
    def of_remote(cls, url: str) -> Self:
        """A tar on a server, known by URL and version.

        Args:
            url: The tar.
        """
        store = open_store()
        return cls(url, url, store.known(url).fingerprint, partial(store.open, url))

    def entries(self) -> list[Entry]:
        """Lists the regular files in their order, from the saved index if there is one.

        Raises:
            tarfile.TarError: If it is no whole tar.
            OSError: If it cannot be read.
        """
        name = blake2b(f"{_FORM} {self.fingerprint}".encode(errors="surrogateescape"), digest_size=16).hexdigest()
        saved = cache_folder() / "shards" / f"{name}.parquet"
        entries = _read_index(saved) if self.fingerprint else None
        if entries is None:
            with self.open() as path:
                entries = _read_headers(path)
            if self.fingerprint:
                _write_index(saved, entries)
        return entries


def _read_index(path: Path) -> list[Entry] | None:
    """What was saved; None where nothing was, or it is damaged."""
    if not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(Entry._fields))
        columns = (table[name].to_pylist() for name in Entry._fields)
        entries = [Entry(*row) for row in zip(*columns, strict=True)]
        os.utime(path)
    except (pa.ArrowException, OSError, KeyError):
        return None
    return entries


def _write_index(path: Path, entries: list[Entry]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = (pa.string(), pa.int64(), pa.int64(), pa.large_binary())
    columns = [pa.array(column, kind) for column, kind in zip(zip(*entries, strict=True), kinds, strict=True)]
    if not columns:
        return
    with suppress(OSError):  # without it the headers are read again
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with write_file(path) as file:
            pq.write_table(pa.table(columns, names=list(Entry._fields)), file, compression="zstd")
        remove_unused_files(path.parent.glob("*.parquet"))


class _Header(tarfile.TarInfo):
    """A member's header without date, owner and mode, which would take most of the time to read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Reads a plain header, and leaves any other or damaged one to tarfile."""
        kind, size, checksum = buf[156:157], buf[124:135], buf[148:154]
        is_plain = len(buf) == tarfile.BLOCKSIZE and kind in (tarfile.REGTYPE, tarfile.XHDTYPE) and not buf[345]
        if not (is_plain and size.isdigit() and checksum.isdigit()):
            return cls._read_whole(buf, encoding, errors)
        if int(checksum, 8) != sum(buf[:148]) + sum(buf[156:]) + 8 * ord(" "):
            return cls._read_whole(buf, encoding, errors)
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        header.type, header.size = bytes(kind), int(size, 8)
        return header._check()

    @classmethod
    def _read_whole(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        return super().frombuf(buf, encoding, errors)._check()

    def _check(self) -> Self:
        """Refuses long names and the like of more than `MOST_BYTES`, which tarfile would read at once."""
        if self.size < 0 or (self.type not in tarfile.REGULAR_TYPES and self.size > MOST_BYTES):
            raise tarfile.HeaderError(f"a header of {self.size:,} bytes")
        return self


def _read_headers(path: Path) -> list[Entry]:
    """Lists the regular files of a whole tar, with their short texts."""
    entries = []
    with (
        tarfile.open(path, "r:", tarinfo=_Header, encoding="utf-8", errors="replace") as tar,
        path.open("rb") as content,
    ):
        length = path.stat().st_size
        for member in tar:
            if not 0 <= member.size <= length - member.offset_data and member.isreg():
                raise tarfile.ReadError(f"{member.name!r} of {member.size:,} bytes in a tar of {length:,}")
            entry = Entry(member.name, member.offset_data, member.size, None)
            if entry.key and member.isreg() and not member.issparse():  # no hidden files, links, folders
                entries.append(_with_text(entry, content))
        # A damaged header or the end of the file ends the loop, just as the zeros at a tar's end do.
        content.seek(tar.offset)
        if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or broken off at byte {tar.offset:,}")
    return entries


def _with_text(entry: Entry, tar: BinaryIO) -> Entry:
    if entry.ending in PICTURES or entry.size > _KEPT:
        return entry
    tar.seek(entry.offset)
    content = tar.read(entry.size)
    try:
        content.decode()
    except UnicodeDecodeError:
        return entry
    return entry._replace(content=content)

"""Keeps images on disk as they were decoded and resized, so that the runs of a machine decode each of them once."""

# Descriptors and os.path, as several processes write at places of their own, and for each image anew.
# ruff: noqa: PTH113

import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np

from finetune.core.cache import remove_unused
from finetune.data.prepare.images import ImagePreparation, Pixels, try_image
from finetune.data.prepare.members import Member, read_bytes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SHARE = 0.1
"""Share of the free disk that the images of a split may take."""

DIGEST, CHECK = 16, 4  # bytes of an index entry: the hash of an image file, the checksum of hash and pixels
PREFIX = "pixels-"

Made = TypeVar("Made")


@dataclass(eq=False)
class PixelCache:
    """Prepared images by the content of their files, in a folder that several processes read and fill at once.

    `pixels` holds images of one shape, one after the other; `index` an entry for each, in the same order. The entry is
    written after the pixels, and an image is there once its entry is whole. Who writes holds a lock that the system
    lets go of when the process ends; the next one writes over what a killed one began. The checksum finds what a disk
    has lost. As the content decides, a changed file is another image; see `ImagePreparation.fingerprint` for the rest.

    The files are read by position, not mapped: memory is shared between processes either way, but mapped pages count as
    memory of each, and a disk that fails kills a process that maps. On Windows, which has neither such locks nor such
    reads, nothing is kept.

    Args:
        folder: Where the folders of all settings lie.
        prepare: What is done with an image.
        images: Number of images that will be asked for; where they take more than `SHARE` of the free disk, nothing is
            kept.

    Attributes:
        fault: Why nothing more can be kept, for a message; empty as long as nothing is wrong.
    """

    folder: Path
    prepare: ImagePreparation
    images: int
    fault: str = field(default="", init=False)

    def read(self, path: str) -> Pixels | str:
        """Returns the prepared image of a file, or in a few words why it cannot be read.

        Args:
            path: A file, or the address of one in a tar.
        """
        content = self._read_file(path)
        digest = blake2b(content, digest_size=DIGEST).digest()
        files = self._files if content else None
        found = self._attempt(files.find, digest) if files else None
        if found is not None:
            return found
        image = try_image(path, content)
        if isinstance(image, str):
            return image
        pixels = self.prepare(image)
        if files:
            self._attempt(files.add, digest, pixels)
        return pixels

    def _read_file(self, path: str) -> bytes:
        """The content of a file; none where there is no file, or it cannot be read: opening it will say why."""
        if Member.parse(path) is None and not os.path.isfile(path):  # a pipe would wait
            return b""
        try:
            return read_bytes(path)
        except OSError:
            return b""

    @cached_property
    def _files(self) -> "_Files | None":
        """The files, opened in each process that asks; None where nothing is kept."""
        shape = self.prepare.shape if fcntl else None
        path = self.folder / f"{PREFIX}{self.prepare.fingerprint}"
        files = self._attempt(_Files, path, shape) if shape else None
        if files:
            remove_unused(self.folder.glob(f"{PREFIX}*/index"))
        return files if files and self.images <= files.most else None

    def _attempt(self, action: Callable[..., Made], *given: object) -> Made | None:
        try:
            return action(*given)
        except OSError as error:
            reason = error.strerror or error
            self.fault = (
                f"Decoded images are no longer kept in {self.folder}: {reason}. "
                "Set data.cache to another folder, or to null."
            )
            return None

    def __getstate__(self) -> dict[str, object]:
        """Leaves the open files to this process."""
        return {name: value for name, value in vars(self).items() if name != "_files"}


class _Files:
    """The images of one preparation."""

    _pixels = _index = -1

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pixels, self._index = _open(path / "pixels"), _open(path / "index")
        os.utime(self._index)
        self._shape, self._size = shape, int(np.prod(shape))
        self._places: dict[bytes, tuple[int, bytes]] = {}
        self._seen = 0
        held = os.fstat(self._pixels).st_size
        self.most = int(SHARE * (shutil.disk_usage(path).free + held)) // self._size

    def __del__(self) -> None:
        for descriptor in (self._pixels, self._index):
            if descriptor >= 0:
                os.close(descriptor)

    def find(self, digest: bytes) -> Pixels | None:
        """Returns an image; None where it is not there, or not as it was written."""
        if digest not in self._places:
            self._read_new()
        place, check = self._places.get(digest, (0, b""))
        content = os.pread(self._pixels, self._size, place * self._size) if check else b""
        if len(content) < self._size or _check(digest, content) != check:
            self._places.pop(digest, None)
            return None
        return np.frombuffer(bytearray(content), np.uint8).reshape(self._shape)

    def add(self, digest: bytes, pixels: Pixels) -> None:
        """Writes an image, unless another process has done so or there is no room."""
        content = pixels.tobytes()
        fcntl.lockf(self._index, fcntl.LOCK_EX)
        try:
            self._read_new()
            if digest in self._places or self._seen >= self.most:
                return
            self._write(content, digest + _check(digest, content))
        finally:
            fcntl.lockf(self._index, fcntl.LOCK_UN)

    def _write(self, content: bytes, entry: bytes) -> None:
        try:
            _write_all(self._pixels, content, self._seen * self._size)
            _write_all(self._index, entry, self._seen * len(entry))
        except OSError:
            self.most = 0
            os.truncate(self._pixels, self._seen * self._size)  # a full disk gets back what was begun
            raise

    def _read_new(self) -> None:
        """Learns of the images that were added since the last time."""
        length = DIGEST + CHECK
        count = os.fstat(self._index).st_size // length - self._seen
        entries = os.pread(self._index, count * length, self._seen * length) if count > 0 else b""
        for start in range(0, len(entries), length):
            self._places[entries[start : start + DIGEST]] = self._seen, entries[start + DIGEST : start + length]
            self._seen += 1


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _check(digest: bytes, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(digest)).to_bytes(CHECK, "little")


def _write_all(descriptor: int, content: bytes, place: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], place + done)

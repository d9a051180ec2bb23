"""Reads pictures inside tars, which an address such as `00000.tar:0007.jpg@1536+20480` names instead of a path."""

# Strings and the plain functions, as a Path object for each of a million rows would take seconds.
# ruff: noqa: PTH116, PTH123

import os
import re
from typing import NamedTuple, Self

from finetune.data.remote.places import is_remote
from finetune.data.remote.store import open_store

_ADDRESS = re.compile(r"(.+?\.tar):(.+)@(\d{1,15})\+(\d{1,15})", re.IGNORECASE | re.DOTALL)


class Member(NamedTuple):
    """A file inside an uncompressed tar, which can be read without the files before it.

    Attributes:
        tar: Path or URL of the tar.
        name: Name of the member, for messages.
        offset: Position of its first byte in the tar.
        size: Number of its bytes.
    """

    tar: str
    name: str
    offset: int
    size: int

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """Reads an address.

        Args:
            path: The image of a row.

        Returns:
            The member, or None for an ordinary path.

        Example:
            >>> Member.parse("00000.tar:0007.jpg@1536+20480")
            Member(tar='00000.tar', name='0007.jpg', offset=1536, size=20480)
            >>> Member.parse("0007.jpg") is None
            True
        """
        found = _ADDRESS.fullmatch(path)
        return None if found is None else cls(found[1], found[2], int(found[3]), int(found[4]))

    @property
    def address(self) -> str:
        """The address that `parse` reads."""
        return f"{self.place}@{self.offset}+{self.size}"

    @property
    def place(self) -> str:
        """The place `tar:name`, for messages."""
        return f"{self.tar}:{self.name}"

    def read(self, limit: int | None = None) -> bytes:
        """Reads the member's bytes, or the first of them.

        Args:
            limit: Largest number of bytes; None reads all.

        Raises:
            OSError: If the tar cannot be read or fetched, or has become shorter.
        """
        length = self.size if limit is None else min(limit, self.size)
        if is_remote(self.tar):
            return open_store().read(self.tar, self.offset, length)
        with open(self.tar, "rb") as file:
            if os.fstat(file.fileno()).st_size < self.offset + self.size:  # before room is made for it
                raise OSError(f"the tar ends before {self.name} does")
            file.seek(self.offset)
            return file.read(length)


def place_of(path: str) -> str:
    """Returns a path, or the part of an address that names the member.

    Args:
        path: A path or an address.
    """
    member = Member.parse(path)
    return path if member is None else member.place


def size_of(path: str) -> int:
    """Returns the number of bytes of a file or member.

    Args:
        path: A path or an address.

    Raises:
        OSError: If the file does not exist.
    """
    member = Member.parse(path)
    return os.stat(path).st_size if member is None else member.size


def read_bytes(path: str, limit: int | None = None) -> bytes:
    """Reads a file or member, or its beginning.

    Args:
        path: A path or an address.
        limit: Largest number of bytes; None reads all.

    Raises:
        OSError: If the file cannot be read.
    """
    member = Member.parse(path)
    if member is not None:
        return member.read(limit)
    with open(path, "rb", buffering=0) as file:
        return file.read(limit)

"""Reads a table's file as text, block by block, and decompresses it if its name says so."""

import io
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self, TypeAlias

from finetune.core.errors import did_you_mean
from finetune.data.prepare.images import EXTENSIONS
from finetune.data.table.bounds import LARGEST_RATIO, may_become
from finetune.data.table.faults import Fault, TableFaultsError

PIECE = 4 << 20  # bytes read at a time
MOST_LOOKED_AT = 1_000  # files and folders of each depth, where a folder stands for a table
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

Blocks: TypeAlias = Callable[[], Iterator[str]]


def check_file(path: Path, role: str = "the table") -> None:
    """Checks that a file exists.

    Args:
        path: The file.
        role: Its role, for the message.

    Raises:
        TableFaultsError: If it does not exist.
    """
    if path.is_file():
        return
    if path.is_dir():
        repair = _list_by_class(path) or (
            f"Name a file in it, or all of them by the pattern {path / '*'}{path.suffix or '.csv'}."
        )
        raise TableFaultsError([Fault(str(path), f"{role} to be a file", repair, value="folder")])
    beside = [other.name for other in path.parent.glob("*") if other.is_file()]
    repair = did_you_mean(path.name, beside) if 0 < len(beside) <= 100 else f"Nothing is at {path.absolute()}."
    raise TableFaultsError([Fault(str(path), f"{role} to be a file", repair)])


def _list_by_class(folder: Path) -> str | None:
    """Says how a folder of images, or of folders of images, becomes a table; None for any other folder."""
    for depth in range(3):  # images, classes, splits
        files = islice(folder.glob("*/" * depth + "*"), MOST_LOOKED_AT)
        if any(file.suffix.lower() in EXTENSIONS and file.is_file() for file in files):
            around = folder if depth else folder.absolute().parent
            return (
                "Name a table that lists the images. Where folders are named by class, "
                f"`{shlex.join(['finetune', 'prepare', 'folders', str(around)])}` writes one."
            )
    return None


def count_lines(before: Blocks) -> int:
    """Returns the number of the line that a text ends in, from 1.

    Args:
        before: The text.
    """
    return sum(block.count("\n") for block in before()) + 1


@dataclass(frozen=True)
class TextFile:
    """A UTF-8 file, with or without byte order mark, plain or compressed with gzip or Zstandard.

    Attributes:
        path: The file.
        has_quotes: Whether there is a double quote in it.
        has_newlines: Whether some line ends in a line feed.
    """

    path: Path
    has_quotes: bool
    has_newlines: bool

    @classmethod
    def open(cls, path: Path, row_at: Callable[[Blocks], int] = count_lines) -> Self:
        """Reads the file once, to see that it is text.

        Args:
            path: The file.
            row_at: Returns the row that a text ends in, so that a fault can name it.

        Raises:
            TableFaultsError: If the file cannot be read, is not UTF-8, or holds NUL characters.
        """
        file, start, nul, beginning = str(path), 0, -1, b""
        has_quotes = has_newlines = False

        def fault(position: int, rule: str, value: str) -> TableFaultsError:
            row = row_at(lambda: _read_until(path, position))
            return TableFaultsError([Fault(file, rule, _explain_bytes(beginning), row, value=value)])

        for block in _read_blocks(path):
            beginning = beginning or block[:8]
            try:
                block.decode()
            except UnicodeDecodeError as error:
                position = start + error.start
                found = f"byte 0x{block[error.start]:02x} at position {position}"
                raise fault(position, "UTF-8 text", found) from error
            if nul < 0 and b"\0" in block:
                nul = start + block.index(b"\0")
            has_quotes = has_quotes or b'"' in block
            has_newlines = has_newlines or b"\n" in block
            start += len(block)
        if nul >= 0:
            raise fault(nul, "text without NUL characters", "\0")
        return cls(path, has_quotes, has_newlines)

    def blocks(self) -> Iterator[str]:
        """Yields the text in blocks that end in a line feed; the last one need not."""
        return _decode(_read_blocks(self.path))

    def lines(self) -> Iterator[str]:
        """Yields the lines with their ends, whichever these are."""
        for block in self.blocks():
            yield from io.StringIO(block, newline="")


def _decode(blocks: Iterator[bytes]) -> Iterator[str]:
    for number, block in enumerate(blocks):
        text = block.decode()
        yield text if number else text.removeprefix("\ufeff")  # "utf-8-sig" would count positions after the mark


def _read_until(path: Path, position: int) -> Iterator[str]:
    """Yields the text before a position; an `x` ends its last line, so that an empty one is not taken for none."""

    def cut() -> Iterator[bytes]:
        left = position
        for block in _read_blocks(path):
            yield block if left >= len(block) else block[:left] + b"x"
            left -= len(block)
            if left < 0:
                return

    return _decode(cut())


def _read_blocks(path: Path) -> Iterator[bytes]:
    """Yields the bytes of a file, cut behind line feeds."""
    rest = list[bytes]()
    for piece in _read_pieces(path):
        head, end, tail = piece.rpartition(b"\n")
        if end:
            yield b"".join([*rest, head, end])
            rest.clear()
        rest.append(tail)
    if any(rest):
        yield b"".join(rest)


def _read_pieces(path: Path) -> Iterator[bytes]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        if compression is None:
            with path.open("rb", buffering=0) as file:
                yield from iter(lambda: file.read(PIECE), b"")
            return
        import pyarrow as pa  # takes a second, which plain files are spared

        size, length = path.stat().st_size, 0
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, compression) as stream:
            while piece := stream.read(PIECE):
                length += len(piece)
                if not may_become(size, length):
                    rule = f"a table that is at most {LARGEST_RATIO} times as large when it is decompressed"
                    repair = "Do not use this file unless you know why; if you do, decompress it first."
                    raise TableFaultsError([Fault(str(path), rule, repair, value="more")])
                yield piece
    except OSError as error:
        rule, repair = "a file that can be read", "Check its permissions and disk."
        if compression is not None and error.errno is None:  # it was read, and is no such file
            rule = f"a whole file compressed with {compression}"
            repair = f"Write or download it again. If it is not compressed, take {path.suffix} off its name."
        raise TableFaultsError([Fault(str(path), rule, repair, value=str(error))]) from error


def _explain_bytes(content: bytes) -> str:
    if content.startswith(b"PK\x03\x04"):
        return "This is a spreadsheet or an archive: export the table as CSV (UTF-8)."
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "This is UTF-16: save the file as UTF-8."
    if content.startswith(b"PAR1"):
        return "This is Parquet: name it .parquet."
    if content.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        return "This is compressed: let its name end in .gz or .zst."
    return "Save the file as UTF-8 text."

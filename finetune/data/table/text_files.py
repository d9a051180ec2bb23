"""Reads a table's file as text, and decompresses it if its name says so."""

from collections.abc import Callable
from pathlib import Path

from finetune.core.errors import did_you_mean
from finetune.data.table.bounds import LARGEST_RATIO, join_within
from finetune.data.table.faults import Fault, TableFaultsError

PIECE = 16 << 20  # bytes decompressed at a time
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


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
        repair = f"Name a file in it, or all of them by the pattern {path / '*'}{path.suffix or '.csv'}."
        raise TableFaultsError([Fault(str(path), f"{role} to be a file", repair, value="folder")])
    beside = [other.name for other in path.parent.glob("*") if other.is_file()]
    repair = did_you_mean(path.name, beside) if 0 < len(beside) <= 100 else f"Nothing is at {path.absolute()}."
    raise TableFaultsError([Fault(str(path), f"{role} to be a file", repair)])


def read_text(path: Path, row_at: Callable[[str], int]) -> str:
    """Reads a UTF-8 file, with or without byte order mark, plain or compressed with gzip or Zstandard.

    Args:
        path: The file.
        row_at: Returns the row that a text ends in, so that a fault can name it.

    Raises:
        TableFaultsError: If the file cannot be read, is not UTF-8, or holds NUL characters.
    """
    file, content = str(path), _read_bytes(path)
    try:
        text = content.decode().removeprefix("\ufeff")  # "utf-8-sig" would count an error's position after the mark
    except UnicodeDecodeError as error:
        row = row_at(content[: error.start].decode("utf-8-sig"))
        found = f"byte 0x{content[error.start]:02x} at position {error.start}"
        raise TableFaultsError([Fault(file, "UTF-8 text", _explain_bytes(content), row, value=found)]) from error
    if "\0" in text:
        row = row_at(text[: text.index("\0")])
        raise TableFaultsError([Fault(file, "text without NUL characters", _explain_bytes(content), row, value="\0")])
    return text


def _read_bytes(path: Path) -> bytes:
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        if compression is None:
            return path.read_bytes()
        import pyarrow as pa  # takes a second, which plain files are spared

        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, compression) as stream:
            content = join_within(iter(lambda: stream.read(PIECE), b""), path.stat().st_size)
        if content is None:
            rule = f"a table that is at most {LARGEST_RATIO} times as large when it is decompressed"
            repair = "Do not use this file unless you know why; if you do, decompress it first."
            raise TableFaultsError([Fault(str(path), rule, repair, value="more")])
        return content
    except OSError as error:
        rule = "a file that can be read" if compression is None else f"a whole file compressed with {compression}"
        repair = "Check its permissions and disk."
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

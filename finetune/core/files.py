"""Writes files and folders whole or not at all, and fingerprints what they hold."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from finetune.core.errors import FileError
from finetune.core.exchange import clear_staging, is_present, replace_folder, restore_folder
from finetune.core.places import is_device, name_place, require_place
from finetune.core.settle import apply_umask, settle, sync_folder


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Refuses to write over something that exists, before any work is done.

    Args:
        target: The file or folder to write.
        overwrite: Whether an existing one is replaced.

    Raises:
        FileExistsError: If `target` exists and `overwrite` is false, or a disk is mounted there.
    """
    restore_folder(target)
    place = target.absolute()
    if place.is_mount():
        raise FileExistsError(f"Expected {place} to be replaceable, but a disk is mounted there. Name a folder in it.")
    if place.exists() and not overwrite and not is_device(place):
        raise FileExistsError(f"Expected {place} not to exist, but it does. Remove it or pass --overwrite.")


@contextmanager
def write_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` when the block ends without an error.

    An error removes that folder and leaves `target` as it was, so a folder that exists is always complete. See
    `replace_folder` for how one takes the place of another.

    Args:
        target: The finished folder.
        overwrite: Whether an existing folder is replaced.

    Raises:
        FileExistsError: If `target` exists and `overwrite` is false.
    """
    target = target.absolute()
    refuse_existing(target, overwrite)
    require_place(target)
    with name_place(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            folder = staging / target.name
            folder.mkdir()
            yield folder
            settle(folder)
            if overwrite and is_present(target):
                replace_folder(folder, target)
            else:
                folder.rename(target)  # refused by the system where a filled folder appeared meanwhile
            sync_folder(target.parent)
        finally:
            clear_staging(staging)


def require_own(folder: Path, is_own: Callable[[set[str]], bool]) -> None:
    """Refuses to let a command replace a folder that it did not write.

    Args:
        folder: Where the command is about to write.
        is_own: Whether the command writes a folder with these names in it.

    Raises:
        FileExistsError: If `folder` is neither absent, nor empty, nor the command's own.

    Example:
        >>> require_own(Path("data/absent"), lambda names: names == {"images", "table.csv"})
    """
    restore_folder(folder)
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    if names is None or (names and not is_own(names)):
        raise FileExistsError(
            f"Expected {folder} to be absent, empty or written by this command, but it holds something else. "
            "Name another folder with --output."
        )


def is_staged(name: str) -> bool:
    """Whether a file or folder is named as what is written here before it takes its place.

    Example:
        >>> is_staged(".recipe.yaml.a1b2c3d4"), is_staged("recipe.yaml")
        (True, False)
    """
    return re.fullmatch(r"\..+\.[a-z0-9_]{8}", name) is not None


def remove_staged(folder: Path) -> None:
    """Removes what processes that were killed had begun to write in a folder, and puts back what they had moved away.

    Args:
        folder: The folder, with all that lies below. Nobody else may be writing in it.
    """
    for path in [path for path in folder.rglob(".*") if is_staged(path.name)]:
        clear_staging(path)


def write_text(target: Path, text: str) -> None:
    r"""Writes UTF-8 text; at any moment `target` holds either its former content or all of `text`.

    A byte of a file's name that is not UTF-8 is written as `\udce9`, which is its escape in JSON too.
    """
    write_bytes(target, text.encode(errors="backslashreplace"))


def write_bytes(target: Path, content: bytes) -> None:
    """Writes bytes; at any moment `target` holds either its former content or all of `content`.

    A device or a pipe, such as `/dev/stdout`, is written to.
    """
    with write_file(target) as file:
        file.write(content)


@contextmanager
def write_file(target: Path) -> Iterator[BinaryIO]:
    """Yields an empty file that becomes `target` when the block ends without an error.

    An error leaves `target` as it was. A device or a pipe, such as `/dev/stdout`, is written to.

    Args:
        target: The finished file.

    Raises:
        OSError: If it cannot be written. The error names `target`, or the folder that it cannot be written to.
    """
    if is_device(target):
        with name_place(target), target.open("wb") as file:
            yield file
        return
    require_place(target)
    with name_place(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        staging = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            apply_umask(staging)
            staging.replace(target)
        except BaseException:
            clear_staging(staging)
            raise
        sync_folder(target.parent)


def write_json(target: Path, value: Any) -> None:
    """Writes `value` as indented JSON and refuses NaN, which is not JSON."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_text(path: Path) -> str:
    """Reads a UTF-8 file of a user's, with or without byte order mark.

    Args:
        path: The file.

    Raises:
        FileError: If it is in another encoding.
    """
    content = path.read_bytes()
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        kind = "This is UTF-16: save" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "Save"
        found = f"byte 0x{content[error.start]:02x} in line {content[: error.start].count(10) + 1}"
        raise FileError(f"Expected {path} to be UTF-8 text, but got {found}. {kind} it as UTF-8.") from error


def fingerprint_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_tensors(tensors: Iterable[tuple[str, str, Sequence[int], bytes | bytearray | memoryview]]) -> str:
    """Returns the SHA-256 of the names, data types, shapes and bytes of tensors, sorted by name.

    Args:
        tensors: Name, safetensors' name of the data type (`F32`), shape, and contiguous bytes of each tensor.

    Example:
        >>> fingerprint_tensors([("temperature", "F32", (), bytes(4))])[:8]
        'dd3a22e2'
    """
    digest = hashlib.sha256()
    for name, dtype, shape, content in sorted(tensors, key=itemgetter(0)):
        digest.update(f"{name} {dtype} {list(shape)}\n".encode())
        digest.update(content)
    return digest.hexdigest()

"""Writes files and folders whole or not at all, and fingerprints what they hold."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from finetune.core.errors import FileError
from finetune.core.places import is_device, name_place, require_place


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _apply_umask(path: Path) -> None:
    """Gives a file or folder the mode that open() or mkdir() would have given it."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Refuses to write over something that exists, before any work is done.

    Args:
        target: The file or folder to write.
        overwrite: Whether an existing one is replaced.

    Raises:
        FileExistsError: If `target` exists and `overwrite` is false.
    """
    if target.exists() and not overwrite and not is_device(target):
        raise FileExistsError(f"Expected {target.absolute()} not to exist, but it does. Remove it or pass --overwrite.")


@contextmanager
def write_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` when the block ends without an error.

    An error removes that folder and leaves `target` as it was, so a folder that exists is always complete.

    Args:
        target: The finished folder.
        overwrite: Whether an existing folder is replaced.

    Raises:
        FileExistsError: If `target` exists and `overwrite` is false.
    """
    target = target.absolute()
    refuse_existing(target, overwrite)
    require_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with name_place(target, staging):
            yield staging
            for path in (*sorted(staging.rglob("*")), staging):
                _apply_umask(path)
                _sync(path)
        _replace_folder(staging, target, overwrite)
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace_folder(staging: Path, target: Path, overwrite: bool) -> None:
    """Renames a finished folder to its place; what stood there goes last, or comes back."""
    if not (overwrite and target.exists()):
        staging.rename(target)  # refused by the system where a filled folder appeared meanwhile
        return
    former = Path(tempfile.mkdtemp(prefix=f".{target.name}.former.", dir=target.parent))
    target.rename(former / target.name)
    try:
        staging.rename(target)
    except OSError:
        (former / target.name).rename(target)
        former.rmdir()
        raise
    shutil.rmtree(former)


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


def write_text(target: Path, text: str) -> None:
    r"""Writes UTF-8 text; at any moment `target` holds either its former content or all of `text`.

    A byte of a file's name that is not UTF-8 is written as `\udce9`, which is its escape in JSON too.
    """
    write_bytes(target, text.encode(errors="backslashreplace"))


def write_bytes(target: Path, content: bytes) -> None:
    """Writes bytes; at any moment `target` holds either its former content or all of `content`.

    A device or a pipe, such as `/dev/stdout`, is written to.
    """
    if is_device(target):
        with name_place(target), target.open("wb") as file:
            file.write(content)
        return
    require_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    staging = Path(name)
    try:
        with name_place(target, staging):
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _apply_umask(staging)
            staging.replace(target)
        _sync(target.parent)
    finally:
        staging.unlink(missing_ok=True)


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

"""The places that are written to: refused early where nothing can be written, and named where the system names none."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from finetune.core.errors import FileError

AnyPath: TypeAlias = str | os.PathLike[str]
"""A path as a user hands it over: a text, a `Path`, or what names one, such as a run's folder."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file cannot grow: a full disk, a quota, a limit on sizes."""

_OF_DISKS = (*NO_ROOM, errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES, errno.EPERM)
"""What it says, without a path, of a file that it has opened before."""


def is_there(path: Path) -> bool:
    """Whether something is at a path; false too where the system cannot look there, as its name is too long.

    Args:
        path: Any path.
    """
    return os.path.exists(path)  # noqa: PTH110 (raises nothing)


def is_at(file: IO[bytes], place: Path) -> bool:
    """Whether an open file is the one at a place still: another process may have removed or replaced it.

    Args:
        file: The file.
        place: Its path.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


def is_device(target: Path) -> bool:
    """Whether a path is that of a terminal, a pipe or another thing that is written to but never replaced.

    Args:
        target: Any path.
    """
    return is_there(target) and not target.is_file() and not target.is_dir()


def require_place(target: Path) -> None:
    """Refuses a place where nothing can be written, before any work is done.

    Args:
        target: The file or folder to write. Folders that it lies in need not exist yet.

    Raises:
        OSError: If a file stands where a folder should be, or the folder takes no files.
    """
    if is_device(target):
        return
    folder = next(path for path in target.absolute().parents if is_there(path))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=f".{target.name}."):
            pass
    except OSError as error:  # names the temporary file, and of /proc says that it does not exist
        code = errno.EACCES if error.errno == errno.ENOENT else error.errno
        raise OSError(code, error.strerror, str(folder)) from error


def require_utf8(target: Path) -> None:
    """Refuses a folder for models whose path is not UTF-8, which the libraries that write there cannot name.

    Args:
        target: The folder to write.

    Raises:
        FileError: If it is not.
    """
    if show(target.absolute()) != str(target.absolute()):
        raise FileError(f"Expected the path of models to be UTF-8, but got {str(target)!r}. Choose another name.")


def expand_home(word: str) -> str:
    """Writes out `~/` as a shell does, which leaves it alone in quotes and after `--key=`.

    Args:
        word: A path, or an option with its value; any other text is returned as it is.

    Example:
        >>> expand_home("~name"), expand_home("--run.folder=~/runs") == f"--run.folder={Path.home()}/runs"
        ('~name', True)
    """
    option = re.match(r"(--[\w.-]+=)?(?=~/)", word)
    return option[0] + os.path.expanduser(word[option.end() :]) if option else word  # noqa: PTH111 (keeps "//", "/.")


def show(path: str | Path) -> str:
    r"""Returns a path as a text that can be written; a byte that is not UTF-8 becomes `\udce9`.

    Args:
        path: Any path.
    """
    return str(path).encode(errors="backslashreplace").decode()


@contextmanager
def name_place(target: Path, codes: Sequence[int] = _OF_DISKS) -> Iterator[None]:
    """Lets the system's errors name what is written: of a full disk they name nothing, or what is staged beside it.

    Args:
        target: The file or folder that is written.
        codes: The errors without a path that speak of it: where more is done than writing, `NO_ROOM`.

    Raises:
        OSError: As inside; also where a library that could not write says so in another way.
    """
    staged = str(target.absolute().with_name(f".{target.name}."))
    try:
        yield
    except OSError as error:
        inside = isinstance(error.filename, str) and str(Path(error.filename).absolute()).startswith(staged)
        if inside or (error.filename is None and error.errno in codes):
            error.filename = str(target)
        raise
    except Exception as error:
        if code := _find_code(error, codes):
            raise OSError(code, os.strerror(code), str(target)) from error
        raise


def _find_code(error: Exception, codes: Sequence[int]) -> int | None:
    """The number of the system's error that a library could not write for; None where it is another error."""
    if worded := re.search(r"\(os error (\d+)\)$", str(error)):  # safetensors and tokenizers, as Rust words it
        return int(worded[1])
    first = error.__context__  # torch ends its archive where it could not write, which fails in turn
    if isinstance(first, OSError) and first.filename is None and not error.__suppress_context__:
        return first.errno if first.errno in codes else None
    return None

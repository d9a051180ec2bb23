"""How every command ends when something stops it: one line and an exit code, or the traceback of a bug."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, TextIO

from finetune.core.console import say
from finetune.core.errors import CheckpointError, FileError, HubError, ProcessError, RecipeError, TableError
from finetune.core.places import NO_ROOM, is_there

FAULT, INTERRUPTED, TERMINATED, NEARLY_OVER, CLOSED = 2, 130, 143, 128 + signal.SIGUSR1, 141
"""Exit codes, the last four as a shell counts signals: 128 and the number of SIGINT, SIGTERM, SIGUSR1, SIGPIPE."""

_STOPS = {INTERRUPTED: "Ctrl-C", TERMINATED: "SIGTERM", NEARLY_OVER: "SIGUSR1"}
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


def run_command(command: Callable[[], int | None]) -> int:
    """Runs a command, and turns what stops it into one line on the standard error stream.

    Args:
        command: What to run. It returns an exit code, or None for 0.

    Returns:
        Exit code: the command's own; 2 where the input or the system is at fault; 130 after Ctrl-C, 143 after SIGTERM,
        138 after SIGUSR1, 141 where nobody reads the output any more.

    Raises:
        Exception: If it is none of these but a fault of the program.
    """
    noted: list[int] = []
    try:
        with _noting_signals(noted):
            code = command() or 0
            sys.stdout.flush()  # a full disk shows here, where it still can be told
    except BaseException as stop:
        _drop_output()
        if asked := _find_stop(stop, noted):
            return _refuse(f"stopped by {_STOPS[asked]}.", stop, asked)
        if not isinstance(stop, Exception):
            raise
        return _refuse_error(stop)
    return code


def describe(error: Exception) -> str | None:
    """Says what the user can do about an error.

    Args:
        error: What was raised.

    Returns:
        What was expected, what was got, and the repair; None if the program is at fault.
    """
    if isinstance(error, TableError | RecipeError | CheckpointError | HubError | FileError | ProcessError):
        return str(error)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"Expected names of files and folders to be UTF-8, but got {error.object!r}. Rename it."
    if not isinstance(error, OSError):
        return None
    if error.errno is None:  # not the system's
        return str(error) if isinstance(error, FileExistsError) else None
    place = error.filename
    if error.errno in NO_ROOM:  # of a copy the target counts; of what is written the output alone has no name
        place = error.filename2 or place or "the output"
    if not isinstance(place, str | bytes | os.PathLike):  # of a socket, a pipe, or a descriptor
        return None
    return _describe_place(Path(os.fsdecode(place)), error.errno, error.strerror or "")


def _describe_place(path: Path, code: int, said: str) -> str:
    """Words the system's error, which names a path and no repair."""
    if code in NO_ROOM:
        return f"Expected room to write {path}, but got: {said}. Free some space there, or write to another disk."
    if code in _NO_ACCESS:
        return f"Expected {path} to be accessible, but got: {said}. Change its permissions, or name another place."
    if code == errno.EISDIR:
        return f"Expected {path} to be a file, but it is a folder. Name a file in it."
    file = next((place for place in (path, *path.parents) if is_there(place) and not place.is_dir()), None)
    if code in (errno.ENOTDIR, errno.EEXIST) and file:
        return f"Expected {file} to be a folder, but it is a file. Name another place."
    if code == errno.ENOENT and not is_there(path.parent):
        return f"Expected {path} to lie in a folder that exists, but {path.parent} does not. Make it, or correct it."
    if code == errno.ENOENT:
        return f"Expected {path} to exist, but it does not. Correct the path."
    return f"Expected {path} to be a place that can be used, but got: {said}. Correct the path, or check its disk."


@contextmanager
def _noting_signals(noted: list[int]) -> Iterator[None]:
    """Notes the exit code of each Ctrl-C and SIGTERM, and raises it; some libraries turn that into another error."""

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(128 + number)
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        raise SystemExit(128 + number)

    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    if current_thread() is not main_thread():
        ours = []
    for number in ours:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, usual[number])


def _find_stop(stop: BaseException, noted: Sequence[int]) -> int | None:
    """The exit code of a stop that was asked for; None of anything else."""
    if noted or isinstance(stop, KeyboardInterrupt):
        return noted[0] if noted else INTERRUPTED
    if not isinstance(stop, SystemExit):
        return None
    code = TERMINATED if stop.code is None else stop.code  # Lightning's SIGTERMException has none
    return code if isinstance(code, int) and code in _STOPS else None


def _refuse_error(error: Exception) -> int:
    """Refuses what the user can mend, and raises what is a fault of the program."""
    if isinstance(error, BrokenPipeError) and error.filename is None:
        return CLOSED
    line = describe(error)
    if line is None:
        raise error
    return _refuse(line, error, FAULT)


def _refuse(line: str, error: BaseException, code: int) -> int:
    """Prints what stopped a command, and the notes on how to go on."""
    exec("")  # clears Python's mark of an interrupt within an `exec`, by which the process would die of the signal
    say(" ".join([f"error: {line}", *getattr(error, "__notes__", ())]), file=sys.stderr)
    return code


def drop(stream: TextIO) -> None:
    """Drops what is printed from now on: nobody reads it any more.

    Args:
        stream: Standard output or standard error.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _drop_output() -> None:
    """Drops what was printed but nobody reads any more; Python would try to write it at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            drop(stream)

"""Every system call of a write fails in turn, or ends the process: a reader finds the former content or all of the new.

The loops are SQLite's (https://www.sqlite.org/testing.html#i_o_error_testing): count the calls of a write, then repeat
it once for each of them.
"""

import ctypes
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from finetune.core import exchange
from finetune.core.door import describe
from finetune.core.exchange import restore_folder
from finetune.core.files import is_staged, remove_staged, write_bytes, write_file, write_folder, write_json, write_text

CALLS = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "chmod", "fsync", "link", "scandir")
CODES = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EPERM)
UNSUPPORTED = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)
OLD, NEW = {"a": b"former", "b": b"former"}, {"a": b"plain", "deep/b": b"new"}
MEMORY = Path("/dev/shm")
KILLED = 9


class System:
    """The calls by which a writer reaches the system, on their way to it.

    Args:
        fail: What is done in place of a call, given its number and what it does; None lets it through.
    """

    def __init__(self, fail: Callable[[int, str], int | None] = lambda *_: None) -> None:
        self._fail = fail
        self.calls: list[str] = []

    def check(self, call: str) -> int | None:
        self.calls.append(call)
        return self._fail(len(self.calls) - 1, call)

    def through(self, name: str, call: Callable) -> Callable:
        def wrapped(place, *words, **options):
            is_folder = name in ("fsync", "open") and isinstance(place, int | str | Path) and _is_folder(place)
            if code := self.check(f"{name} folder" if is_folder else name):
                raise OSError(code, os.strerror(code), *([] if isinstance(place, int) else [os.fspath(place)]))
            return call(place, *words, **options)

        return wrapped

    def exchange(self, *words) -> int:
        if code := self.check("exchange"):
            ctypes.set_errno(code)
            return -1
        return RENAMEAT2(*words)

    def fdopen(self, descriptor: int, mode: str) -> io.BufferedWriter:
        assert mode == "wb"
        system = self

        class Raw(io.FileIO):
            def write(self, content) -> int:
                if code := system.check("write"):
                    raise OSError(code, os.strerror(code))
                return super().write(content)

        return io.BufferedWriter(Raw(descriptor, "wb"))

    @contextmanager
    def watching(self, share: bool) -> Iterator[None]:
        """Watches this process; on a share names are not exchanged, and no file is without a name."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exchange, "_renameat2", None if share else self.exchange)
            for name in CALLS:
                patch.setattr(os, name, self.through(name, getattr(os, name)))
            if share:
                patch.setattr(os, "open", refusing_unnamed(os.open))
            patch.setattr(os, "fdopen", self.fdopen)
            yield


RENAMEAT2 = exchange._renameat2


def refusing_unnamed(call: Callable) -> Callable:
    def opening(place, flags, *words, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), place)
        return call(place, flags, *words, **options)

    return opening


def _is_folder(place: int | str | Path) -> bool:
    try:
        return stat.S_ISDIR(os.stat(place).st_mode)  # noqa: PTH116 (a descriptor, too)
    except OSError:
        return False


def write_all(target: Path, overwrite: bool) -> None:
    with write_folder(target, overwrite) as folder:
        (folder / "a").write_bytes(NEW["a"])
        write_bytes(folder / "deep" / "b", NEW["deep/b"])


def stream(target: Path, content: bytes) -> None:
    with write_file(target) as file:
        for start in range(0, len(content), 1000):
            file.write(content[start : start + 1000])


class Writer(NamedTuple):
    """One way to write.

    Attributes:
        write: Writes the new content.
        new: What is found afterwards.
        old: What was there before: None for nothing.
        share: Whether it is written to a network share.
    """

    write: Callable[[Path], None]
    new: object
    old: object
    share: bool = False

    def prepare(self, place: Path) -> Path:
        place.mkdir()
        target = place / "written"
        if isinstance(self.old, bytes):
            target.write_bytes(self.old)
        elif self.old is not None:
            for name, content in self.old.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(content)
        return target


WRITERS = {
    "new bytes": Writer(lambda target: write_bytes(target, b"new"), b"new", None),
    "bytes": Writer(lambda target: write_bytes(target, b"new"), b"new", b"former"),
    "text": Writer(lambda target: write_text(target, "new"), b"new", b"former"),
    "json": Writer(lambda target: write_json(target, 1), b"1\n", b"former"),
    "stream": Writer(lambda target: stream(target, b"new" * 10_000), b"new" * 10_000, b"former"),
    "new folder": Writer(lambda target: write_all(target, overwrite=False), NEW, None),
    "folder": Writer(lambda target: write_all(target, overwrite=True), NEW, OLD),
    "bytes on a share": Writer(lambda target: write_bytes(target, b"new"), b"new", b"former", share=True),
    "folder on a share": Writer(lambda target: write_all(target, overwrite=True), NEW, OLD, share=True),
}
each_writer = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """A folder in memory where there is one: the loops sync thousands of times."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


def read(target: Path) -> object:
    if target.is_dir():
        files = [path for path in target.rglob("*") if path.is_file()]
        return {path.relative_to(target).as_posix(): path.read_bytes() for path in files}
    return target.read_bytes() if target.exists() else None


def count_calls(writer: Writer, place: Path) -> list[str]:
    """The calls of a write that nothing disturbs."""
    target, system = writer.prepare(place), System()
    with system.watching(writer.share):
        writer.write(target)
    assert read(target) == writer.new
    assert [path.name for path in place.iterdir()] == [target.name]
    return system.calls


def names_place(error: OSError, target: Path) -> bool:
    return Path(os.fsdecode(error.filename)) in (target, target.parent) and str(target.parent) in describe(error)


@each_writer
def test_the_calls_of_a_write_are_reached(writer, folder):
    calls = count_calls(writer, folder / "counted")
    expected = {"open", "write", "fsync", "chmod", "replace", "fsync folder"}
    if isinstance(writer.new, dict):
        expected |= {"mkdir", "rename" if writer.old is None or writer.share else "exchange", "rmdir"}
    assert expected <= set(calls)
    assert calls.index("fsync") < calls.index("replace")
    if isinstance(writer.new, dict):
        assert calls.count("fsync") == 3  # b twice: as a file by itself, and with all that is in the folder
        settled = len(calls) - calls[::-1].index("fsync")
        assert settled < max(at for at, call in enumerate(calls) if call in ("rename", "exchange"))


@each_writer
@pytest.mark.parametrize("lasting", [False, True], ids=["one fails", "all fail from one on"])
def test_a_call_that_fails_leaves_the_former_or_the_new_content(writer, lasting, folder):
    calls = count_calls(writer, folder / "counted")
    placed = max(at for at, call in enumerate(calls) if call in ("replace", "rename", "exchange"))
    for number, call in enumerate(calls):
        for code in CODES:
            case = f"{number} {call} {errno.errorcode[code]}"
            place = folder / case
            target = writer.prepare(place)
            system = System(
                lambda at, _, number=number, code=code: code if at == number or (lasting and at > number) else None
            )
            error = None
            with system.watching(writer.share):
                try:
                    writer.write(target)
                except OSError as raised:
                    error = raised
            restore_folder(target)
            left = [path.name for path in place.iterdir() if path != target]
            assert all(map(is_staged, left)), case
            if error is None:
                assert read(target) == writer.new, case
                assert call not in ("write", "fsync", "replace"), case
                assert call != "scandir" or not calls.index("fsync") < number < placed, case
            else:
                assert read(target) in (writer.old, writer.new), case
                assert names_place(error, target), (case, error)
                assert lasting or call == "unlink" or left == [], case


@pytest.mark.parametrize(
    "writer",
    [
        pytest.param(writer, id=name, marks=[pytest.mark.slow] if name in ("text", "json", "new bytes") else [])
        for name, writer in WRITERS.items()
    ],
)
def test_a_process_that_ends_at_a_call_leaves_the_former_or_the_new_content(writer, folder):
    def end(at: int, number: int) -> None:
        if at == number:
            os._exit(KILLED)

    calls = count_calls(writer, folder / "counted")
    for number, call in enumerate(calls):
        case = f"{number} {call}"
        place = folder / case
        target = writer.prepare(place)
        child = os.fork()
        if child == 0:
            with System(lambda at, _, number=number: end(at, number)).watching(writer.share):
                writer.write(target)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED, case
        assert all(is_staged(path.name) for path in place.iterdir() if path != target), case
        if not writer.share:
            assert read(target) in (writer.old, writer.new), case
        restore_folder(target)
        assert read(target) in (writer.old, writer.new), case
        remove_staged(place)
        assert read(target) in (writer.old, writer.new), case
        assert [path.name for path in place.iterdir() if path != target] == [], case


@each_writer
@pytest.mark.parametrize("lacking", ["chmod", "fsync folder", "exchange"])
def test_what_a_share_lacks_is_done_without(writer, lacking, folder):
    for code in UNSUPPORTED[2:] if lacking == "exchange" else UNSUPPORTED:
        target = writer.prepare(folder / errno.errorcode[code])
        system = System(lambda _, call, code=code: code if call == lacking else None)
        with system.watching(writer.share):
            writer.write(target)
        assert read(target) == writer.new
        assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_folder_that_was_moved_away_comes_back_when_it_is_written_again(folder):
    def end_at_second_rename(number: int, call: str) -> None:
        if call == "rename" and "rename" in system.calls[:number]:
            os._exit(KILLED)

    writer = WRITERS["folder on a share"]
    target, system = writer.prepare(folder / "place"), System(end_at_second_rename)
    child = os.fork()
    if child == 0:
        with system.watching(share=True):
            writer.write(target)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    assert not target.exists()
    with pytest.raises(FileExistsError, match="Remove it or pass --overwrite"):
        write_all(target, overwrite=False)
    assert read(target) == OLD
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_folder_that_others_are_writing_is_left_to_them(folder):
    target = folder / "written"
    with write_folder(target) as staging:
        restore_folder(target)
        write_text(staging / "a", "new")
    assert read(target) == {"a": b"new"}


@pytest.mark.parametrize("share", [False, True])
def test_a_link_is_replaced_and_what_it_names_stays(folder, share):
    write_all(folder / "named", overwrite=False)
    (folder / "link").symlink_to("named")
    with System().watching(share), write_folder(folder / "link", overwrite=True):
        pass
    assert not (folder / "link").is_symlink()
    assert read(folder / "link") == {}
    assert read(folder / "named") == NEW
    assert len(list(folder.iterdir())) == 2

"""What stops a command leaves it as one line and an exit code; a fault of the program keeps its traceback."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from finetune.core.door import run_command
from finetune.core.errors import CheckpointError, FileError, RecipeError, TableError
from finetune.core.files import read_text, write_bytes, write_file, write_folder, write_json, write_text
from finetune.core.places import require_place, require_utf8

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@contextmanager
def files_of_at_most(size: int):
    """The system lets no file grow further, as where a disk is full."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.fixture
def told(capsys):
    """Runs a command that has to be refused, and returns its one line."""

    def run(command) -> str:
        assert run_command(command) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.count("\n") == 1
        return found.err.removesuffix("\n")

    return run


@pytest.mark.parametrize("kind", [TableError, RecipeError, CheckpointError, FileError, FileExistsError])
def test_an_error_of_ours_is_its_own_line(told, kind):
    def command():
        raise kind("Expected a, but got b. Repair c.")

    assert told(command) == "error: Expected a, but got b. Repair c."


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (
            lambda folder: (folder / "no" / "file").write_text(""),
            "{0}/no/file to lie in a folder that exists, but {0}/no",
        ),
        (lambda folder: (folder / "absent").read_text(), "{0}/absent to exist, but it does not. Correct"),
        (
            lambda folder: (folder / "file" / "x").write_text(""),
            "{0}/file to be a folder, but it is a file. Name another",
        ),
        (
            lambda folder: (folder / "file" / "x" / "y").mkdir(parents=True),
            "{0}/file to be a folder, but it is a file.",
        ),
        (lambda folder: (folder / "file").mkdir(), "{0}/file to be a folder, but it is a file. Name another"),
        (lambda folder: folder.read_text(), "{0} to be a file, but it is a folder. Name a file in it."),
        (
            lambda folder: (folder / ("x" * 300)).write_text(""),
            "to be a place that can be used, but got: File name too",
        ),
        (
            lambda folder: write_text(folder / "file" / "x", ""),
            "{0}/file to be a folder, but it is a file. Name another",
        ),
        (lambda folder: require_place(folder / "file" / "x" / "y"), "{0}/file to be a folder, but it is a file. Name"),
        (lambda _: require_place(Path("/proc/x/y")), "/proc to be accessible, but got: "),
        (
            lambda _: write_text(Path("/dev/full"), "x"),
            "room to write /dev/full, but got: No space left on device. Free",
        ),
        (
            lambda _: require_utf8(Path(NOT_UTF8)),
            r"the path of models to be UTF-8, but got 'caf\udce9'. Choose another",
        ),
        (lambda _: Tokenizer(WordLevel({"a": 0})).save(NOT_UTF8), r"to be UTF-8, but got 'caf\udce9'. Rename it."),
    ],
)
def test_an_error_of_the_system_names_path_and_repair(told, tmp_path, act, line):
    (tmp_path / "file").write_text("mine")
    found = told(lambda: act(tmp_path))
    assert found.startswith("error: Expected ")
    assert line.format(tmp_path) in found
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_is_refused(told, tmp_path):
    tmp_path.chmod(0o500)
    found = told(lambda: require_place(tmp_path / "x"))
    assert f"{tmp_path} to be accessible, but got: Permission denied. Change its permissions, or name" in found


@pytest.mark.parametrize(
    "fault",
    [
        lambda: {}["key"],
        lambda: int("x"),
        lambda: os.write(-1, b""),
        lambda: os.fsync(os.pipe()[0]),
        lambda: b"\xff".decode(),
        lambda: "\xe9".encode("ascii"),
    ],
)
def test_a_fault_of_the_program_stays_a_traceback(fault, capsys):
    with pytest.raises((KeyError, ValueError, OSError)) as found:
        run_command(fault)
    assert found.traceback[-1].path == Path(__file__)
    assert capsys.readouterr() == ("", "")


def write_table(folder: Path) -> None:
    (folder / "table.csv").write_text("x" * 1000)


def write_weights(folder: Path) -> None:
    save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")


def write_tokens(folder: Path) -> None:
    Tokenizer(WordLevel({f"word {number}": number for number in range(100)})).save(str(folder / "tokenizer.json"))


def write_training(folder: Path) -> None:
    with write_file(folder / "last.ckpt") as file:
        torch.save({"weight": torch.zeros(1000)}, file)


@pytest.mark.parametrize("write", [write_table, write_weights, write_tokens, write_training])
def test_a_full_disk_names_the_folder_that_was_written_whatever_library_wrote(told, tmp_path, write):
    target = tmp_path / "written"
    target.mkdir()
    (target / "former").write_text("kept")

    def command():
        with files_of_at_most(100), write_folder(target, overwrite=True) as staging:
            write(staging)

    line = f"error: Expected room to write {target}, but got: File too large. Free some space there, or write to "
    assert told(command).startswith(line)
    assert [path.name for path in tmp_path.iterdir()] == ["written"]
    assert [path.name for path in target.iterdir()] == ["former"]


def test_a_full_disk_leaves_a_file_as_it_was(told, tmp_path):
    (tmp_path / "file").write_text("former")

    def command():
        with files_of_at_most(100):
            write_bytes(tmp_path / "file", bytes(1000))

    assert f"room to write {tmp_path / 'file'}, but got: File too large" in told(command)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "former"


def test_a_device_or_a_pipe_is_written_to_and_never_replaced(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join(10)
    assert found == ['{\n  "a": 1\n}\n']
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_text(Path("/dev/null"), "x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_ctrl_c_is_one_line_with_what_to_do(capsys):
    def command():
        stop = KeyboardInterrupt()
        stop.add_note("Do what is left of it: finetune resume runs/a")
        raise stop

    assert run_command(command) == 130
    assert capsys.readouterr().err == "error: stopped by Ctrl-C. Do what is left of it: finetune resume runs/a\n"


def test_what_a_library_makes_of_a_signal_is_told_as_that_signal(capsys):
    def interrupted():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    def replaced():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("no shape") from None  # as safetensors does

    def terminated():
        raise SystemExit  # its SIGTERMException

    assert run_command(interrupted) == 130
    assert run_command(replaced) == 130
    assert capsys.readouterr().err == "error: stopped by Ctrl-C.\n" * 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run_command(terminated) == 143
    assert capsys.readouterr().err == "error: stopped by SIGTERM.\n"


def test_sigterm_clears_away_what_was_begun(tmp_path, capsys):
    def command():
        with write_folder(tmp_path / "new"):
            signal.raise_signal(signal.SIGTERM)

    assert run_command(command) == 143
    assert capsys.readouterr().err == "error: stopped by SIGTERM.\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("code", "name"), [(130, "Ctrl-C"), (143, "SIGTERM"), (138, "SIGUSR1")])
def test_a_training_that_was_asked_to_end_is_told_by_its_signal(capsys, code, name):
    def command():
        raise SystemExit(code)

    assert run_command(command) == code
    assert capsys.readouterr().err == f"error: stopped by {name}.\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("shell", "code", "line"),
    [
        ('"$0" -m finetune recipes show quickstart | true; exit ${PIPESTATUS[0]}', 141, ""),
        (
            '"$0" -m finetune recipes show quickstart > /dev/full',
            2,
            "error: Expected room to write the output, but got: No space left on device. Free some space there, or "
            "write to another disk.\n",
        ),
        ('"$0" -m finetune --help > /dev/full', 0, ""),
    ],
)
def test_output_that_nobody_takes_ends_a_command_without_a_traceback(shell, code, line, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    words = ["bash", "-c", shell, sys.executable]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, line)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "but got byte 0xff in line 1. This is UTF-16: save it as UTF-8."),
        ("latin-1", "but got byte 0xe9 in line 2. Save it as UTF-8."),
        ("cp1252", "but got byte 0xe9 in line 2. Save it as UTF-8."),
    ],
)
def test_text_in_another_encoding_is_refused_with_its_place(tmp_path, encoding, message):
    path = tmp_path / "recipe.yaml"
    path.write_text("# one\n# café\n", encoding=encoding)
    with pytest.raises(FileError, match=f"Expected {path} to be UTF-8 text, {message}"):
        read_text(path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("# café\n", encoding="utf-8-sig")
    assert read_text(path) == "# café\n"


def test_names_that_are_not_utf8_come_back_from_json_as_they_were(tmp_path):
    write_json(tmp_path / "a.json", {"image": NOT_UTF8})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert '"caf\\udce9"' in text
    assert os.fsencode(json.loads(text)["image"]) == b"caf\xe9"


def test_every_errno_without_a_path_stays_a_traceback_but_a_full_disk(told):
    with pytest.raises(TimeoutError):
        run_command(lambda: (_ for _ in ()).throw(OSError(errno.ETIMEDOUT, "timed out")))
    assert "room to write the output" in told(lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))

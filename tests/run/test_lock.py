"""One process at a time works on a run, and a lock dies with its process, whose workers may live on."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from finetune.core.errors import RecipeError
from finetune.run.lock import LOCK, hold

WORK = "print('held', flush=True); input()"
FORK = "import os, time; (input() if os.fork() else (print('held', flush=True), time.sleep(60)))"
NO_LOCKS = f"""
import fcntl
def flock(*_):
    raise OSError({errno.ENOSYS}, 'none')
fcntl.flock = flock
"""
HOLD = """
from pathlib import Path
from finetune.run.lock import hold
with hold(Path({run!r})):
    {work}
"""


@contextmanager
def at_work(run: Path, work: str = WORK, before: str = "") -> Iterator[subprocess.Popen]:
    """A process that holds a run, in a group of its own."""
    words = [sys.executable, "-c", before + HOLD.format(run=str(run), work=work)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def lacking(code: int):
    def flock(*_):
        raise OSError(code, "none")

    return flock


def test_the_second_process_is_refused_and_the_first_is_named(tmp_path):
    run = tmp_path / "runs" / "a"
    with at_work(run) as other:
        owner = f"process {other.pid} on {socket.gethostname()}"
        message = f"no other process to be at work on {run}, but there is one: {owner}. Wait until it ends, or stop it."
        for _ in range(2):
            with pytest.raises(RecipeError, match=re.escape(message)), hold(run):
                pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with hold(run):
            assert (run / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert (run / LOCK).read_text() == ""


def test_a_run_is_refused_to_the_process_that_holds_it_and_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), hold(tmp_path):
        with pytest.raises(RecipeError, match=f"there is one: process {os.getpid()} on"), hold(tmp_path):
            pass
        raise KeyError
    with hold(tmp_path):
        pass


def test_a_worker_that_outlives_its_process_does_not_keep_the_lock(tmp_path):
    with at_work(tmp_path, FORK) as other:
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert os.killpg(other.pid, 0) is None  # the worker lives
        with hold(tmp_path):
            pass


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_worker_that_ends_first_leaves_the_lock(tmp_path, monkeypatch, has_locks):
    if not has_locks:
        monkeypatch.setattr("fcntl.flock", lacking(errno.ENOLCK))
    held = hold(tmp_path)
    with held:
        child = os.fork()
        if child == 0:
            try:
                held.__exit__(None, None, None)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RecipeError, match="no other process to be at work"), hold(tmp_path):
            pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_has_the_file_itself(tmp_path, monkeypatch, code):
    monkeypatch.setattr("fcntl.flock", lacking(code))
    with hold(tmp_path):
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(RecipeError, match=f"work on {tmp_path}, but {tmp_path}/{LOCK} says that {owner} is"),
            hold(tmp_path),
        ):
            pass
        assert (tmp_path / LOCK).read_text() == owner
    assert not (tmp_path / LOCK).exists()
    with hold(tmp_path):
        pass


def test_on_a_disk_without_locks_a_killed_process_is_named_and_its_file_is_to_be_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lacking(errno.ENOSYS))
    with at_work(tmp_path, before=NO_LOCKS) as other:
        other.kill()
        other.wait()
        message = (
            f"but {tmp_path}/{LOCK} says that process {other.pid} on {socket.gethostname()} is. This disk has no "
            "locks, so the file stays where a process is killed: remove it if that one no longer runs."
        )
        with pytest.raises(RecipeError, match=re.escape(message)), hold(tmp_path):
            pass
        (tmp_path / LOCK).unlink()
        with hold(tmp_path):
            pass


def test_a_lock_that_fails_names_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lacking(errno.EIO))
    with pytest.raises(OSError, match="none") as found, hold(tmp_path):
        pass
    assert found.value.filename == str(tmp_path / LOCK)

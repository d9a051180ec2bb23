"""A claim is one process's at a time, ends with it, and expires where a disk has no locks."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from finetune.inference import claims
from finetune.inference.claims import EXPIRES, claim

HOLD = """
from pathlib import Path
from finetune.inference.claims import claim
with claim(Path({place!r})) as held:
    print("held" if held else "not held", flush=True)
    input()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the claim."""
    words = [sys.executable, "-c", HOLD.format(place=str(tmp_path / "a.claim"))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_claim_is_one_processes_until_it_ends(other, tmp_path):
    with claim(tmp_path / "a.claim") as held:
        assert held is None
    with claim(tmp_path / "b.claim") as held:
        assert held is not None
    other.communicate("\n")
    with claim(tmp_path / "a.claim") as held:
        assert held is not None
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_lets_go(other, tmp_path):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "a.claim").exists()
    with claim(tmp_path / "a.claim") as held:
        assert held is not None
    assert list(tmp_path.iterdir()) == []


def test_an_error_lets_go(tmp_path):
    with pytest.raises(KeyError), claim(tmp_path / "a.claim"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_claim_in_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent/a\.claim"), claim(tmp_path / "absent" / "a.claim"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_where_a_disk_has_no_locks_a_claim_expires(tmp_path, monkeypatch, code):
    """No disk without locks is at hand: the system's answer alone is made up."""

    def flock(*_) -> None:
        raise OSError(code, "none")

    monkeypatch.setattr(claims.fcntl, "flock", flock)
    place = tmp_path / "a.claim"
    with claim(place) as first:
        assert first is not None
        with claim(place) as second:
            assert second is None
        assert place.exists()
        age = place.stat().st_mtime - EXPIRES - 5
        os.utime(place, (age, age))
        with claim(place) as third:
            assert third is not None
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_is_renewed_does_not_expire(tmp_path, monkeypatch):
    place = tmp_path / "a.claim"
    with claim(place) as held:
        os.utime(place, (0, 0))
        held.renew()
        assert place.stat().st_mtime == 0  # not at every batch
        monkeypatch.setattr(held, "_renewed", held._renewed - EXPIRES)
        held.renew()
        assert place.stat().st_mtime > 0

"""What a bar writes: to a file, to a terminal, and to a reader that is gone."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from finetune.core import bar as module
from finetune.core.bar import Bar

WORK = """
import sys, time
from finetune.core import bar as module
module.REDRAWN = module.REPEATED = 0.0
with module.Bar("rows \\x1b[31m", 3, "batches", "images", note=lambda: "loss 0.5") as bar:
    for _ in range(3):
        time.sleep(0.01)
        bar.advance(1, 4)
    bar.write("a line that stays")
print("ended")
"""


def test_in_a_file_each_state_is_a_line(capsys, monkeypatch):
    monkeypatch.setattr(module, "REPEATED", 0.0)
    with Bar("rows", 3, "batches", "images", note=lambda: "loss 0.5") as bar:
        for _ in range(3):
            bar.advance(1, 4)
        bar.write("a line that stays")
    *states, last = capsys.readouterr().err.splitlines()
    assert last == "a line that stays"
    assert len(states) == 3
    for at, state in enumerate(states, start=1):
        assert re.fullmatch(rf"rows: {at} of 3 batches, \d\d:\d\d left, [\d.e+]+ images/s, loss 0\.5", state)


def test_parts_of_a_step_are_counted(capsys, monkeypatch):
    monkeypatch.setattr(module, "REPEATED", 0.0)
    with Bar("part 1 of 1", 1, "parts", "images") as bar:
        for _ in range(3):
            bar.advance(1 / 3, 4)
    done = [line.split(": ")[1].split(" of ")[0] for line in capsys.readouterr().err.splitlines()]
    assert done == ["0.3", "0.7", "1"]


def test_nothing_is_written_of_work_that_is_short_or_not_shown(capsys):
    for shown in (True, False):
        with Bar("rows", 3, shown=shown) as bar:
            for _ in range(3):
                bar.advance(1, 4)
    with Bar("rows", 3, shown=False) as bar:
        bar.show()
        bar.write("a line")
    assert capsys.readouterr() == ("", "")


def test_steps_that_were_taken_before_tell_nothing_of_the_speed():
    bar = Bar("rows", 100, done=90, shown=False)
    assert (bar.seconds_a_step, bar.seconds_left) == (None, None)
    bar._started -= 10.0
    bar.advance(5)
    assert bar.seconds_a_step == pytest.approx(2.0, abs=0.1)
    assert bar.seconds_left == pytest.approx(10.0, abs=0.5)
    bar.advance(50)
    assert bar.seconds_left == 0.0
    assert Bar("rows", None, shown=False).seconds_left is None


def test_a_terminal_has_one_bar_that_is_gone_at_the_end():
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", WORK], stderr=other, stdout=subprocess.PIPE)
    process.wait(timeout=60)
    os.close(other)
    shown = ""
    with os.fdopen(main, "rb", buffering=0) as terminal, suppress(OSError):  # which is the end of a terminal
        while chunk := terminal.read(1 << 16):
            shown += chunk.decode()
    assert "100%" in shown
    assert "3/3 batches" in shown
    assert "\x1b[31m" not in shown
    assert shown.count("\n") == 1
    assert "a line that stays\r\n" in shown
    assert re.search(r"\r +\r$", shown)


def test_a_reader_that_is_gone_ends_nothing():
    done = subprocess.run(
        ["bash", "-c", '{ "$0" -c "$1" 2>&1 >&3 | true; } 3>&1', sys.executable, WORK.replace("0.01", "0.2")],
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"ended\n"
    assert done.stderr == b""

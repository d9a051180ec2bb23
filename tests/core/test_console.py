"""What strangers wrote, as a terminal shows it."""

import pytest

from finetune.core.console import make_harmless, say
from finetune.core.door import run_command
from finetune.core.errors import TableError

DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"
STEERING = {
    "\x1b[2J\x1b[31mred": r"\x1b[2J\x1b[31mred",
    "\x9b31m": r"\x9b31m",
    "a\rb": r"a\rb",
    "a\x08\x7f": r"a\x08\x7f",
    "\x1b]8;;http://x\x07": r"\x1b]8;;http://x\x07",
    "nul\0": r"nul\x00",
    **{
        f"a{sign}b": f"a{ascii(sign)[1:-1]}b"
        for sign in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"
    },
}


@pytest.mark.parametrize("text", STEERING, ids=ascii)
def test_what_steers_is_shown_by_its_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    assert capsys.readouterr().out == f"{STEERING[text]}\n"


@pytest.mark.parametrize("text", ["a cat", "two\nlines", "a\ttab", "\U0001f408", "\u05d7\u05ea\u05d5\u05dc", "\\x1b"])
def test_other_texts_stay(text: str) -> None:
    assert make_harmless(text) == text


def test_errors_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise TableError("\x1b[31m.csv:2: Expected a caption, but got '\u202e'.")

    assert run_command(fail) == 2
    assert capsys.readouterr().err == "error: \\x1b[31m.csv:2: Expected a caption, but got '\\u202e'.\n"

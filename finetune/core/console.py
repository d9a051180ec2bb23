"""Prints texts of strangers: what would steer the terminal, or turn a line around, is shown by its number instead."""

import re
from typing import TextIO

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters save for tabs and line ends, and those that set the direction of writing."""


def say(text: object, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints a text as `print` does, without what a terminal would obey.

    Args:
        text: What to print.
        file: A stream; None for standard output.
        flush: Whether it is to be seen at once.
    """
    print(make_harmless(str(text)), file=file, flush=flush)


def make_harmless(text: str) -> str:
    r"""Writes control characters and marks of direction by their numbers.

    Args:
        text: Any text.

    Example:
        >>> make_harmless("\x1b[31mred \u202egnp.exe")
        '\\x1b[31mred \\u202egnp.exe'
    """
    return _STEERING.sub(lambda sign: ascii(sign[0])[1:-1], text)

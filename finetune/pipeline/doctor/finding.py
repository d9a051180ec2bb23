"""What an examination finds."""

from typing import NamedTuple

GIB = 1 << 30
"""Bytes of a gibibyte."""


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        about: The thing, in a word or two.
        found: What it is.
        repair: What to do about it; empty where nothing is wrong.
        is_fatal: Whether the toolkit cannot work until that is done.
    """

    about: str
    found: str
    repair: str = ""
    is_fatal: bool = False

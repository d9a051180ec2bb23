"""The three things a user can get wrong, each with its own exception; warnings; and the repair of misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

SHOWN = 50  # names; no group of a recipe's keys has more


class TableError(ValueError):
    """The table, or an image it names, is not usable. The message names file, row, column and repair."""


class RecipeError(ValueError):
    """A recipe key or value is not usable. The message names the key and the repair."""


class CheckpointError(OSError):
    """A checkpoint, adapter or merged folder is missing, incomplete or not what it claims to be."""


class Concern(NamedTuple):
    """One thing that is seldom meant.

    Attributes:
        about: The subject, a word for machines.
        message: What was found, one or two sentences.
        places: All rows concerned, as `file:row`; or none.
    """

    about: str
    message: str
    places: tuple[str, ...] = ()


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns the sentence that names the nearest valid name, or the first of them where none is near.

    Args:
        name: What the user wrote.
        valid: The names that would have been accepted.

    Example:
        >>> did_you_mean("acuracy", ["accuracy", "loss"])
        "Did you mean 'accuracy'?"
        >>> did_you_mean("x", ["accuracy", "loss"])
        'Valid names: accuracy, loss.'
    """
    known = sorted(valid)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    more = f", and {len(known) - SHOWN:,} more" if len(known) > SHOWN else ""
    return f"Did you mean {near[0]!r}?" if near else f"Valid names: {', '.join(known[:SHOWN])}{more}."

"""An exception for each thing a user can get wrong, the form of every warning, and suggestions for misspelt names."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple
from unicodedata import normalize

SHOWN = 50  # names; no group of recipe keys is larger
COMPARED = 10_000  # names, within a second


class TableError(ValueError):
    """The table, or an image it names, cannot be used. The message names file, row, column and repair."""


class RecipeError(ValueError):
    """A recipe key or value cannot be used. The message names the key and the repair."""


class CheckpointError(OSError):
    """A checkpoint, adapter or merged folder is missing, incomplete or not what it claims to be."""


class ProcessError(RuntimeError):
    """One of several processes that train together is gone, or does not answer."""


class HubError(OSError):
    """The model hub cannot be reached, or refuses what is asked of it. The message says what to do."""


class FileError(OSError):
    """A file cannot be had, or does not hold what it should. The message names it and the repair."""


class Concern(NamedTuple):
    """A warning: something that is rarely intended, but no error.

    Attributes:
        about: The subject, a word for machines.
        message: What was found, in one or two sentences.
        places: The rows concerned, as `file:row`; empty where no row is.
    """

    about: str
    message: str
    places: tuple[str, ...] = ()

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Concern":
        """Reads what `_asdict` wrote, from JSON too.

        Args:
            record: Values by the names of the attributes.
        """
        return cls(record["about"], record["message"], tuple(record["places"]))

    def of_table(self, name: str) -> "Concern":
        """Returns the same concern about one of the retention tables.

        Args:
            name: The table's.
        """
        return self._replace(message=f"In the retention table {name}: {self.message[0].lower()}{self.message[1:]}")


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Suggests the nearest valid name, or lists the valid names where none is near.

    Args:
        name: What the user wrote.
        valid: The accepted names.

    Example:
        >>> did_you_mean("acuracy", ["accuracy", "loss"])
        "Did you mean 'accuracy'?"
        >>> did_you_mean("x", ["accuracy", "loss"])
        'Valid names: accuracy, loss.'
    """
    known = sorted(valid)
    near = find_near(name, known)
    more = f", and {len(known) - SHOWN:,} more" if len(known) > SHOWN else ""
    return suggest(name, near) if near else f"Valid names: {', '.join(known[:SHOWN])}{more}."


def find_near(name: str, valid: Iterable[str]) -> str | None:
    """Returns the nearest valid name; None where none is near.

    Args:
        name: What the user wrote.
        valid: The accepted names.

    Example:
        >>> find_near("acuracy", ["accuracy", "loss"])
        'accuracy'
    """
    known = sorted(valid)
    alike = [other for other in known if other != name and _look(other) == _look(name)]
    return next(iter(alike or get_close_matches(name, known[:COMPARED], n=1, cutoff=0.6)), None)


def suggest(name: str, other: str) -> str:
    """Suggests another name, and shows the difference where both look the same.

    Args:
        name: What the user wrote.
        other: What may be meant.

    Example:
        >>> suggest("a.jpg", "a.png")
        "Did you mean 'a.png'?"
    """
    if name == other or _look(name) != _look(other):
        return f"Did you mean {other!r}?"
    ways = "Unicode can write it in several ways (NFC, NFD). Write both alike."
    return f"Did you mean {other!a}? {name!a} only looks the same: {ways}"


def _look(name: str) -> str:
    return normalize("NFKC", name)

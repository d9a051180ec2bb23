"""Where a user says that files lie: a text in a recipe; in Python also a `Path`, or a DataFrame for a table."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.core.errors import RecipeError
from finetune.data.remote.places import check_remote, hide, is_remote

if TYPE_CHECKING:
    from pandas import DataFrame

    Place = str | os.PathLike[str]
    Source = Place | DataFrame
else:
    Place = Source = str  # a recipe can name nothing else, and the parser would read any other type from a file


def write_out(owner: object, *names: str) -> None:
    """Turns paths among the fields of a frozen dataclass into texts.

    Args:
        owner: The dataclass.
        names: The fields, which may hold anything.
    """
    for name in names:
        if isinstance(value := getattr(owner, name), os.PathLike):
            object.__setattr__(owner, name, os.fspath(value))


def expand(place: str) -> str:
    """Writes out `~`, which begins no URL.

    Args:
        place: A path, a URL, or a pattern of either.
    """
    return place if is_remote(place) else str(Path(place).expanduser())


def check_local(key: str, place: object) -> None:
    """Refuses a URL where files are read from this machine alone.

    Args:
        key: The recipe's key.
        place: What it holds.

    Raises:
        RecipeError: If it is a URL. The message shows no secret.
    """
    if isinstance(place, str) and is_remote(place):
        raise RecipeError(f"Expected {key} to be on this machine, but got {hide(place)!r}. Download it first.")


def check_source(source: object) -> None:
    """Refuses what names no table.

    Args:
        source: `data.table.path`.

    Raises:
        RecipeError: If it is neither a path, a URL nor a DataFrame, or a URL with credentials.
    """
    if isinstance(source, str) and is_remote(source):
        check_remote(source, "data.table.path")
    if isinstance(source, str) or hasattr(source, "columns"):
        return
    found = f"{len(source)} of them" if isinstance(source, list | tuple) else f"a {type(source).__name__}"
    raise RecipeError(
        f"Expected data.table.path to be a file, a pattern or a DataFrame, but got {found}. "
        'Name several files by one pattern, such as "part-*.csv"; val and test files by data.table.split.'
    )

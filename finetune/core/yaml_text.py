"""Reads a file of YAML as plain values: no tag builds an object, and no alias makes much of little."""

from pathlib import Path
from typing import Any

import yaml

from finetune.core.errors import RecipeError
from finetune.core.files import read_text

MOST_VALUES = 100_000


def read_yaml(path: Path) -> Any:
    """Reads a file of YAML.

    Args:
        path: The file.

    Raises:
        RecipeError: If it is no YAML, asks for Python objects, or holds more than `MOST_VALUES` values once its aliases
            are written out.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Reads a text as YAML.

    Args:
        text: The text.
        source: What it is called in an error.

    Raises:
        RecipeError: As `read_yaml`.
    """
    try:
        values = yaml.safe_load(text)
        size = _count(values, {})
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError of dates and numbers there are none of
        raise RecipeError(f"{source}: Expected valid YAML, but got: {error}") from error
    if size > MOST_VALUES:
        raise RecipeError(
            f"{source}: Expected at most {MOST_VALUES:,} values, but its aliases stand for {min(size, 10**18):,}. "
            "Do not use this file unless you know why."
        )
    return values


def _count(value: Any, known: dict[int, int]) -> int:
    """Counts values, those behind an alias each time; each is looked at once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(one, known) for one in inner)
    return known[id(value)]

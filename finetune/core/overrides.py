"""Values that replace those of a recipe: words of the command line, or in Python a mapping of keys to values."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from finetune.core.errors import RecipeError
from finetune.core.interpolation import Interpolation, as_json

Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]
"""Words as `["--data.batch_size", "32"]`, or values by key as `{"data.batch_size": 32}`."""


def as_words(overrides: Overrides) -> list[str]:
    """Returns values as words of the command line.

    Args:
        overrides: The values: texts, numbers, None, paths, an `Interpolation`, and lists and mappings of these.

    Raises:
        RecipeError: If a value is of another kind.

    Example:
        >>> as_words({"data.batch_size": 32, "model.image_lora": None, "data.table.path": "photos.csv"})
        ['--data.batch_size=32', '--model.image_lora=null', '--data.table.path=photos.csv']
    """
    if not isinstance(overrides, Mapping):
        return [*overrides]
    return [f"--{key}={_write(key, value)}" for key, value in overrides.items()]


def _write(key: str, value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    try:
        return json.dumps(value, default=_as_plain)
    except TypeError as error:
        raise RecipeError(
            f"Expected {key} to be a text, a number, a path, None, or a list or mapping of these, but got a "
            f"{type(value).__name__}. Name a class by its class_path and init_args, as a recipe does."
        ) from error


def _as_plain(value: Any) -> Any:
    return as_json(value) if isinstance(value, Interpolation) else os.fspath(value)


def write_out_nulls(words: Sequence[str]) -> list[str]:
    """Writes `--a.b null` as a piece of YAML: jsonargparse hands a null that lies deep on as a text.

    Args:
        words: Options with their values, in either form.

    Example:
        >>> write_out_nulls(["--data.table.label", "null", "--run.seed=3"])
        ['--config', '{data: {table: {label: null}}}', '--run.seed=3']
    """

    def write(option: re.Match[str]) -> str:
        keys = option[1].split(".")
        return "--config\0{" + ": {".join(keys) + ": null" + "}" * len(keys)

    joined = re.sub(r"(?<![^\0])--(\w+(?:\.\w+)+)[\0=]null(?![^\0])", write, "\0".join(words))
    return joined.split("\0") if words else []

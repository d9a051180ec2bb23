"""Folders that are handed on name no place of the machine that wrote them."""

import re
from pathlib import Path
from typing import Any

from finetune.core.files import read_json, write_json

_PLACE = re.compile(r"(file:|~|[A-Za-z]:)?[/\\]+[^/\\]+[/\\]")
_TEXTS = ("id2label", "label2id", "added_tokens_decoder")
"""Keys of what users and tokenizers call things, which may look like places: `/m/01g317` is a class of Open Images."""


def drop_paths(folder: Path) -> None:
    """Drops what the configurations of a folder name by an absolute path, as configurations of a base may.

    transformers carries on whatever keys a base's files hold: where it was saved once, or a cache. None of them is
    needed to open a folder that is whole.

    Args:
        folder: A folder with JSON files, none of them below it.
    """
    for path in folder.glob("*config.json"):
        values = read_json(path)
        kept = _without_places(values)
        if kept != values:
            write_json(path, kept)


def names_place(path: Path) -> bool:
    """Whether a configuration names an absolute path.

    Args:
        path: A JSON file.
    """
    values = read_json(path)
    return bool(_without_places(values) != values)


def is_place(value: Any) -> bool:
    r"""Whether a value of a configuration is an absolute path, of any system.

    Args:
        value: Any value of JSON.

    Example:
        >>> is_place("/home/ann/base"), is_place("C:\\Users\\ann"), is_place("</s>"), is_place("owner/name")
        (True, True, False, False)
    """
    return isinstance(value, str) and _PLACE.match(value) is not None


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: one if key in _TEXTS else _without_places(one) for key, one in value.items() if not is_place(one)}
    if isinstance(value, list):
        return [_without_places(one) for one in value if not is_place(one)]
    return value

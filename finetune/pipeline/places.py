"""The paths in a recipe: `~` is the home directory, and what is relative lies in the working directory."""

from enum import Enum
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from finetune.core.places import expand_home
from finetune.data.remote.places import is_remote

_TABLE = ("path", "images", "names")


def fix_places(config: Namespace) -> None:
    """Makes the paths of tables and of a local base absolute, so that a run finds them from any working directory.

    The folder of the runs stays as it is named: once made, a run is where it lies.

    Args:
        config: A parsed recipe, which is changed.
    """
    for key, value in list(config.items(branches=False)):
        config[key] = _expand(value)
    for part in ("model", "data"):
        values = config[part].init_args
        if isinstance(values.get("checkpoint"), str) and Path(values.checkpoint).is_dir():
            values.checkpoint = _fix(values.checkpoint)
    config.run.module_folders = tuple(map(_fix, config.run.module_folders))
    data = config.data.init_args
    if data.get("cache") != "auto":
        _fix_names(data, ("cache",))
    for table in (data.get("table"), *(data.get("retention") or ())):
        if isinstance(table, Namespace):
            _fix_names(table, _TABLE)
            if isinstance(table.get("split"), Namespace):
                _fix_names(table.split, ("val", "test"))


def _expand(value: Any) -> Any:
    """Writes out `~/` in every text of a value; no text that is no path begins so. A default may be an Enum's text."""
    if isinstance(value, str):
        return expand_home(value.value if isinstance(value, Enum) else value)  # YAML writes texts alone
    if isinstance(value, list | tuple):
        return type(value)(map(_expand, value))
    if isinstance(value, Namespace):
        return Namespace({key: _expand(inner) for key, inner in vars(value).items()})
    return value


def _fix_names(values: Namespace, names: tuple[str, ...]) -> None:
    for name in names:
        if isinstance(values.get(name), str):
            values[name] = _fix(values[name])


def _fix(name: str) -> str:
    """A path as it is found from any working directory; links and `..` are left to the system, URLs as they are."""
    return str(Path(name).absolute()) if name and not is_remote(name) else name

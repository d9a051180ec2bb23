"""Modules of the user's own, which a recipe may name once they are trusted: where they lie."""

import inspect
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

from finetune.core.errors import RecipeError
from finetune.core.yaml_text import read_yaml
from finetune.pipeline.parser import TRUSTED, find_class

_once_trusted: set[str] = set()


def allow_modules(trust: Sequence[str]) -> None:
    """Lets recipes name classes of the toolkit, its libraries and some modules, and of no others.

    Args:
        trust: The modules. Those that were trusted for another recipe are trusted no more.

    Raises:
        RecipeError: If one is no name of a module.
    """
    for module in trust:
        if not all(part.isidentifier() for part in module.split(".")):
            raise RecipeError(f"Expected --trust to name a module, such as my_module, but got {module!r}. Correct it.")
    _once_trusted.update(trust)  # the parser's settings add up, and the longest name counts
    allowed = {one for one in _once_trusted if any(f"{one}.".startswith(f"{module}.") for module in trust)}
    denied = _once_trusted - allowed
    set_parsing_settings(
        import_path_denylist=["*", *denied],
        import_path_allowlist=[*TRUSTED, *allowed],
        instantiate_subclass_spec_in_any=False,  # where any value goes, no class was asked for
    )


def refuse_calls(values: Any, trust: Sequence[str], key: str = "") -> None:
    """Refuses functions and methods where a recipe names what is built with its arguments, unless they are trusted.

    A function of a library may read a pickle or run a command, and does so as it is called.

    Args:
        values: A parsed recipe, or a part of it.
        trust: The user's own modules, whose functions may be named.
        key: Where the part stands.

    Raises:
        RecipeError: At the first one.
    """
    if isinstance(values, list | tuple):
        for inner in values:
            refuse_calls(inner, trust, key)
    if not isinstance(values, Namespace | dict):
        return
    inside = vars(values) if isinstance(values, Namespace) else values
    name = inside.get("class_path")
    is_own = any(f"{name}.".startswith(f"{module}.") for module in trust)
    if isinstance(name, str) and not is_own and not inspect.isclass(find_class(name)):
        raise RecipeError(
            f"Expected {key} to name a class, but got {name!r}. Call it in a module of your own, and --trust that one."
        )
    for part, inner in inside.items():
        refuse_calls(inner, trust, f"{key}.{part}".lstrip(".").replace(".init_args", ""))


def find_modules(recipe: Path, trust: Sequence[str]) -> tuple[str, ...]:
    """Lets modules be imported from the recipe's folder, the working directory, and the folders that the recipe notes.

    They come last on Python's path, so that no file there takes the place of an installed module.

    Args:
        recipe: The recipe's file.
        trust: Names of modules, or of modules in packages (`package.module`); without any, nothing is done.

    Returns:
        The folders in which modules were found that are not installed.
    """
    if not trust:
        return ()
    folders = [str(folder) for folder in (recipe.parent.resolve(), Path.cwd(), *_read_noted(recipe))]
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    specs = [find_spec(module.split(".")[0]) for module in trust]
    known = [spec for spec in specs if spec]
    homes = [Path(folder).parent for spec in known for folder in spec.submodule_search_locations or ()]
    homes += [Path(spec.origin).parent for spec in known if spec.submodule_search_locations is None and spec.origin]
    return tuple(home for home in dict.fromkeys(map(str, homes)) if home in folders)


def _read_noted(recipe: Path) -> list[Path]:
    """The folders in `run.module_folders`; what is wrong there, the parser says."""
    try:
        noted = read_yaml(recipe)["run"]["module_folders"]
        return [Path(folder).expanduser().absolute() for folder in noted]
    except (KeyError, TypeError):
        return []

"""Modules of the user's own, which a recipe may name once they are trusted: where they lie."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml
from jsonargparse import set_parsing_settings

from finetune.core.errors import RecipeError
from finetune.core.files import read_text
from finetune.pipeline.parser import TRUSTED

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
    set_parsing_settings(import_path_denylist=["*", *denied], import_path_allowlist=[*TRUSTED, *allowed])


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
        noted = yaml.safe_load(read_text(recipe))["run"]["module_folders"]
        return [Path(folder).expanduser().absolute() for folder in noted]
    except (KeyError, TypeError, yaml.YAMLError):
        return []

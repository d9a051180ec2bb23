"""Finds the recipes and preparation scripts that come with the package, in a checkout or an installed wheel."""

import runpy
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from finetune.core.console import say
from finetune.core.door import run_command
from finetune.core.errors import RecipeError, did_you_mean
from finetune.core.files import read_text


def shipped_folder(name: str) -> Path:
    """Returns the folder `recipes` or `datasets`: inside the package of a wheel, beside it in a checkout.

    Args:
        name: `recipes` or `datasets`.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "shipped" / name
    return installed if installed.is_dir() else package.parent / name


def shipped_recipes() -> dict[str, Path]:
    """Returns the files of the shipped recipes by name, in alphabetical order."""
    return {path.stem: path for path in sorted(shipped_folder("recipes").glob("*.yaml"))}


def find_recipe(recipe: str) -> Path:
    """Finds a recipe by its path or by the name of a shipped one.

    Args:
        recipe: `my/recipe.yaml` or `quickstart`.

    Raises:
        RecipeError: If it is neither.
    """
    known = shipped_recipes()
    if recipe in known:
        return known[recipe]
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    raise RecipeError(
        f"Expected a recipe file or the name of a shipped recipe, but got {recipe!r}. {did_you_mean(recipe, known)}"
    )


def recipe_goal(path: Path) -> str:
    """Returns the goal of a recipe, which its first comment line states."""
    return read_text(path).splitlines()[0].lstrip("# ").removeprefix("Goal: ")


def prepare(name: str, *words: str) -> str:
    """Runs a shipped script that prepares data.

    Args:
        name: The data set, such as `digits`.
        words: Options of the script, as on the command line: `"--output", "data/digits"`.

    Returns:
        What was written, in words.

    Raises:
        RecipeError: If there is no such script, or it does not know the words.
        FileError: If what it reads cannot be had.

    Example:
        >>> from finetune import prepare
        >>> prepare("digits", "--output", "data/digits")  # doctest: +SKIP
    """
    try:
        return str(find_script(name).__wrapped__([*words]))
    except SystemExit as stop:  # of argparse, which has said what is wrong
        raise RecipeError(
            f"Expected options of `finetune prepare {name}`, but got {' '.join(words)}. "
            f"`finetune prepare {name} --help` lists them."
        ) from stop


def find_script(name: str) -> Any:
    """Returns the main function of a shipped script, see `script`.

    Args:
        name: The data set.

    Raises:
        RecipeError: If there is no such script.
    """
    scripts = shipped_scripts()
    if name not in scripts:
        raise RecipeError(f"Expected the name of a data set, but got {name!r}. {did_you_mean(name, scripts)}")
    return runpy.run_path(str(scripts[name]), run_name="finetune_prepare")["main"]


def shipped_scripts() -> dict[str, Path]:
    """Returns the files of the shipped scripts by name, in alphabetical order."""
    return {path.stem: path for path in sorted(shipped_folder("datasets").glob("*.py"))}


def script(main: Callable[[list[str] | None], str]) -> Callable[[list[str] | None], int]:
    """Turns the main function of a preparation script into one that returns an exit code.

    The new function prints the text that `main` returns, or what stopped it, see `finetune.core.door.run_command`.

    Args:
        main: Takes the words of the command line, None for the process's own.
    """

    @wraps(main)
    def run(argv: list[str] | None = None) -> int:
        return run_command(lambda: say(main(argv)))

    return run

"""Finds the recipes and preparation scripts that come with the package, in a checkout or an installed wheel."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

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

"""What a recipe needs: its device, its checkpoint, its table."""

from collections.abc import Callable, Iterator

from finetune.core.errors import CheckpointError, FileError, RecipeError, TableError
from finetune.pipeline.doctor.finding import Finding
from finetune.pipeline.recipe import Recipe

CHECK = "Run: finetune check --config RECIPE, which looks at every row."


def find_needs(read: Callable[[], Recipe]) -> Iterator[Finding]:
    """Yields what a recipe asks for, and whether it is there.

    Args:
        read: Reads the recipe.
    """
    recipe: list[Recipe] = []

    def name() -> str:
        recipe.append(read())
        return recipe[0].name

    yield _try("recipe", name)
    if recipe:
        yield _try("device", lambda: str(recipe[0].device))
        yield _try("checkpoint", lambda: f"{recipe[0].base.public_name} at {recipe[0].base.folder}")
        yield _try("table", lambda: _describe_table(recipe[0]))


def _describe_table(recipe: Recipe) -> str:
    rows = recipe.build_data().rows
    return f"{len(rows):,} rows of {', '.join(rows.files)}"


def _try(about: str, describe: Callable[[], str]) -> Finding:
    try:
        return Finding(about, describe())
    except (RecipeError, CheckpointError, TableError, FileError, OSError) as error:
        found, _, repair = str(error).rpartition(". ")
        return Finding(about, found or str(error), repair or CHECK, is_fatal=True)

"""Whether this machine can run the toolkit, and a recipe: what was found, what stands in the way, and its repair."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.core.overrides import Overrides
from finetune.pipeline.doctor.files import find_files
from finetune.pipeline.doctor.finding import Finding
from finetune.pipeline.doctor.hub import find_hub
from finetune.pipeline.doctor.machine import find_machine
from finetune.pipeline.doctor.needs import find_needs
from finetune.pipeline.doctor.packages import find_packages
from finetune.pipeline.recipe import read_recipe

__all__ = ["Finding", "doctor", "examine"]


def doctor(recipe: str | Path | None = None, overrides: Overrides = (), trust: Sequence[str] = ()) -> list[Finding]:
    """Looks at this machine, and at what a recipe needs of it; nothing is written that stays.

    Args:
        recipe: A recipe's file, or the name of a shipped one; None looks at the machine alone.
        overrides: Values that replace the recipe's, see `read_recipe`.
        trust: Modules that the recipe may name.

    Returns:
        What was found, one thing after the other; those with a `repair` are in the way. What is wrong with the recipe
        is one of them.

    Example:
        >>> from finetune import doctor
        >>> [finding for finding in doctor() if finding.repair]  # doctest: +SKIP
    """
    return [*examine(recipe, overrides, trust)]


def examine(
    recipe: str | Path | None = None, overrides: Overrides = (), trust: Sequence[str] = ()
) -> Iterator[Finding]:
    """Yields what `doctor` lists, as it is found.

    Args:
        recipe: As for `doctor`.
        overrides: As for `doctor`.
        trust: As for `doctor`.
    """
    yield from find_packages()
    yield from find_machine()
    yield from find_files()
    yield from find_hub()
    if recipe is not None:
        yield from find_needs(lambda: read_recipe(recipe, overrides, trust))

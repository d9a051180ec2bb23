"""`finetune test`: a run or a checkpoint, measured on the test rows of a table."""

import argparse

from finetune.commands.options import Commands, add_anyway, add_output, add_recipe
from finetune.core.console import say
from finetune.core.errors import RecipeError
from finetune.core.shipped import find_recipe


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    test = commands.add_parser(
        "test",
        help="evaluate a run, or an untouched checkpoint",
        usage="finetune test RUN [--anyway] | --config RECIPE [--output DIR] [--key value ...]",
        description="Evaluates what a run exported, or the checkpoint of a recipe as it is.",
    )
    add_recipe(test, required=False)
    add_output(test, "DIR", "write the measurement, which `finetune compare` reads")
    add_anyway(test, "test rows that RUN was trained on or chosen by")
    test.set_defaults(command=_test)


def _test(options: argparse.Namespace) -> None:
    words: list[str] = options.words
    run = words.pop(0) if words and not words[0].startswith("--") else None  # argparse would take a key's value for it
    if (run is None) == (options.config is None):
        raise RecipeError("Expected either RUN or --config RECIPE.")
    if run is None and options.anyway:
        raise RecipeError("Expected --anyway with RUN only, as a recipe's checkpoint has seen no rows. Remove it.")
    from finetune.run.folder import open_run

    path = find_recipe(options.config) if options.config else None
    if run is not None:
        open_run(run)  # a misspelt name need not wait for torch
    from finetune.pipeline.measure_again import measure_checkpoint, measure_run
    from finetune.pipeline.recipe import read_recipe

    if path is not None:
        recipe = read_recipe(path, words, options.trust)
        measured = measure_checkpoint(recipe, options.output, options.overwrite)
    else:
        measured = measure_run(str(run), words, options.trust, options.output, options.anyway, options.overwrite)
    say("\n".join(measured.lines()))

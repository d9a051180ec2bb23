"""`finetune fit`: the whole run."""

import argparse

from finetune.commands.options import Commands, add_recipe
from finetune.core.console import say
from finetune.core.errors import RecipeError
from finetune.core.shipped import find_recipe


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    fit = commands.add_parser("fit", help="the whole run: measure, train, merge, prove, measure again")
    add_recipe(fit, required=False)
    fit.add_argument("--keys", action="store_true", help="print every recipe key with its type, default and meaning")
    fit.add_argument("--run", metavar="NAME", help="name of the run's folder (default: the recipe's)")
    fit.add_argument("--runs", metavar="DIR", help="where the run's folder is made (default: runs)")
    fit.add_argument("--overwrite", action="store_true", help="replace a run of that name")
    fit.add_argument(
        "--dry_run",
        action="store_true",
        help="try every stage on a few batches, and say what the whole run takes: time, memory, disk; leaves nothing",
    )
    fit.set_defaults(command=_fit)


def _fit(options: argparse.Namespace) -> None:
    if options.keys:
        from finetune.pipeline.parser import describe_keys

        say(describe_keys())
        return
    if options.config is None:
        raise RecipeError("Expected --config RECIPE. `finetune recipes` names the shipped ones.")
    path = find_recipe(options.config)
    from finetune.core import processes
    from finetune.pipeline.recipe import read_recipe
    from finetune.pipeline.run_recipe import run_recipe
    from finetune.pipeline.summary import describe

    names = {"--run.name": options.run, "--run.folder": options.runs}
    settings = [word for key, value in names.items() if value is not None for word in (key, value)]
    recipe = read_recipe(path, [*options.words, *settings], options.trust)
    if options.dry_run:
        from finetune.pipeline.dry_run import dry_run

        say("\n".join(dry_run(recipe, options.overwrite).lines()))
        return
    run = run_recipe(recipe, options.overwrite)
    if processes.is_first():
        say(describe(run))

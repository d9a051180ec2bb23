"""`finetune prepare`: the shipped scripts that prepare data."""

import argparse
import runpy

from finetune.commands.options import Commands
from finetune.core.errors import RecipeError, did_you_mean
from finetune.core.shipped import shipped_folder


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    prepare = commands.add_parser("prepare", help="run a shipped script that prepares data", add_help=False)
    prepare.add_argument("name", metavar="NAME", nargs="?")
    prepare.set_defaults(command=_prepare, takes_words=True)


def _prepare(options: argparse.Namespace) -> int:
    scripts = {path.stem: path for path in shipped_folder("datasets").glob("*.py")}
    if options.name is None:
        print(f"usage: finetune prepare NAME [OPTIONS]\n\nNAME: {', '.join(sorted(scripts))}")
        return 0
    if options.name not in scripts:
        raise RecipeError(
            f"Expected the name of a data set, but got {options.name!r}. {did_you_mean(options.name, scripts)}"
        )
    script = runpy.run_path(str(scripts[options.name]), run_name="finetune_prepare")
    code: int = script["main"](options.words)
    return code

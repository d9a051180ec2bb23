"""`finetune prepare`: the shipped scripts that prepare data."""

import argparse

from finetune.commands.options import Commands
from finetune.core.shipped import find_script, shipped_scripts


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    prepare = commands.add_parser("prepare", help="run a shipped script that prepares data", add_help=False)
    prepare.add_argument("name", metavar="NAME", nargs="?")
    prepare.set_defaults(command=_prepare, takes_words=True)


def _prepare(options: argparse.Namespace) -> int:
    if options.name is None:
        print(f"usage: finetune prepare NAME [OPTIONS]\n\nNAME: {', '.join(shipped_scripts())}")
        return 0
    code: int = find_script(options.name)(options.words)
    return code

"""`finetune verify`: an exported folder against its proof."""

import argparse
from pathlib import Path

from finetune.commands.options import Commands
from finetune.core.console import say


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    verify = commands.add_parser("verify", help="re-check an exported folder against its proof, on this machine")
    verify.add_argument("folder", metavar="DIR", type=Path, help="a merged folder, a classifier, or a run with them")
    verify.set_defaults(command=_verify)


def _verify(options: argparse.Namespace) -> None:
    from finetune.export.artifacts import list_exported, verify
    from finetune.run.results import format_proof

    for folder in list_exported(options.folder):
        say(f"{folder}: {format_proof(verify(folder))}")

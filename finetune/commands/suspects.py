"""`finetune suspects`: training rows that fit badly."""

import argparse
from pathlib import Path

from finetune.commands.options import Commands, add_output, add_recipe, check_file
from finetune.core.console import say
from finetune.core.shipped import find_recipe


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    suspects = commands.add_parser(
        "suspects",
        help="training rows whose caption or label fits worst, by adapters that never saw the row",
        description="Ranks the training rows by how badly their caption or label fits. It takes the time of N "
        "trainings; the table is left as it is.",
    )
    add_recipe(suspects)
    add_output(suspects, "CSV", "file of all training rows, the worst first (default: %(default)s)")
    suspects.add_argument(
        "--folds",
        metavar="N",
        type=int,
        default=4,
        help="parts that are scored by what was trained on the others (default: %(default)s)",
    )
    suspects.set_defaults(command=_suspects, output=Path("suspects.csv"))


def _suspects(options: argparse.Namespace) -> None:
    path = find_recipe(options.config)
    check_file(options.output, options.overwrite)
    from finetune.core.csv_text import format_frame, shield_frame
    from finetune.core.files import write_text
    from finetune.pipeline.recipe import read_recipe
    from finetune.pipeline.suspects import find_suspects

    found = find_suspects(read_recipe(path, options.words, options.trust), options.folds)
    write_text(options.output, format_frame(shield_frame(found.rows)))
    say("\n".join(found.lines()) + f"; all in {options.output}")

"""`finetune compare`: measured models side by side."""

import argparse

from finetune.commands.options import Commands, add_output, check_file
from finetune.core.console import say


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    compare = commands.add_parser(
        "compare",
        help="measured models side by side, each with its differences to the first",
        usage="finetune compare A B [C ...] [--output JSON]",
    )
    compare.add_argument(
        "models", metavar="A B", nargs="+", help="runs, exported folders, or what `finetune test --output` wrote"
    )
    add_output(compare, "JSON", "write metrics and differences")
    compare.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> None:
    check_file(options.output, options.overwrite)
    from finetune.core.files import write_json
    from finetune.pipeline.compare import compare_models

    comparison = compare_models(options.models)
    say("\n".join(comparison.lines()))
    if options.output:
        write_json(options.output, comparison._asdict())

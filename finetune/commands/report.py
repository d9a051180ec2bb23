"""`finetune report`: the page of a run."""

import argparse
import sys

from finetune.commands.options import Commands, add_run
from finetune.core.console import say


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    report = commands.add_parser("report", help="rebuild a run's report.html from its files")
    add_run(report)
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> None:
    from finetune.data.checks.seen import describe_changes
    from finetune.report.page import write_report
    from finetune.run.folder import open_run

    page, run = write_report(options.run), open_run(options.run)
    for change in describe_changes(run.recipe, run.table):
        say(f"table, since the training: {change}", file=sys.stderr)
    say(page)

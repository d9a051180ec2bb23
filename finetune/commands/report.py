"""`finetune report`: the page of a run."""

import argparse

from finetune.commands.options import Commands, add_run


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    report = commands.add_parser("report", help="rebuild a run's report.html from its files")
    add_run(report)
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> None:
    from finetune.report.page import write_report

    print(write_report(options.run))

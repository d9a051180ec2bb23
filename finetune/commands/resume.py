"""`finetune resume`: what is left of a run."""

import argparse

from finetune.commands.options import Commands, add_run, add_trust
from finetune.core.console import say


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    resume = commands.add_parser(
        "resume", help="what is left of a run that was stopped, or of which a later choice has changed"
    )
    add_run(resume)
    add_trust(resume)
    resume.add_argument(
        "--anyway",
        action="store_true",
        help="train again, and replace RUN's training, where recipe, table or base changed; go on where versions did",
    )
    resume.add_argument(
        "--devices", metavar="N", help="go on with the training on so many devices (default: as the recipe says)"
    )
    resume.set_defaults(command=_resume)


def _resume(options: argparse.Namespace) -> None:
    from finetune.run.folder import open_run

    open_run(options.run)  # a misspelt name need not wait for torch
    from finetune.core import processes
    from finetune.pipeline.run_recipe import resume_run
    from finetune.pipeline.summary import describe

    run = resume_run(options.run, options.trust, options.anyway, options.devices)
    if processes.is_first():
        say(describe(run))

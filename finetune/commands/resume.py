"""`finetune resume`: what is left of a run."""

import argparse

from finetune.commands.options import Commands, add_run, add_trust


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    resume = commands.add_parser("resume", help="what is left of a run that was stopped")
    add_run(resume)
    add_trust(resume)
    resume.set_defaults(command=_resume)


def _resume(options: argparse.Namespace) -> None:
    from finetune.run.folder import open_run

    run = open_run(options.run)
    if run.is_finished:
        print(f"{run.path} is finished: nothing is left to do.\n")
    else:
        from finetune.pipeline.run_recipe import resume_run

        resume_run(run.path, options.trust)
    from finetune.pipeline.summary import describe

    print(describe(run))

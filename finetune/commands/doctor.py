"""`finetune doctor`: whether this machine can run the toolkit, and what to do where it cannot."""

import argparse

from finetune.commands.options import Commands, add_recipe
from finetune.core.console import say


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    doctor = commands.add_parser(
        "doctor",
        help="versions, devices, memory, disk, hub access; each problem with its repair",
        description="Looks at this machine, and at what a recipe needs of it. Exit code 2 where something has to be "
        "repaired first, 0 with warnings.",
    )
    add_recipe(doctor, required=False)
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from finetune.pipeline.doctor import examine
    from finetune.pipeline.run_recipe import quieten

    quieten()
    problems = []
    for finding in examine(options.config, options.words, options.trust):
        say(f"{finding.about:<15} {finding.found}", flush=True)
        if finding.repair:
            problems.append(finding)
    for finding in problems:
        say(f"{'error' if finding.is_fatal else 'warning'}: {finding.about}: {finding.found}. {finding.repair}")
    if not problems:
        say("nothing is in the way")
    return 2 if any(finding.is_fatal for finding in problems) else 0

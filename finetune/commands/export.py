"""`finetune export`: what a run trained, exported once more."""

import argparse

from finetune.commands.options import Commands, add_anyway, add_keys, add_output, add_run
from finetune.core.console import say
from finetune.core.interpolation import parse_interpolation


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    export = commands.add_parser("export", help="merged checkpoint with its proof")
    add_run(export)
    add_output(export, "DIR", "the folder to write", required=True)
    export.add_argument(
        "--interpolation",
        metavar="W",
        help="where the model lies between the base, 0, and the trained model, 1; a number for each tower, as "
        "image=0.7,text=0.3, or for a tower's first and last block, as image=1:0.5,text=0.3; or auto, which chooses by "
        "validation rows and data.retention (default: what the run exported)",
    )
    export.add_argument("--classifier", action="store_true", help="the image classifier of a run that trained a head")
    export.add_argument("--onnx", action="store_true", help="towers and classifier in ONNX as well")
    add_anyway(export, "with --interpolation auto validation rows that RUN was trained on")
    add_keys(export, "With --interpolation auto ")
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> None:
    given = options.interpolation
    interpolation = given if given in (None, "auto") else parse_interpolation(given, "--interpolation")
    from finetune.run.folder import open_run

    run = open_run(options.run)  # a misspelt name need not wait for torch
    from finetune.pipeline.export_run import export_run
    from finetune.run.results import format_proof

    proof = export_run(
        options.run,
        options.output,
        options.overwrite,
        interpolation,
        options.classifier,
        options.words,
        options.trust,
        options.anyway,
        options.onnx,
    )
    say(f"{options.output}: {format_proof(proof)}")
    if run.classifier.is_dir() and not options.classifier:
        say(f"the run has a head: its classifier is {run.classifier}; --classifier exports it")

"""`finetune export`, free of torch until it is called."""

import argparse
from pathlib import Path


def add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    export = commands.add_parser(
        "export",
        help="merged checkpoint with its proof",
        epilog="With --alpha auto every recipe key is an option too, as --run.max_retention_loss 0.02.",
        allow_abbrev=False,
    )
    export.add_argument("run_folder", metavar="RUN")
    export.add_argument("--output", metavar="DIR", type=Path, required=True)
    export.add_argument(
        "--alpha",
        metavar="A",
        type=_alpha,
        help="how far from the base towards what was trained, 0 to 1, or auto (default: what the run handed out)",
    )
    export.add_argument("--classifier", action="store_true", help="the image classifier of a run that trained a head")
    export.add_argument("--overwrite", action="store_true", help="replace DIR")
    export.add_argument("--trust", metavar="MODULE", action="append", default=[], help="as for fit, with --alpha auto")
    export.set_defaults(command=_export, takes_recipe_keys=True)


def _alpha(word: str) -> float | str:
    try:
        return word if word == "auto" else float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"Expected a number from 0 to 1, or auto, but got {word!r}.") from None


def _export(options: argparse.Namespace) -> None:
    from finetune.pipeline.handover import export_run
    from finetune.run.results import format_proof

    proof = export_run(
        options.run_folder,
        options.output,
        options.overwrite,
        options.alpha,
        options.classifier,
        options.overrides,
        options.trust,
    )
    print(f"{options.output}: {format_proof(proof)}")

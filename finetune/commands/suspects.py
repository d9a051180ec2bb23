"""`finetune suspects`, free of torch until it is called."""

import argparse
from pathlib import Path

from finetune.core.shipped import find_recipe


def add_suspects(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    suspects = commands.add_parser(
        "suspects",
        help="training rows whose caption or label fits worst, by adapters that never saw the row",
        epilog="Every recipe key is an option too. It takes the time of N trainings; the table is left as it is.",
        allow_abbrev=False,
    )
    suspects.add_argument("--config", metavar="RECIPE", required=True, help="a path, or the name of a shipped recipe")
    suspects.add_argument(
        "--output",
        metavar="CSV",
        type=Path,
        default=Path("suspects.csv"),
        help="file of all training rows, the worst first (default: %(default)s)",
    )
    suspects.add_argument("--overwrite", action="store_true", help="replace CSV")
    suspects.add_argument(
        "--folds",
        metavar="N",
        type=int,
        default=4,
        help="parts that are judged by what was trained on the others (default: %(default)s)",
    )
    suspects.set_defaults(command=_suspects)
    return suspects


def _suspects(options: argparse.Namespace) -> None:
    path = find_recipe(options.config)
    from finetune.core.files import refuse_existing, write_text

    if options.output.is_dir():
        raise FileExistsError(f"Expected --output to name a file, but got {options.output}, a folder.")
    refuse_existing(options.output, options.overwrite)
    from finetune.pipeline.recipe import read_recipe
    from finetune.pipeline.suspects import find_suspects

    found = find_suspects(read_recipe(path, options.overrides, options.trust), options.folds)
    write_text(options.output, found.rows.to_csv(index=False, lineterminator="\n"))
    print("\n".join(found.lines()) + f"; all in {options.output}")

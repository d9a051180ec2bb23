"""`finetune suspects`, free of torch until it is called."""

import argparse
from pathlib import Path

from finetune.shipped import find_recipe


def add_suspects(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    suspects = commands.add_parser(
        "suspects",
        help="training rows whose caption or label fits worst, by adapters that never saw the row",
        epilog="Every recipe key is an option too. The table is left as it is.",
        allow_abbrev=False,
    )
    suspects.add_argument("--config", metavar="RECIPE", required=True, help="a path, or the name of a shipped recipe")
    suspects.add_argument("--output", metavar="CSV", type=Path, default=Path("suspects.csv"), help="file of all rows")
    suspects.add_argument("--folds", metavar="N", type=int, default=4, help="how often to train (default: %(default)s)")
    suspects.set_defaults(command=_suspects)
    return suspects


def _suspects(options: argparse.Namespace) -> None:
    path = find_recipe(options.config)
    from finetune.files import write_text
    from finetune.recipe import read_recipe
    from finetune.suspects import describe_suspects, find_suspects

    found = find_suspects(read_recipe(path, options.overrides, options.trust), options.folds)
    write_text(options.output, found.to_csv(index=False, lineterminator="\n"))
    print(f"{describe_suspects(found)}, all in {options.output}")

"""What several commands share: options worded once, and the check of a file that a command writes."""

import argparse
from pathlib import Path
from typing import TypeAlias

from finetune.core.errors import RecipeError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The commands of `finetune`, to which each file adds its own."""


def add_run(command: argparse.ArgumentParser) -> None:
    """Adds `RUN`.

    Args:
        command: The command.
    """
    command.add_argument("run", metavar="RUN", help="a run's folder")


def add_recipe(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--config`, and all that `add_keys` adds.

    Args:
        command: The command.
        required: Whether the command does nothing without a recipe.
    """
    command.add_argument(
        "--config", metavar="RECIPE", required=required, help="a path, or the name of a shipped recipe"
    )
    add_keys(command)


def add_keys(command: argparse.ArgumentParser, where: str = "") -> None:
    """Adds `--trust`, and every recipe key as an option.

    Args:
        command: The command, called with `options.words`, which are the keys with their values.
        where: The condition under which it takes keys, for its help.
    """
    add_trust(command)
    every = "every" if where else "Every"
    command.epilog = (
        f"{where}{every} recipe key is an option too, as --data.batch_size 32; `finetune fit --keys` lists them."
    )
    command.set_defaults(takes_words=True, takes_keys=True)


def add_trust(command: argparse.ArgumentParser) -> None:
    """Adds `--trust`.

    Args:
        command: The command.
    """
    command.add_argument(
        "--trust", metavar="MODULE", action="append", default=[], help="let the recipe name this module's classes"
    )


def add_output(command: argparse.ArgumentParser, kind: str, content: str, required: bool = False) -> None:
    """Adds `--output` and `--overwrite`.

    Args:
        command: The command.
        kind: What is written, in capitals: `CSV`, `DIR` or `JSON`.
        content: What it holds, for the help.
        required: Whether the command does nothing without it.
    """
    command.add_argument("--output", metavar=kind, type=Path, required=required, help=content)
    command.add_argument("--overwrite", action="store_true", help=f"replace {kind}")


def add_anyway(command: argparse.ArgumentParser, rows: str) -> None:
    """Adds `--anyway`.

    Args:
        command: The command.
        rows: Which rows it counts.
    """
    command.add_argument("--anyway", action="store_true", help=f"count {rows}, which are left out otherwise")


def add_separator(command: argparse.ArgumentParser) -> None:
    """Adds `--separator`.

    Args:
        command: The command.
    """
    command.add_argument(
        "--separator",
        metavar="CHARACTER",
        type=lambda word: "\t" if word == "\\t" else word,
        help="what lies between a table's fields, such as ';' (default: tabs in .tsv, commas in others)",
    )


def check_file(file: Path | None, overwrite: bool, option: str = "--output") -> None:
    """Refuses a file that cannot be written, before any work is done.

    Args:
        file: What the option names; None where it names nothing.
        overwrite: Whether an existing file is replaced.
        option: The option's name.

    Raises:
        RecipeError: If it is a folder, or lies in a folder that does not exist.
        FileExistsError: If it exists and `overwrite` is false.
        OSError: If its folder takes no files.
    """
    if file is None:
        return
    from finetune.core.files import refuse_existing
    from finetune.core.places import require_place

    if file.is_dir() or not file.parent.exists():
        repair = "Name a file in it." if file.is_dir() else f"Make {file.parent}, or correct it."
        raise RecipeError(f"Expected {option} to name a file in a folder that exists, but got {file}. {repair}")
    require_place(file)
    refuse_existing(file, overwrite)


def whole_number(text: str) -> int:
    """Reads a number of things, for the help to say what was wrong.

    Args:
        text: What the user wrote.

    Raises:
        ArgumentTypeError: If it is no whole number of 1 or more.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, but got {text}")
    return int(text)

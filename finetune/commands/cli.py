"""`finetune`: one file a command, and all of them free of torch until one runs."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from finetune.commands import (
    check,
    classify,
    compare,
    export,
    fit,
    prepare,
    recipes,
    report,
    resume,
    suspects,
    test,
    verify,
)
from finetune.core.errors import CheckpointError, RecipeError, TableError

COMMANDS = (fit, resume, test, compare, classify, export, verify, report, check, suspects, prepare, recipes)
"""In the order in which the help lists them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after the program's name; None takes the process's own.

    Returns:
        Exit code: 0, 2 where the input is at fault, or 143 where SIGTERM stopped it.
    """
    parser = _Parser(
        prog="finetune", description="Fine-tune a pretrained ALIGN and get back a plain checkpoint with its proof."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="chosen")
    for command in COMMANDS:
        command.add(commands)
    options, words = parser.parse_known_args(arguments)
    if words and not getattr(options, "takes_words", False):
        commands.choices[options.chosen].error(f"unrecognized arguments: {' '.join(words)}")
    options.words = words
    try:
        code: int | None = options.command(options)
    except (TableError, RecipeError, CheckpointError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        if stop.code is not None:
            raise
        print("error: stopped by SIGTERM. A run goes on by `finetune resume RUN`.", file=sys.stderr)
        return 143  # Lightning's SIGTERMException has no code, and would say that all went well
    return code or 0


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and says what is wrong in one line."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.rstrip('.')}. See `{self.prog} --help`.\n")

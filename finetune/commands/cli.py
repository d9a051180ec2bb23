"""`finetune`: one file a command, and all of them free of torch until one runs."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from finetune.commands import (
    check,
    classify,
    compare,
    doctor,
    embed,
    export,
    fit,
    prepare,
    publish,
    recipes,
    report,
    resume,
    search,
    suspects,
    test,
    verify,
)
from finetune.core.door import run_command
from finetune.core.places import expand_home

COMMANDS = (
    fit,
    resume,
    test,
    compare,
    classify,
    embed,
    search,
    export,
    verify,
    publish,
    report,
    check,
    suspects,
    prepare,
    recipes,
    doctor,
)
"""In the order in which the help lists them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after the program's name; None takes the process's own.

    Returns:
        Exit code: the command's, or what `run_command` makes of what stopped it.
    """
    return run_command(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int | None:
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else arguments
    options, words = parser.parse_known_args([*map(expand_home, given)])
    if words and not getattr(options, "takes_words", False):
        options.parser.error(f"unrecognized arguments: {' '.join(words)}")
    options.words = words
    code: int | None = options.command(options)
    return code


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands; what it parses names the command's own as `parser`."""
    parser = _Parser(
        prog="finetune", description="Fine-tune a pretrained ALIGN and get back a plain checkpoint with its proof."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    for one in commands.choices.values():
        one.set_defaults(parser=one)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and says what is wrong in one line."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.rstrip('.')}. See `{self.prog} --help`.\n")

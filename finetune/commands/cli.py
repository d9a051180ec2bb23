"""`finetune`: one file a command, and all of them free of torch until one runs."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

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
from finetune.core.errors import RecipeError, did_you_mean, find_near, suggest
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

SECTIONS = ("model", "data", "trainer", "run", "print_config")
"""What the keys of recipes begin with, and an option of their parser."""


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
        strange = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
        options.parser.error(
            ". ".join([f"unrecognized arguments: {' '.join(words)}", *_suggest(strange, options.parser)])
        )
    if getattr(options, "takes_keys", False):
        _refuse_strange_keys(words, options.parser)
    options.words = words
    code: int | None = options.command(options)
    return code


def _refuse_strange_keys(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Refuses an option that is neither the command's nor in a section of recipes; keys are checked as they are read.

    Raises:
        RecipeError: At the first one.
    """
    for word in words:
        option = re.match(r"--([^.=+]+)[^=+]*", word)
        if option and option[1] not in SECTIONS:
            from finetune.pipeline.parser import list_keys
            from finetune.pipeline.renamed import refuse_renamed_option

            refuse_renamed_option(option[0], parser._option_string_actions)
            found = _suggest(option[0], parser, list_keys())
            raise RecipeError(
                " ".join([f"Expected an option of `{parser.prog}` or a recipe key, but got {option[0]}.", *found])
                + f" See `{parser.prog} --help`; `finetune fit --keys` lists the keys."
            )


def _suggest(option: str, parser: argparse.ArgumentParser, keys: Sequence[str] = ()) -> list[str]:
    """Says what may be meant by an option; nothing where no option of the command and no key is near."""
    known = [other[2:] for other in [*parser._option_string_actions, *keys] if other.startswith("--")]
    near = find_near(option[2:], known)  # without the dashes, which make all alike
    return [suggest(option, f"--{near}")] if near else []


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
        ending = "" if message.endswith("?") else "."
        self.exit(2, f"error: {message.rstrip('.')}{ending} See `{self.prog} --help`.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.metavar or action.option_strings[0]
            raise argparse.ArgumentError(
                None, f"Expected {name} to be known, but got {value!r}. {did_you_mean(value, action.choices)}"
            )

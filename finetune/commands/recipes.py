"""`finetune recipes`: the recipes that come with the package."""

import argparse
from pathlib import Path

from finetune.commands.options import Commands, check_file
from finetune.core.console import say
from finetune.core.files import read_text, write_bytes
from finetune.core.shipped import find_recipe, recipe_goal, shipped_recipes


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    recipes = commands.add_parser("recipes", help="list, show or copy the shipped recipes")
    recipes.set_defaults(command=_list)
    actions = recipes.add_subparsers(metavar="ACTION")
    actions.add_parser("list", help="names and goals; without any action, too").set_defaults(command=_list)
    show = actions.add_parser("show", help="print one")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(command=_show)
    copy = actions.add_parser("copy", help="write one to a file of your own")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("file", metavar="FILE", type=Path)
    copy.set_defaults(command=_copy)


def _list(_: argparse.Namespace) -> None:
    for name, path in shipped_recipes().items():
        print(f"{name:<20} {recipe_goal(path)}")


def _show(options: argparse.Namespace) -> None:
    print(read_text(find_recipe(options.name)), end="")


def _copy(options: argparse.Namespace) -> None:
    source = find_recipe(options.name)
    if options.file.is_file():
        raise FileExistsError(f"Expected {options.file} not to exist, but it does. Choose another name.")
    check_file(options.file, overwrite=False, option="FILE")
    write_bytes(options.file, source.read_bytes())
    say(f"wrote {options.file}")

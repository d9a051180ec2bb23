"""`finetune check`: what is wrong or doubtful with a table and its recipe."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import Commands, add_recipe, check_file
from finetune.core.console import say
from finetune.core.errors import CheckpointError, FileError, RecipeError, TableError
from finetune.core.places import require_place
from finetune.core.shipped import find_recipe

if TYPE_CHECKING:
    from finetune.data.checks.check import Report


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    check = commands.add_parser(
        "check",
        help="every fault of table and images, then of the recipe, before anything is trained",
        description="Finds every fault of table and images, then builds what the recipe names, as `finetune fit` does "
        "first. Exit code 2 on any error, 0 with warnings.",
    )
    add_recipe(check)
    check.add_argument("--full", action="store_true", help="decode every image")
    check.add_argument(
        "--output",
        metavar="JSON",
        type=Path,
        default=Path("check.json"),
        help="file of all findings, replaced where there is one (default: %(default)s)",
    )
    check.add_argument("--preview", metavar="FILE", type=Path, help="show training rows in FILE.png or FILE.html")
    check.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    path = find_recipe(options.config)
    check_file(options.output, overwrite=True)
    from finetune.core.files import write_json
    from finetune.data.checks.check import Report, check_table, read_settings
    from finetune.data.preview.preview import check_preview_name

    if options.preview:
        check_preview_name(options.preview)
        require_place(options.preview)
    settings = read_settings(path, options.words)
    report = check_table(settings, options.full) if settings else Report()
    say("\n".join(report.lines()), flush=True)
    faults, shown = len(report.faults), len(report.concerns)
    try:
        _check_recipe(path, options, report)
    except (TableError, RecipeError, CheckpointError, FileError) as error:
        report.recipe_error = str(error)
        say(f"error: {error}")
    for line in [*report.errors(faults), *report.warnings(shown)]:
        say(line)
    write_json(options.output, report.as_json())
    say(f"{report.total}; all in {options.output}")
    return 2 if report.failed else 0


def _check_recipe(path: Path, options: argparse.Namespace, report: "Report") -> None:
    """Adds what the recipe makes of the rows, shows some of them, and builds what a run would."""
    from finetune.data.preview.preview import write_preview
    from finetune.pipeline.check import add_limits, require_sound
    from finetune.pipeline.recipe import read_recipe
    from finetune.pipeline.run_recipe import quieten

    quieten()
    recipe = read_recipe(path, options.words, options.trust)
    data = recipe.build_data()
    add_limits(report, recipe, data)
    if report.rows is not None and options.preview and len(report.rows.indices("train")):
        say(write_preview(options.preview, data.dataset("train", training=True)))
    require_sound(report, recipe, data)

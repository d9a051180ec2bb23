"""The commands, free of torch until one of them needs it."""

import argparse
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.commands.export import add_export
from finetune.commands.suspects import add_suspects
from finetune.core.errors import CheckpointError, RecipeError, TableError, did_you_mean
from finetune.core.shipped import find_recipe, recipe_goal, shipped_folder, shipped_recipes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after the program's name; None takes the process's own.

    Returns:
        Exit code: 0, 2 where the input is at fault, or 143 where SIGTERM stopped it.
    """
    parser = _build_parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and not getattr(options, "takes_recipe_keys", False):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    options.overrides = overrides
    try:
        code: int | None = options.command(options)
    except (TableError, RecipeError, CheckpointError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        if stop.code is not None:
            raise
        print("error: stopped by SIGTERM; what is there of the run is not finished", file=sys.stderr)
        return 143  # Lightning's SIGTERMException has no code, and would say that all went well
    return code or 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune",
        description="Fine-tune a pretrained ALIGN and get back a plain checkpoint with its proof.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_recipe_commands(commands)
    _add_checkpoint_commands(commands)

    prepare = commands.add_parser("prepare", help="run a shipped script that prepares data", add_help=False)
    names = "coyo, digits, emoji, from_hub, karpathy, shard, stamps"
    prepare.add_argument("name", metavar="NAME", nargs="?", help=names)
    prepare.set_defaults(command=_prepare, takes_recipe_keys=True)

    recipes = commands.add_parser("recipes", help="list, show or copy the shipped recipes")
    actions = recipes.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="names and goals").set_defaults(command=_list_recipes)
    show = actions.add_parser("show", help="print one")
    show.add_argument("name")
    show.set_defaults(command=_show_recipe)
    copy = actions.add_parser("copy", help="write one to a file of your own")
    copy.add_argument("name")
    copy.add_argument("file", type=Path)
    copy.set_defaults(command=_copy_recipe)
    return parser


def _add_recipe_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    fit = commands.add_parser(
        "fit",
        help="the whole run: measure, train, merge, prove, measure again",
        epilog="Every recipe key is an option too, as --data.batch_size 32; --keys lists them.",
        allow_abbrev=False,
    )
    fit.add_argument("--config", metavar="RECIPE", help="a path, or the name of a shipped recipe")
    fit.add_argument("--keys", action="store_true", help="print every recipe key with its type, default and meaning")
    fit.add_argument("--run", metavar="NAME", help="name of the run's folder (default: the recipe's)")
    fit.add_argument("--runs", metavar="DIR", help="where the run's folder is made (default: runs)")
    fit.add_argument("--overwrite", action="store_true", help="replace a run of that name")
    fit.set_defaults(command=_fit)

    test = commands.add_parser(
        "test",
        help="evaluate a run, or an untouched checkpoint",
        usage="finetune test RUN | --config RECIPE [--key value ...]",
        allow_abbrev=False,
    )
    test.add_argument("--config", metavar="RECIPE", help="a recipe whose checkpoint is evaluated as it is")
    test.set_defaults(command=_test)

    for command in (fit, test, _add_check(commands), add_suspects(commands)):
        command.add_argument(
            "--trust", metavar="MODULE", action="append", default=[], help="let the recipe name this module's classes"
        )
        command.set_defaults(takes_recipe_keys=True)


def _add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    check = commands.add_parser(
        "check",
        help="every fault of table and images, then the recipe, before any weight is loaded",
        epilog="Every recipe key is an option too. Exit code 2 on any error, 0 with warnings.",
        allow_abbrev=False,
    )
    check.add_argument("--config", metavar="RECIPE", required=True, help="a path, or the name of a shipped recipe")
    check.add_argument("--full", action="store_true", help="decode every image")
    check.add_argument("--output", metavar="JSON", type=Path, default=Path("check.json"), help="file of all findings")
    check.add_argument("--preview", metavar="FILE", type=Path, help="show training rows in FILE.png or FILE.html")
    check.set_defaults(command=_check)
    return check


def _add_checkpoint_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    add_export(commands)

    verify = commands.add_parser("verify", help="re-check a merged folder against its proof, on this machine")
    verify.add_argument("folder", metavar="DIR", type=Path)
    verify.set_defaults(command=_verify)

    report = commands.add_parser("report", help="rebuild a run's report.html from its files")
    report.add_argument("run_folder", metavar="RUN")
    report.set_defaults(command=_report)

    classify = commands.add_parser("classify", help="zero-shot probabilities of labels for images")
    classify.add_argument("model", metavar="MODEL", help="a hub id, a folder, align-mini, or a run")
    classify.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files or folders of them")
    classify.add_argument("--label", action="append", required=True, help="a label, worded as the model reads it")
    classify.add_argument("--output", metavar="CSV", type=Path, help="write image, label, probability")
    classify.add_argument("--overwrite", action="store_true", help="replace CSV")
    classify.set_defaults(command=_classify)


def _fit(options: argparse.Namespace) -> None:
    if options.keys:
        from finetune.pipeline.recipe import describe_keys

        print(describe_keys())
        return
    if options.config is None:
        raise RecipeError("Expected --config RECIPE. `finetune recipes list` names the shipped ones.")
    path = find_recipe(options.config)
    from finetune.pipeline.experiment import describe, run_experiment
    from finetune.pipeline.recipe import read_recipe

    names = {"--run.name": options.run, "--run.folder": options.runs}
    settings = [word for key, value in names.items() if value is not None for word in (key, value)]
    recipe = read_recipe(path, [*options.overrides, *settings], options.trust)
    print(describe(run_experiment(recipe, options.overwrite)))


def _test(options: argparse.Namespace) -> None:
    words: list[str] = options.overrides
    run = words.pop(0) if words and not words[0].startswith("--") else None
    if (run is None) == (options.config is None):
        raise RecipeError("Expected either RUN or --config RECIPE.")
    path = find_recipe(options.config) if options.config else None
    from finetune.pipeline.experiment import measure_checkpoint, measure_run
    from finetune.pipeline.recipe import read_recipe

    if path is not None:
        print(measure_checkpoint(read_recipe(path, words, options.trust)))
    elif run is not None:
        print(measure_run(run, words, options.trust))


def _check(options: argparse.Namespace) -> int:
    path = find_recipe(options.config)
    from finetune.core.files import write_json
    from finetune.data.checks.check import Report, check_table, read_settings
    from finetune.data.preview.preview import check_preview_name, write_preview

    if options.preview:
        check_preview_name(options.preview)
    settings = read_settings(path, options.overrides)
    report = check_table(settings, options.full) if settings else Report()
    print("\n".join(report.lines()), flush=True)
    from finetune.pipeline.recipe import read_recipe

    told = len(report.concerns)
    try:
        data = read_recipe(path, options.overrides, options.trust).build_data()
        if report.rows is not None:
            report.concerns += data.find_limits(report.rows, report.sizes)
            if options.preview and len(report.rows.indices("train")):
                data.rows = report.rows
                print(write_preview(options.preview, data.dataset("train", training=True)))
    except (TableError, RecipeError, CheckpointError) as error:
        report.recipe_error = str(error)
        print(f"error: {error}")
    for concern in report.concerns[told:]:
        print(f"warning: {concern.message}")
    write_json(options.output, report.as_json())
    print(f"{report.total}; all in {options.output}")
    return 2 if report.failed else 0


def _verify(options: argparse.Namespace) -> None:
    from finetune.export.proof import verify
    from finetune.run.results import format_proof

    print(f"{options.folder}: {format_proof(verify(options.folder))}")


def _report(options: argparse.Namespace) -> None:
    from finetune.report.page import write_report

    print(write_report(options.run_folder))


def _classify(options: argparse.Namespace) -> None:
    from finetune.core.files import refuse_existing, write_text

    if options.output:
        if options.output.is_dir() or not options.output.parent.is_dir():
            raise RecipeError(f"Expected --output to name a file in a folder that exists, but got {options.output}.")
        refuse_existing(options.output, options.overwrite)
    from finetune.inference.classify import classify, list_images

    found = classify(options.model, list_images(options.images), options.label)
    for image, rows in found.groupby("image", sort=False):
        print(image)
        for label, probability in zip(rows["label"], rows["probability"], strict=True):
            print(f"  {probability:.6f}  {label}")
    if options.output:
        write_text(options.output, found.to_csv(index=False, lineterminator="\n"))


def _prepare(options: argparse.Namespace) -> int:
    scripts = {path.stem: path for path in shipped_folder("datasets").glob("*.py")}
    if options.name is None:
        print(f"usage: finetune prepare NAME [OPTIONS]\n\nNAME: {', '.join(sorted(scripts))}")
        return 0
    if options.name not in scripts:
        raise RecipeError(
            f"Expected the name of a data set, but got {options.name!r}. {did_you_mean(options.name, scripts)}"
        )
    script = runpy.run_path(str(scripts[options.name]), run_name="finetune_prepare")
    code: int = script["main"](options.overrides)
    return code


def _list_recipes(_: argparse.Namespace) -> None:
    for name, path in shipped_recipes().items():
        print(f"{name:<20} {recipe_goal(path)}")


def _show_recipe(options: argparse.Namespace) -> None:
    print(find_recipe(options.name).read_text(encoding="utf-8"), end="")


def _copy_recipe(options: argparse.Namespace) -> None:
    source = find_recipe(options.name)
    if options.file.exists():
        raise FileExistsError(f"Expected {options.file} not to exist, but it does. Choose another name.")
    shutil.copyfile(source, options.file)

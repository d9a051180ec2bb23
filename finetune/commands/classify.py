"""`finetune classify`: the probabilities of labels for images."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import Commands, add_anyway, add_output, add_separator, check_file
from finetune.core.console import say
from finetune.core.errors import RecipeError
from finetune.core.places import show

if TYPE_CHECKING:
    from finetune.inference.classify import Classified
    from finetune.inference.list_parts import Images


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    classify = commands.add_parser("classify", help="probabilities of labels for images, zero-shot or by a head")
    classify.add_argument("model", metavar="MODEL", help="a hub id, a folder, align-mini, or a run")
    classify.add_argument("images", metavar="IMAGE", nargs="+", help="image files, folders, tables, tars; - for paths")
    classify.add_argument(
        "--label",
        action="append",
        default=[],
        help="a label, worded as the model reads it; two or more. Without any a run answers for its classes",
    )
    classify.add_argument("--labels", metavar="FILE", type=Path, help="labels, one a line; or CSV: label,display name")
    classify.add_argument(
        "--template",
        action="append",
        default=[],
        help="a sentence with {} where labels go; may be repeated. Without any, names of --labels and a run's classes "
        "go into the run's own, and each --label stands alone",
    )
    classify.add_argument("--truth", metavar="COLUMN", help="a table's column of labels, to measure the answers by")
    classify.add_argument(
        "--label_separator",
        metavar="TEXT",
        help="what separates several labels in a cell of --truth (default: the run's)",
    )
    classify.add_argument("--column", default="image", help="a table's column of images (default: image)")
    add_separator(classify)
    add_anyway(classify, "with --truth images that a run was trained on or chosen by")
    add_output(classify, "TABLE", "write image, label, probability, as .csv or .parquet, instead of listing them")
    classify.set_defaults(command=_classify)


def _classify(options: argparse.Namespace) -> None:
    from finetune.core.frame_files import check_ending, write_frame

    check_file(options.output, options.overwrite)
    check_ending(options.output)
    if options.label and options.labels:
        raise RecipeError("Expected --label or --labels, but got both. Write all labels into the file.")
    if options.anyway and options.truth is None:
        raise RecipeError(
            "Expected --anyway with --truth only, but got no --truth. Remove it, or name the column of labels."
        )
    from finetune.data.checks.seen import FORGOTTEN
    from finetune.inference.classifiers import choose_classifier, name_labels
    from finetune.inference.classify import ask
    from finetune.inference.embed import find_device
    from finetune.inference.list_parts import read_images
    from finetune.inference.true_labels import read_seen_table, read_true_labels
    from finetune.run.folder import RunFolder

    listed = read_images(options.images, options.column, options.separator)
    labels = name_labels(options.labels) if options.labels else options.label
    classifier = choose_classifier(options.model, labels, options.template)
    truth, several, seen = None, 0, 0
    if options.truth is not None:
        separator = classifier.require_separator(options.label_separator)
        table = None if options.anyway else read_seen_table(options.model)
        if table is None and not options.anyway and RunFolder(Path(options.model)).is_finished:
            say(f"warning: {FORGOTTEN} Images it was trained on cannot be told from others.", file=sys.stderr)
        truth, several, seen = read_true_labels(
            options.images, options.column, options.truth, listed.images, separator, table, options.separator
        )
    found = ask(classifier, listed.images, find_device(), truth)
    if options.output:
        write_frame(options.output, found.rows)
    _show(found, listed, options.output)
    if options.truth is not None:
        _show_accuracy(found, several, seen)


def _show(found: "Classified", listed: "Images", output: Path | None) -> None:
    """Shows all probabilities, or the file that holds them, and what was left out."""
    from finetune.data.checks.concerns import count

    say(f"answered by {found.answered_by}")
    if output:
        say(f"answers     {count(len(listed.images) - len(found.skipped), 'image', 'images')}, in {show(output)}")
    else:
        _show_probabilities(found)
    skipped = [*listed.skipped, *found.skipped]
    if skipped:
        say(f"skipped     {count(len(skipped), 'image', 'images')}, as they cannot be read")
    for path, reason in skipped:
        say(f"  {path}: {reason}")
    if listed.hidden:
        say(f"left out    {count(len(listed.hidden), 'hidden file', 'hidden files')}, such as {listed.hidden[0]}")


def _show_probabilities(found: "Classified") -> None:
    """Shows the labels of each image, the most probable first."""
    for image, rows in found.rows.groupby("image", sort=False):
        say(image)
        best_first = rows.sort_values("probability", ascending=False, kind="stable")
        for label, probability in zip(best_first["label"], best_first["probability"], strict=True):
            say(f"  {probability:.6f}  {label}")


def _show_accuracy(found: "Classified", several: int, seen: int) -> None:
    """Shows how many answers are right, and on how many images that was measured."""
    from finetune.data.checks.concerns import count

    if several:
        say(f"not counted {count(several, 'image', 'images')} of which rows say different things")
    if seen:
        images = count(seen, "image", "images")
        say(f"not counted {images} that the run was trained on or chosen by; --anyway counts them")
    if not found.measured:
        say(f"accuracy    of no {'other ' if several or seen else ''}image is the label known")
        return
    (name, figure), *others = found.metrics.items()
    say(f"{name:<11} {figure:.4f} of {count(found.measured, 'labelled image', 'labelled images')}")
    for name, figure in others:
        say(f"  {figure:.4f}  {name}")

"""`finetune classify`: the probabilities of labels for images."""

import argparse

from finetune.commands.options import Commands, add_output, check_file
from finetune.core.console import say


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
        help="a label, worded as the model reads it; two or more. Without any a run's head answers, for its classes",
    )
    classify.add_argument("--column", default="image", help="a table's column of images (default: image)")
    add_output(classify, "TABLE", "write image, label, probability, as .csv or .parquet")
    classify.set_defaults(command=_classify)


def _classify(options: argparse.Namespace) -> None:
    from finetune.core.frame_files import check_ending, write_frame

    check_file(options.output, options.overwrite)
    check_ending(options.output)
    from finetune.data.checks.concerns import count
    from finetune.inference.classify import classify_listed
    from finetune.inference.embed import find_device
    from finetune.inference.list_parts import read_images

    images, faulty, hidden = read_images(options.images, options.column)
    found = classify_listed(options.model, images, options.label, find_device())
    say(f"answered by {found.answered_by}")
    for image, rows in found.rows.groupby("image", sort=False):
        say(image)
        for label, probability in zip(rows["label"], rows["probability"], strict=True):
            say(f"  {probability:.6f}  {label}")
    skipped = [*faulty, *found.skipped]
    if skipped:
        say(f"skipped     {count(len(skipped), 'image', 'images')}, as they cannot be read")
    for path, reason in skipped:
        say(f"  {path}: {reason}")
    if hidden:
        say(f"left out    {count(len(hidden), 'hidden file', 'hidden files')}, such as {hidden[0]}")
    if options.output:
        write_frame(options.output, found.rows)

"""`finetune classify`: the probabilities of labels for images."""

import argparse
from pathlib import Path

from finetune.commands.options import Commands, add_output, check_file


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    classify = commands.add_parser("classify", help="probabilities of labels for images, zero-shot or by a head")
    classify.add_argument("model", metavar="MODEL", help="a hub id, a folder, align-mini, or a run")
    classify.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files or folders of them")
    classify.add_argument(
        "--label",
        action="append",
        default=[],
        help="a label, worded as the model reads it; without any a run's head answers, for its classes",
    )
    add_output(classify, "CSV", "write image, label, probability")
    classify.set_defaults(command=_classify)


def _classify(options: argparse.Namespace) -> None:
    check_file(options.output, options.overwrite)
    from finetune.core.files import write_text
    from finetune.inference.classify import classify, list_images

    found = classify(options.model, list_images(options.images), options.label)
    print(f"answered by {found.answered_by}")
    for image, rows in found.rows.groupby("image", sort=False):
        print(image)
        for label, probability in zip(rows["label"], rows["probability"], strict=True):
            print(f"  {probability:.6f}  {label}")
    if options.output:
        write_text(options.output, found.rows.to_csv(index=False, lineterminator="\n"))

"""Writes a table of images that lie in folders named by class.

    python datasets/folders.py photos --output photos.csv
    python datasets/folders.py photos --per_class_val 2 --per_class_test 5

The folders are `photos/cat/1.jpg`, or `photos/train/cat/1.jpg` beside `photos/test/...`. The table has the columns

- image: path relative to the table; relative to the folder of images if that does not lie beside or below the table;
- label: the name of the folder that holds the image;
- split: train, val or test, if folders are so named (valid, validation, dev, ... too), or with --per_class_val or
  --per_class_test, which draw as many images of each class from those that are train. Without it, the recipe draws.

A draw depends on the seed and on the paths of the images alone, so every run on the same folders writes the same
bytes. Files that are no images by their ending, hidden files, images outside of a class's folder and links to folders
are left out and counted. No image is opened; `finetune check --full` does that.
"""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from finetune.core.csv_text import format_rows
from finetune.core.errors import RecipeError, TableError
from finetune.core.files import refuse_existing, write_text
from finetune.core.places import show
from finetune.core.shipped import script
from finetune.data.checks.concerns import count
from finetune.data.prepare.images import EXTENSIONS
from finetune.data.table.splits import OTHER_NAMES, SPLITS

SHOWN = 10
LEFT_OUT = {
    "file that is no image": "files that are no images",
    "hidden file": "hidden files",
    "hidden folder": "hidden folders",
    "image outside of a class's folder": "images outside of a class's folder",
    "image whose path is not UTF-8": "images whose path is not UTF-8",
    "link to a folder": "links to folders",
}


class Found(NamedTuple):
    """An image in a class's folder.

    Attributes:
        path: Path relative to the folder of images, with slashes.
        label: The name of the folder that holds it.
        split: The split that a folder is named by, or an empty text.
    """

    path: str
    label: str
    split: str


def find_images(folder: Path, left_out: Counter[str]) -> list[Found]:
    """Finds the images in folders named by class, in the order of their paths.

    Args:
        folder: The folder.
        left_out: Receives how many files were left out, and why.

    Raises:
        TableError: If there are none, some folders alone are splits, or two folders of a split have the same name.
    """
    if not folder.is_dir():
        raise TableError(f"Expected {folder} to be a folder of images, but got none there. Correct its path.")
    paths = sorted(_list_images(folder, left_out))
    splits = _name_splits(folder, paths)
    found, places = list[Found](), dict[tuple[str, str], str]()
    for path in paths:
        parts = path.split("/")
        split = splits.get(parts[0], "") if len(parts) > 1 else ""
        if len(parts) < (3 if split else 2):
            left_out["image outside of a class's folder"] += 1
            continue
        place = path.rpartition("/")[0]
        known = places.setdefault((split, parts[-2]), place)
        if known != place and not (split and known.split("/")[1:] == parts[1:-1]):  # train and training
            raise TableError(
                f"Expected folders of different names in {folder}, but got {known!r} and {place!r}, which would be one "
                "class. Rename one of them if they are two, or move the images of both into one."
            )
        found.append(Found(path, parts[-2], split))
    if not found:
        raise TableError(
            f"Expected {folder} to hold folders of images, named by class, but got none. Name the folder around those "
            "of the classes."
        )
    return found


def _list_images(folder: Path, left_out: Counter[str]) -> Iterator[str]:
    """Yields the paths of files that are images by their ending."""
    for place, folders, files in os.walk(folder):
        left_out["hidden folder"] += sum(name.startswith(".") for name in folders)
        links = {name for name in folders if (Path(place) / name).is_symlink()}
        left_out["link to a folder"] += len([name for name in links if not name.startswith(".")])
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
        for name in files:
            path = (Path(place) / name).relative_to(folder).as_posix()
            if name.startswith("."):
                left_out["hidden file"] += 1
            elif Path(name).suffix.lower() not in EXTENSIONS:
                left_out["file that is no image"] += 1
            elif show(path) != path:
                left_out["image whose path is not UTF-8"] += 1
            else:
                yield path


def _name_splits(folder: Path, paths: Sequence[str]) -> dict[str, str]:
    """Returns the split of each folder that is named by one, if folders around those of the classes are."""
    own = OTHER_NAMES | {split: split for split in SPLITS}
    depths: dict[str, int] = {}
    for path in paths:
        top, *rest = path.split("/")
        if rest:
            depths[top] = max(depths.get(top, 0), len(rest))
    splits = {top: own[top.casefold()] for top, depth in depths.items() if depth > 1 and top.casefold() in own}
    others = [top for top in depths if top not in splits]
    if splits and (flat := [top for top in others if top.casefold() in own]):
        raise TableError(
            f"Expected {folder / flat[0]} to hold folders named by class, as {next(iter(splits))!r} does, but got "
            "images without one. Sort them into folders of their classes, or move them away."
        )
    if splits and others:
        raise TableError(
            f"Expected all folders in {folder} that hold images to be splits ({', '.join(SPLITS)}) or none, but got "
            f"{next(iter(splits))!r} and {others[0]!r}. Move the others away, or rename the folders that are no splits."
        )
    return splits


def draw_splits(found: Sequence[Found], val: int, test: int, seed: int) -> list[Found]:
    """Draws as many validation and test images of each class from those that are train.

    Args:
        found: The images.
        val: Number of validation images of each class.
        test: Number of test images of each class.
        seed: Another number draws other images.

    Raises:
        TableError: If a class has too few images for both and one to train on.
        RecipeError: If a split is asked for that a folder is named by, or a number is negative.
    """
    for name, wanted in (("val", val), ("test", test)):
        if wanted < 0:
            raise RecipeError(f"Expected --per_class_{name} to be a number from 0, but got {wanted}.")
        if wanted and any(image.split == name for image in found):
            raise RecipeError(
                f"Expected no --per_class_{name}, as a folder is named {name}, but got {wanted}. Leave it out."
            )
    if not val + test:
        return list(found)
    classes: dict[str, list[Found]] = {}
    for image in found:
        if image.split in ("", "train"):
            classes.setdefault(image.label, []).append(image._replace(split="train"))
    few = [f"{label!r} {len(images)}" for label, images in classes.items() if len(images) <= val + test]
    if few:
        more = f" and {len(few) - SHOWN:,} more" if len(few) > SHOWN else ""
        raise TableError(
            f"Expected each class to have at least {val + test + 1} images to draw from, {val} for val, {test} for "
            f"test and one to train on, but got {', '.join(few[:SHOWN])}{more}. Lower --per_class_val or "
            "--per_class_test."
        )
    drawn: dict[str, str] = {}
    for images in classes.values():
        order = sorted((blake2b(f"{seed}/{image.path}".encode()).digest(), image.path) for image in images)
        drawn |= {path: "test" if at < test else "val" for at, (_, path) in enumerate(order[: val + test])}
    return [image._replace(split=drawn.get(image.path, image.split or "train")) for image in found]


def write_table(folder: Path, found: Sequence[Found], table: Path, overwrite: bool) -> bool:
    """Writes the table, and returns whether its paths are relative to it, and not to the folder of images.

    Args:
        folder: The folder of images.
        found: The images.
        table: The table.
        overwrite: Whether an existing table is replaced.

    Raises:
        FileExistsError: If there is a table already, and `overwrite` is false.
    """
    refuse_existing(table, overwrite)
    place, around = Path(os.path.abspath(folder)), Path(os.path.abspath(table)).parent  # noqa: PTH100 (removes `..`)
    is_below = place.is_relative_to(around)
    prefix = place.relative_to(around) if is_below else Path()
    with_split = any(image.split for image in found)
    rows = ([(prefix / image.path).as_posix(), image.label, *([image.split] if with_split else [])] for image in found)
    write_text(table, format_rows(["image", "label", *(["split"] if with_split else [])], rows))
    return is_below


def leads_outside(folder: Path, found: Sequence[Found], around: Path) -> bool:
    """Whether links lead some image out of a folder, which a table allows only when it is asked to.

    Args:
        folder: The folder of images.
        found: The images.
        around: The other folder.
    """
    root, paths = around.resolve(), [folder / image.path for image in found]
    linked = {path.parent for path in paths} | {path for path in paths if path.is_symlink()}
    return not all(path.resolve().is_relative_to(root) for path in linked)


def describe(table: Path, found: Sequence[Found], left_out: Counter[str], options: Sequence[str]) -> str:
    """Says what was written and left out, and how a recipe reads it."""
    labels = Counter(image.label for image in found)
    splits = Counter(image.split for image in found if image.split)
    counts = ", ".join(f"{splits[split]:,} {split}" for split in SPLITS if splits[split])
    least, most = min(labels.values()), max(labels.values())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    lines = [
        f"{table}: {len(found):,} images{f' ({counts})' if counts else ''} of {len(labels):,} classes, {each} each"
    ]
    reasons = [count(left_out[one], one, many) for one, many in LEFT_OUT.items() if left_out[one]]
    lines += [f"left out: {', '.join(reasons)}"] if reasons else []
    if splits and not splits["test"]:
        lines.append("no image is test: draw some with --per_class_test")
    words = ["finetune", "check", "--config", "few_shot", "--data.table.path", str(table), *options]
    return "\n".join([*lines, shlex.join([*words, *(["--data.table.split", "split"] if splits else [])])])


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder around those of the classes, or of the splits")
    parser.add_argument("--output", type=Path, metavar="CSV", help="table to write (FOLDER.csv, beside the folder)")
    parser.add_argument("--per_class_val", type=int, default=0, metavar="N", help="validation images to draw of each")
    parser.add_argument("--per_class_test", type=int, default=0, metavar="N", help="test images to draw of each class")
    parser.add_argument("--seed", type=int, default=0, help="another number draws other images (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing table")
    options = parser.parse_args(argv)
    folder: Path = options.folder
    named = folder if folder.name not in ("", "..") else folder.resolve()
    table: Path = options.output or named.with_name(f"{named.name}.csv")
    left_out = Counter[str]()
    found = find_images(folder, left_out)
    found = draw_splits(found, options.per_class_val, options.per_class_test, options.seed)
    is_below = write_table(folder, found, table, options.overwrite)
    words = [] if is_below else ["--data.table.images", str(folder)]
    if leads_outside(folder, found, table.absolute().parent if is_below else folder):
        words += ["--data.table.outside", "true"]
    return describe(table, found, left_out, words)


if __name__ == "__main__":
    sys.exit(main())

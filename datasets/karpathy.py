r"""Turns Karpathy's split of COCO, Flickr30k or Flickr8k into a table with a row for each caption.

    python datasets/karpathy.py --splits dataset_flickr30k.json --images flickr30k-images --output data/flickr30k
    python datasets/karpathy.py --splits dataset_coco.json --images coco --output data/coco

Source: `dataset_coco.json`, `dataset_flickr30k.json` and `dataset_flickr8k.json` of *Deep Visual-Semantic Alignments
for Generating Image Descriptions* (A. Karpathy and L. Fei-Fei, 2015, arXiv 1412.2306), the splits that published tables
of image-text retrieval use; and the data set's images, for COCO the folder that holds `train2014` and `val2014`.

Writes `captions.csv` with the columns

- image: path relative to the folder of images;
- caption: a sentence as it is; an image has five or more;
- split: train, val or test; `restval` of COCO (30,504 images) is train, or left out with `--without-restval`;
- image_id: the file's `imgid`, equal for the captions of an image;
- caption_id: the file's `sentid`.

If an image, a sentence or a split is missing, the script writes nothing and lists everything that is wrong. `--only
test` takes only the test images and needs no others. Every run writes the same bytes.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.core.csv_text import format_rows
from finetune.core.errors import TableError, did_you_mean
from finetune.core.files import require_own, write_folder, write_text
from finetune.core.shipped import script
from finetune.data.table.cells import as_strings
from finetune.data.table.faults import SHOWN, Fault
from finetune.data.table.image_files import ImageSearch
from finetune.data.table.splits import SPLITS

WRITTEN = {"captions.csv"}
COLUMNS = ["image", "caption", "split", "image_id", "caption_id"]
RESTVAL = "restval"  # images of COCO's val2014 that Karpathy put neither in val nor in test


def read_images(path: Path) -> list[dict[str, Any]]:
    """Reads the list `images` of a split file.

    Args:
        path: The file.

    Raises:
        TableError: If the file is none of Karpathy's.
    """
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        if not (isinstance(images, list) and images and all(isinstance(image, dict) for image in images)):
            raise ValueError("no list of images")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TableError(
            f"Expected {path} to be one of Karpathy's split files, a JSON object with a list 'images', but got: "
            f"{error!r}. Name dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json."
        ) from error
    return images


def build_rows(
    file: str, images: Sequence[dict[str, Any]], only: Sequence[str], without_restval: bool, faults: list[Fault]
) -> Iterator[dict[str, Any]]:
    """Yields a row for each sentence of the chosen images, in the file's order.

    Args:
        file: The split file, for the faults.
        images: The split file's images.
        only: Splits to keep.
        without_restval: Whether to leave out the images of `restval`.
        faults: Receives a fault for each image that lacks something; its row is the position in the list, from 0.
    """
    for position, image in enumerate(images):
        found = image.get("split")
        split = "train" if found == RESTVAL else found
        if split not in SPLITS:
            repair = did_you_mean(str(found), (*SPLITS, RESTVAL))
            faults.append(Fault(file, "train, restval, val or test", repair, position, "split", str(found)))
        elif split not in only or (without_restval and found == RESTVAL):
            continue
        name, folder, sentences = image.get("filename"), image.get("filepath", ""), image.get("sentences")
        if not (isinstance(name, str) and name and isinstance(folder, str)):
            repair = "Download the file again."
            faults.append(Fault(file, "the name of an image file", repair, position, "filename", str(name)))
            continue
        if not (isinstance(sentences, list) and sentences and all(_has_text(sentence) for sentence in sentences)):
            rule, repair = "sentences with a text 'raw' each", "Write them, or remove the image from the file."
            faults.append(Fault(file, rule, repair, position, "sentences", str(sentences)))
            continue
        for sentence in sentences:
            yield {
                "image": f"{folder}/{name}" if folder else name,
                "caption": sentence["raw"].strip(),
                "split": split,
                "image_id": image.get("imgid", position),
                "caption_id": sentence.get("sentid", ""),
            }


def _has_text(sentence: Any) -> bool:
    return isinstance(sentence, dict) and isinstance(sentence.get("raw"), str) and bool(sentence["raw"].strip())


def find_missing(file: str, rows: Sequence[dict[str, Any]], folder: Path) -> Iterator[Fault]:
    """Yields a fault for each missing image.

    Args:
        file: The split file, for the faults.
        rows: The rows.
        folder: The folder of images.
    """
    images = list(dict.fromkeys(row["image"] for row in rows))
    _, refused = ImageSearch(str(folder.absolute())).find(as_strings(images))
    for image, reason in refused.items():
        yield Fault(file, reason.rule, reason.repair, column="filename", value=image)


def prepare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Writes the table, all or nothing, and returns its rows.

    Args:
        options: The script's options.

    Raises:
        TableError: If the file is none of Karpathy's, or lacks something.
    """
    faults: list[Fault] = []
    file, images = str(options.splits), read_images(options.splits)
    rows = list(build_rows(file, images, options.only, options.without_restval, faults))
    faults += find_missing(file, rows, options.images)
    if not (rows or faults):
        rule, repair = f"images of {', '.join(options.only)}", "Name other splits with --only."
        faults.append(Fault(file, rule, repair))
    if faults:
        more = [f"… and {len(faults) - SHOWN:,} more"] if len(faults) > SHOWN else []
        raise TableError("\n".join([*map(str, faults[:SHOWN]), *more]))
    with write_folder(options.output, overwrite=True) as folder:
        write_text(folder / "captions.csv", format_rows(COLUMNS, ([row[name] for name in COLUMNS] for row in rows)))
    return rows


def describe(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Says what was written, and how a recipe reads it."""
    images = Counter({row["image_id"]: row["split"] for row in rows}.values())
    counts = Counter(row["split"] for row in rows)
    listed = ", ".join(f"{images[split]:,} {split} images with {counts[split]:,}" for split in SPLITS if counts[split])
    table = options.output / "captions.csv"
    words = ["--data.table.path", str(table), "--data.table.images", str(options.images)]
    return (
        f"{table}: {len(rows):,} captions ({listed})\n"
        f"{shlex.join(['finetune', 'test', '--config', 'karpathy', *words])}"
    )


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=Path, required=True, metavar="JSON", help="Karpathy's split file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the data set's images")
    parser.add_argument("--output", type=Path, default=Path("data/karpathy"), help="folder to write (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=SPLITS, default=SPLITS, help="splits to keep (all)")
    parser.add_argument("--without-restval", action="store_true", help="leave COCO's restval out of train")
    options = parser.parse_args(argv)
    require_own(options.output, lambda names: names == WRITTEN)
    return describe(prepare(options), options)


if __name__ == "__main__":
    sys.exit(main())

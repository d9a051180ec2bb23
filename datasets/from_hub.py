"""Turns a data set of the hub, images with captions or with labels, into image files and a table.

    python datasets/from_hub.py AI-Lab-Makerere/beans --output data/beans
    python datasets/from_hub.py ILSVRC/imagenet-1k --split train=train --split validation=test --output data/imagenet

Source: anything that Hugging Face's library `datasets` loads (pip install 'datasets>=5'): a name of the hub, a local
folder (images with a `metadata.csv`, images in folders of their classes, Parquet), or what its `save_to_disk` wrote.
Each data set has the licence that its page on the hub states.

The image is the column of the library's type Image, the label the column of type ClassLabel; without a label, the
caption is the column of texts or lists of texts. If the types leave a choice, `--image`, `--label` and `--caption`
decide.

Writes `table.csv` with the columns

- image: path relative to the table. A BMP, GIF, JPEG, PNG, TIFF or WebP keeps its bytes, another format becomes a PNG.
  A picture of several rows is written once;
- caption; or captions, a JSON list, where a row has several;
- label: the name of the class;
- split: train, val or test by the names of the data set's splits, or as `--split` says; splits that `--split` does not
  name are not read.

Rows without a readable image, a caption or a label (many test splits hide theirs) are left out and counted. `--limit`
downloads no more than needed. Every run on the same data writes the same bytes.
"""

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from finetune.core.csv_text import csv_writer
from finetune.core.errors import TableError, did_you_mean
from finetune.core.files import require_own, write_folder
from finetune.core.shipped import script
from finetune.data.prepare.pictures import Pictures
from finetune.data.table.splits import OTHER_NAMES, SPLITS

WRITTEN = {"images", "table.csv"}
SAVED = ("dataset_dict.json", "state.json")  # files that save_to_disk writes


class Columns(NamedTuple):
    """The data set's columns of the image, of the captions (none, one or several) and of the label."""

    image: str
    captions: tuple[str, ...]
    label: str | None


def import_library() -> Any:
    """Imports Hugging Face's library. If it is missing, Python would import the folder of this script instead."""
    try:
        library = importlib.import_module("datasets")
        if hasattr(library, "load_dataset"):
            return library
        reason = "it is not"
    except ImportError as error:
        reason = str(error)
    raise TableError(
        f"Expected Hugging Face's library datasets to be installed, but got: {reason}. Run: pip install 'datasets>=5'"
    )


def load_splits(library: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Loads the data set's splits, by its own names."""
    source: str = options.source
    try:
        if any((Path(source) / name).is_file() for name in SAVED):
            found = library.load_from_disk(source)
        else:
            streams = options.limit is not None
            found = library.load_dataset(source, options.config, revision=options.revision, streaming=streams)
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise TableError(
            f"Expected {source!r} to be a data set of the hub or a local one, but got: {error}\nCheck the name; "
            "--config names a configuration; --revision refs/convert/parquet is the hub's Parquet copy of a data set "
            "that needs a script; for a data set whose owner grants access, run `hf auth login`."
        ) from error
    return dict(found) if isinstance(found, Mapping) else {str(found.split or "train"): found}


def map_splits(names: list[str], stated: list[str]) -> dict[str, str]:
    """Assigns the data set's splits to train, val and test; splits to leave out are not among the keys.

    Args:
        names: The data set's splits.
        stated: Pairs such as `validation=test`; if there are none, the names decide.
    """
    by_name = [(name, OTHER_NAMES.get(name.casefold(), name)) for name in names]
    pairs = [(name, split) for name, _, split in (pair.rpartition("=") for pair in stated)] or by_name
    for name, split in pairs:
        if name not in names or split not in SPLITS:
            raise TableError(
                f"Expected --split to say which of {', '.join(names)} are {', '.join(SPLITS)}, but got "
                f"{name}={split}. Write --split {names[0]}=train; splits that no --split names are left out."
            )
    return dict(pairs)


def find_columns(library: Any, features: Mapping[str, Any], options: argparse.Namespace) -> Columns:
    """Takes the columns from the options, or else finds them by their types."""

    def only(found: list[str], what: str) -> str:
        if len(found) == 1:
            return found[0]
        listed = "; ".join(f"{name}: {feature}" for name, feature in features.items())
        raise TableError(f"Expected one column of {what}, but got {len(found)}. State it. There are: {listed}.")

    for name in filter(None, [options.image, options.label, *options.caption]):
        if name not in features:
            raise TableError(f"Expected a column {name!r}, but got none. {did_you_mean(name, features)}")
    images = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    texts = [name for name, feature in features.items() if _is_text(feature) and not name.startswith("__")]
    image = options.image or only(images, "images (--image)")
    if image not in images and getattr(features[image], "dtype", None) not in ("string", "large_string", "binary"):
        raise TableError(f"Expected --image to name a column of images, paths or bytes, but got {features[image]}.")
    captions, label = options.caption, options.label
    if not captions and label is None:
        label = labels[0] if len(labels) == 1 else None
        captions = [] if label else [only(texts, "captions (--caption), or of labels (--label)")]
    return Columns(image, tuple(captions), label)


def _is_text(feature: Any) -> bool:
    """Whether a column holds texts, or lists of texts."""
    return getattr(getattr(feature, "feature", feature), "dtype", None) in ("string", "large_string")


def read_captions(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """Returns the captions of a row that are not empty."""
    values = [row[name] for name in columns.captions]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value]) if text is not None]
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise TableError(f"Expected --caption to name columns of texts, but got {strange[0]!r}. Name another.")
    return [text for text in (text.replace("\0", "").strip() for text in texts) if text]


def read_label(feature: Any, value: Any) -> str:
    """Returns a label as text: the name of the class if the column has names; empty if the label is hidden."""
    if isinstance(value, list | dict):
        raise TableError(f"Expected --label to name a column with one label a row, but got {value!r}. Name another.")
    if value is not None and hasattr(feature, "int2str"):
        value = feature.int2str(value) if 0 <= value < feature.num_classes else None
    return "" if value is None else str(value).strip()


def read_image(value: Mapping[str, Any] | None) -> bytes:
    """Returns the bytes of an undecoded image, its own or those of its file; empty if it has neither."""
    from fsspec import open as open_address  # comes with the library, and also reads addresses inside archives

    if not value or value["bytes"] or not value["path"]:
        return (value or {}).get("bytes") or b""
    try:
        with open_address(value["path"], "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        return b""


def read_rows(
    library: Any, dataset: Any, columns: Columns, limit: int | None
) -> Iterator[tuple[bytes, list[str], str]]:
    """Yields image, captions and label of each row of a split; missing ones are empty."""
    label = dataset.features[columns.label] if columns.label else None
    names = [name for name in (columns.image, *columns.captions, columns.label) if name]
    rows = dataset.cast_column(columns.image, library.Image(decode=False)).select_columns(names)
    for row in tqdm(islice(rows, limit), unit=" rows"):
        yield read_image(row[columns.image]), read_captions(row, columns), read_label(label, row.get(columns.label))


def prepare(library: Any, options: argparse.Namespace) -> str:
    """Writes images and table, all or nothing, and returns a description of them."""
    datasets = load_splits(library, options)
    splits = map_splits(list(datasets), options.split)
    features = datasets[next(iter(splits))].features
    columns = find_columns(library, features, options)
    has_lists = len(columns.captions) > 1 or any(hasattr(features[name], "feature") for name in columns.captions)
    caption = "captions" if has_lists else "caption"
    header = ["image", *([caption] if columns.captions else []), *(["label"] if columns.label else []), "split"]
    kept, left_out = Counter[str](), Counter[str]()
    with write_folder(options.output, overwrite=True) as folder:
        pictures = Pictures(folder)
        with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv_writer(file)
            writer.writerow(header)
            for name, split in splits.items():
                for data, texts, label in read_rows(library, datasets[name], columns, options.limit):
                    text = json.dumps(texts, ensure_ascii=False) if has_lists and texts else "".join(texts)
                    cells = {caption: text, "label": label, "split": split}
                    if missing := [column for column in header[1:] if not cells[column]]:
                        left_out[missing[0]] += 1
                    elif path := pictures.write(data):
                        writer.writerow([path, *(cells[column] for column in header[1:])])
                        kept[split] += 1
                    else:
                        left_out["image"] += 1
        if not kept:
            raise TableError(f"Expected rows with {', '.join(header[:-1])}, but got none. State the columns.")
    return describe(options.output / "table.csv", header, kept, left_out, len(pictures))


def describe(table: Path, header: list[str], kept: Counter[str], left_out: Counter[str], pictures: int) -> str:
    """Says what was written and left out, and how a recipe reads it."""
    settings: dict[str, Any] = {"path": str(table)}
    if "captions" in header:
        settings["caption"] = {"json_list": "captions"}
    settings |= {name: name for name in ("caption", "label") if name in header}
    if kept["test"]:
        settings["split"] = "split"
    if pictures < kept.total():
        settings["image_id"] = "image"
    counts = ", ".join(f"{kept[split]:,} {split}" for split in SPLITS if kept[split])
    lines = [f"{table}: {kept.total():,} rows ({counts}), {pictures:,} pictures"]
    lines += [f"left out: {count:,} rows without {name}" for name, count in left_out.items()]
    if not kept["test"]:
        lines.append("no row is test: the recipe draws splits, unless --split says which they are")
    return "\n".join([*lines, "", yaml.safe_dump({"data": {"table": settings}}, sort_keys=False)])


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a data set of the hub, as owner/name, or a local folder")
    parser.add_argument("--output", type=Path, help="folder to write (data/NAME)")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--revision", help="version of the data set: a branch, tag or commit")
    parser.add_argument("--split", action="append", default=[], metavar="THEIRS=OURS", help="as validation=test")
    parser.add_argument("--image", metavar="COLUMN", help="images, or their paths")
    parser.add_argument("--caption", nargs="+", default=[], metavar="COLUMN", help="captions, or lists of them")
    parser.add_argument("--label", metavar="COLUMN", help="labels")
    parser.add_argument("--limit", type=int, metavar="N", help="read the first N rows of each split alone")
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        parser.error(f"Expected --limit to be at least 1, but got {options.limit}")
    options.output = options.output or Path("data") / Path(options.source).name
    require_own(options.output, lambda names: names == WRITTEN)
    return prepare(import_library(), options)


if __name__ == "__main__":
    sys.exit(main())

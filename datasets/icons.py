"""Prepares the same things drawn by ten open sets of icons: technical drawings, hundreds of classes, vendor shift.

    pip install 'align-finetune[icons]'
    python datasets/icons.py --output data/icons

Source: ten npm packages, from `npm pack` or `--VENDOR-tgz`; their SHA-256 is checked. Licences:

    bootstrap    bootstrap-icons 1.13.2                   MIT
    boxicons     boxicons 2.1.4, solid                    MIT, or CC BY 4.0
    fontawesome  @fortawesome/fontawesome-free 7.3.1, solid  CC BY 4.0 (Font Awesome Free)
    iconoir      iconoir 7.12.1                           MIT
    ionicons     ionicons 8.1.0, outline                  MIT
    lucide       lucide-static 1.62.0                     ISC
    mdi          @mdi/svg 7.4.47                          Apache-2.0 (Pictogrammers)
    phosphor     @phosphor-icons/core 2.1.1, regular      MIT
    remix        remixicon 4.9.1, line                    Apache-2.0
    tabler       @tabler/icons 3.52.0, outline            MIT

Some icons are brands, whose owners have rights beside these licences. Writes a black RGB PNG of 128 x 128 pixels on
white for each icon whose name at least five sets have, and `icons.csv` with the columns

- image: path relative to the table;
- caption and label: the name with spaces, as most sets write it: *arrow down circle*. Names with the same words are
  one; synonyms (*fire*, *flame*) stay two, which no method can tell apart;
- vendor: the set;
- split: the sets boxicons, iconoir and mdi are test, remix is val, the others train; each label occurs in train;
- split_by_picture: 70/10/20 % of the icons; each label occurs in train;
- split_by_name: 70/10/20 % by the hash of the name, for retrieving names that were never trained on. Their words may
  have been: *file plus* may be held out where *file* and *folder plus* are not.

Icons of one set with the same pixels are aliases; the name that more sets have is kept. Lucide and Tabler share ten
simple ones, such as *plus*.
"""

import argparse
import io
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from finetune.core.csv_text import format_frame
from finetune.core.errors import FileError
from finetune.core.files import require_own, write_folder, write_text
from finetune.core.packages import NpmPackage, read_npm
from finetune.core.shipped import script
from finetune.data.table.even_splits import draw_evenly, draw_number
from finetune.data.table.splits import SPLITS

PACKAGES = {
    package.option.removeprefix("--").removesuffix("-tgz"): package
    for package in (
        NpmPackage(
            "bootstrap-icons",
            "1.13.2",
            "7b5960145e1ab14a49a117f96a9e5a54a94fdf07f21e302d9e4f88d73dd19f9c",
            "--bootstrap-tgz",
        ),
        NpmPackage(
            "boxicons",
            "2.1.4",
            "f8e67523cad3e1e937d32fe408d83ab460b469d64cc90fb31a5b517a30b67eb2",
            "--boxicons-tgz",
        ),
        NpmPackage(
            "@fortawesome/fontawesome-free",
            "7.3.1",
            "ca4e32843bd81711894385c2466fb19c55cfd32ef3c58830b2d1df7bd42e6571",
            "--fontawesome-tgz",
        ),
        NpmPackage(
            "iconoir",
            "7.12.1",
            "6a8ccf0c36a718c319238820d3af5dc25b3524e91f8d6df16c5c65c728b6124e",
            "--iconoir-tgz",
        ),
        NpmPackage(
            "ionicons",
            "8.1.0",
            "6ec604a301f9bb1a59ccc72a746cbb369bae87c5b45f6c67904dc878d9efb8b5",
            "--ionicons-tgz",
        ),
        NpmPackage(
            "lucide-static",
            "1.62.0",
            "386f9080c440d6f5049cefe3456ae8357f7a0c7f76e59670cd1cb83bc7050a44",
            "--lucide-tgz",
        ),
        NpmPackage(
            "@mdi/svg",
            "7.4.47",
            "de92e5dc9ce46c392ab5c53aa7190b19f82b40cb48872a083f788c7e13e91fef",
            "--mdi-tgz",
        ),
        NpmPackage(
            "@phosphor-icons/core",
            "2.1.1",
            "313332be6190b724da24107addd781799b48bf76b13963f24501112ffe1baadd",
            "--phosphor-tgz",
        ),
        NpmPackage(
            "remixicon",
            "4.9.1",
            "3a86ff64f3ab3ff9123556adb5fec29d1f41fa19b69d67ec8f7e3aa19724cd18",
            "--remix-tgz",
        ),
        NpmPackage(
            "@tabler/icons",
            "3.52.0",
            "626620c7d42afd2f294fba167ce4653b5cb946336d186b4991c70b700e5616af",
            "--tabler-tgz",
        ),
    )
}
"""The package of each vendor."""
PLACES = {
    "bootstrap": r"icons/([^/]+)\.svg",
    "boxicons": r"svg/solid/bxs-([^/]+)\.svg",
    "fontawesome": r"svgs/solid/([^/]+)\.svg",
    "iconoir": r"icons/regular/([^/]+)\.svg",
    "ionicons": r"dist/svg/([^/]+)-outline\.svg",
    "lucide": r"icons/([^/]+)\.svg",
    "mdi": r"svg/([^/]+)\.svg",
    "phosphor": r"assets/regular/([^/]+)\.svg",
    "remix": r"icons/[^/]+/([^/]+)-line\.svg",
    "tabler": r"icons/outline/([^/]+)\.svg",
}
"""The path of an icon in the package of each vendor."""
VENDOR_SPLITS = {"boxicons": "test", "iconoir": "test", "mdi": "test", "remix": "val"}
FEWEST_VENDORS = 5
SIDE = 128  # pixels
ICON_SIDE = 112  # pixels
COLUMNS = ["image", "caption", "label", "vendor", "split", "split_by_picture", "split_by_name"]
WRITTEN = {*PACKAGES, "icons.csv"}


def read_icons(path: Path, vendor: str) -> dict[str, str]:
    """Reads the SVG of each of the vendor's icons by name, in alphabetical order."""
    icons = {}
    for name, content in read_npm(path):
        match = re.fullmatch(PLACES[vendor], name)
        if match:
            icons[match[1].lower()] = content.decode("utf-8")
    return dict(sorted(icons.items()))


def sort_words(name: str) -> tuple[str, ...]:
    """Returns what names that differ in the order of their words have in common.

    Example:
        >>> sort_words("check-circle") == sort_words("circle-check")
        True
    """
    return tuple(sorted(name.split("-")))


def choose_icons(sets: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Chooses the things that enough vendors draw.

    Args:
        sets: For each vendor, the SVG of each icon by name.

    Returns:
        For each label, in alphabetical order, the SVG by vendor.
    """
    names: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    drawn: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for vendor, icons in sets.items():
        for name, svg in icons.items():
            names[sort_words(name)][name] += 1
            drawn[sort_words(name)].setdefault(vendor, svg)
    chosen = {}
    for words, svgs in drawn.items():
        if len(svgs) >= FEWEST_VENDORS:
            label = min(names[words], key=lambda name: (-names[words][name], name))
            chosen[label.replace("-", " ")] = svgs
    return dict(sorted(chosen.items()))


def find_renderer() -> Callable[..., bytes]:
    """Returns what draws an SVG file as PNG."""
    try:
        from resvg_py import svg_to_bytes  # late, since --help needs none
    except ImportError as error:
        raise FileError(
            "Expected resvg_py to be installed, which draws SVG files, but it is not. "
            "Run: pip install 'align-finetune[icons]'."
        ) from error
    return svg_to_bytes


def paint(svg: str, render: Callable[..., bytes]) -> Image.Image:
    """Draws an SVG in the middle of a white square."""
    data = render(svg_string=svg, width=ICON_SIDE, height=ICON_SIDE, background="#ffffff", skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(data)), formats=["PNG"]) as file:
        icon = file.convert("RGB")
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(icon, ((SIDE - icon.width) // 2, (SIDE - icon.height) // 2))
    return square


def drop_aliases(pictures: dict[tuple[str, str], Image.Image]) -> dict[tuple[str, str], Image.Image]:
    """Keeps one of a vendor's icons with the same pixels: that with the label that more vendors draw.

    Labels that fewer than `FEWEST_VENDORS` draw after that are dropped.

    Args:
        pictures: The pictures by label and vendor.
    """
    popular = Counter(label for label, _ in pictures)
    kept: dict[tuple[str, bytes], str] = {}
    for (label, vendor), picture in pictures.items():
        key = (vendor, picture.tobytes())
        kept[key] = min(kept.get(key, label), label, key=lambda name: (-popular[name], name))
    own = {
        (label, vendor): picture
        for (label, vendor), picture in pictures.items()
        if kept[vendor, picture.tobytes()] == label
    }
    left = Counter(label for label, _ in own)
    return {key: picture for key, picture in own.items() if left[key[0]] >= FEWEST_VENDORS}


def build_table(keys: list[tuple[str, str]]) -> pd.DataFrame:
    """Builds a row for each label and vendor."""
    table = pd.DataFrame(keys, columns=["label", "vendor"])
    table["image"] = table["vendor"] + "/" + table["label"].str.replace(" ", "-") + ".png"
    table["caption"] = table["label"]
    table["split"] = table["vendor"].map(lambda vendor: VENDOR_SPLITS.get(vendor, "train"))
    labels = table["label"].astype("category").cat.codes.to_numpy(dtype=np.int64)
    table["split_by_picture"] = [SPLITS[code] for code in draw_evenly(table["image"].tolist(), labels, 0.1, 0.2)]
    drawn = table["label"].map(draw_number)
    table["split_by_name"] = pd.Series("train", table.index).mask(drawn < 0.3, "val").mask(drawn < 0.2, "test")
    return table[COLUMNS]


def prepare(output: Path, given: dict[str, Path | None]) -> str:
    """Writes pictures and table to `output`, replaces those of an earlier run, and describes them."""
    require_own(output, lambda names: names == WRITTEN)
    render = find_renderer()  # before the downloads
    with tempfile.TemporaryDirectory() as download, write_folder(output, overwrite=True) as folder:
        sets = {
            vendor: read_icons(PACKAGES[vendor].get(path, Path(download)), vendor) for vendor, path in given.items()
        }
        chosen = choose_icons(sets)
        painted = {
            (label, vendor): paint(svg, render) for label, svgs in chosen.items() for vendor, svg in svgs.items()
        }
        pictures = drop_aliases(painted)
        table = build_table(list(pictures))
        for vendor in sets:
            (folder / vendor).mkdir()
        for image, picture in zip(table["image"], pictures.values(), strict=True):
            picture.save(folder / image)
        write_text(folder / "icons.csv", format_frame(table))
    lines = [f"{output / 'icons.csv'}: {len(table)} rows, {table['label'].nunique()} labels"]
    for column in ("split", "split_by_picture", "split_by_name"):
        counts = table[column].value_counts()
        lines.append(f"  {column}: {', '.join(f'{counts.get(split, 0)} {split}' for split in SPLITS)}")
    return "\n".join(lines)


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/icons"), help="folder to write (%(default)s)")
    for package in PACKAGES.values():
        text = f"{package.file_name}, if it is already here"
        parser.add_argument(package.option, type=Path, metavar="FILE", help=text)
    arguments = parser.parse_args(argv)
    return prepare(arguments.output, {vendor: getattr(arguments, f"{vendor}_tgz") for vendor in PACKAGES})


if __name__ == "__main__":
    sys.exit(main())

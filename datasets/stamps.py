"""Prepares Tux Paint's stamps: photographs and drawings of things, each with an English sentence about it.

    python datasets/stamps.py --output data/stamps

Source: the Debian package `tuxpaint-stamps-default`: the installed copy, `--stamps DIR` or `--deb FILE`; without
any of them, `apt-get download` gets the package, without root and without installing it. Release 2022.06.04-1
has 785 stamps, 400 of them photographs.

Licence: the package states GPL-2.0-or-later for all of it (Bill Kendrick and contributors), while its change
log names the GFDL, Creative Commons (CC BY, CC BY-SA) or the public domain for some of the photographs. None
of the pictures is part of this project; read that log before you publish one.

Writes an RGB PNG for each stamp that has a `.txt` beside it (mirrored copies have none), in the middle of a
white square of at most 256 pixels a side, and two tables with the columns

- image, caption: the first line of the `.txt`; the translations below it are not read;
- category: the first folder (animals, food, ...);
- kind: `drawing` in `symbols`, `town` and every `cartoon` folder, else `photograph`. The folder decides, so some
  drawn stamps of `seasonal` and `clothes` count as photographs;
- split: 70/10/20 % by the hash of the caption, so that pictures with the same sentence stay together;
- split_by_kind: photographs are train (90 %) and val, drawings are test.

`stamps.csv` holds all stamps; `photographs.csv` holds only the photographs, all in the split test, to measure
zero-shot retrieval or what a checkpoint has forgotten.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from finetune.core.csv_text import format_frame
from finetune.core.errors import FileError
from finetune.core.files import require_own, write_folder, write_text
from finetune.core.packages import DebianPackage, naming
from finetune.core.shipped import script
from finetune.data.prepare.images import convert_to_rgb
from finetune.data.table.even_splits import draw_number

PACKAGE = DebianPackage(
    "tuxpaint-stamps-default",
    "tuxpaint-stamps-default_2022.06.04-1_all.deb",
    Path("/usr/share/tuxpaint/stamps"),
    "--stamps",
)
LARGEST_SIDE = 256
COLUMNS = ["image", "caption", "category", "kind", "split", "split_by_kind"]
WRITTEN = {"images", "stamps.csv", "photographs.csv"}


def is_wanted(path: PurePosixPath) -> bool:
    """Whether a file of the package is a picture or its sentence."""
    return path.suffix in (".png", ".txt")


def build_rows(files: dict[str, bytes]) -> Iterator[dict[str, str]]:
    """Yields a row for each stamp with a sentence, in the order of their paths."""
    for name in sorted(files):
        path = PurePosixPath(name)
        lines = files.get(str(path.with_suffix(".txt")), b"").decode("utf-8").strip().splitlines()
        if path.suffix != ".png" or not lines:
            continue
        caption = lines[0].strip()
        drawn = path.parts[0] in ("symbols", "town") or "cartoon" in path.parts
        number = draw_number(caption)
        yield {
            "image": f"images/{name}",
            "caption": caption,
            "category": path.parts[0],
            "kind": "drawing" if drawn else "photograph",
            "split": "test" if number < 0.2 else "val" if number < 0.3 else "train",
            "split_by_kind": "test" if drawn else "val" if number < 0.1 else "train",
        }


def paint_on_square(data: bytes) -> Image.Image:
    """Puts a picture in the middle of a white RGB square, reduced to `LARGEST_SIDE` if it is larger."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
        picture = convert_to_rgb(file)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    if side > LARGEST_SIDE:
        square = square.resize((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return square


def prepare(output: Path, files: dict[str, bytes]) -> str:
    """Writes pictures and tables to `output`, replaces those of an earlier run, and describes them."""
    table = pd.DataFrame(build_rows(files), columns=COLUMNS)
    if table.empty:
        raise FileError(
            "Expected stamps with a .png and a .txt each, but got none. "
            "Let --stamps name the folder that holds `animals`."
        )
    photographs = table[table["kind"] == "photograph"].assign(split="test")
    with write_folder(output, overwrite=True) as folder:
        for image in table["image"]:
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            name = image.removeprefix("images/")
            with naming(name):
                square = paint_on_square(files[name])
            square.save(folder / image)
        write_text(folder / "stamps.csv", format_frame(table))
        write_text(folder / "photographs.csv", format_frame(photographs))
    lines = []
    for name, rows in (("stamps", table), ("photographs", photographs)):
        lines.append(f"{output / name}.csv: {len(rows)} rows")
        for column in ("kind", "split", "split_by_kind"):
            counts = rows[column].value_counts()
            lines.append(f"  {column}: {', '.join(f'{count} {value}' for value, count in counts.items())}")
    return "\n".join(lines)


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/stamps"), help="folder to write (%(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--stamps", type=Path, metavar="DIR", help="unpacked stamps, if they are already here")
    source.add_argument("--deb", type=Path, metavar="FILE", help="the Debian package, if it is already here")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    require_own(output, lambda names: names == WRITTEN)
    return prepare(output, PACKAGE.find(arguments.stamps, arguments.deb, is_wanted))


if __name__ == "__main__":
    sys.exit(main())

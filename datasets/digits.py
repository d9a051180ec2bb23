"""Prepares scikit-learn's handwritten digits: classification and retrieval without any download.

    python datasets/digits.py --output data/digits

Source: `sklearn.datasets.load_digits`, which is the test part of *Optical Recognition of Handwritten Digits*
(E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, CC BY 4.0): 1,797 digits of 13 writers, as
8 x 8 grey levels counted from 32 x 32 bitmaps. scikit-learn, which ships them, is under the BSD-3-Clause.

Writes each digit as a 32 x 32 grey PNG, black ink on white as on the scanned sheet, enlarged with Pillow's
bicubic filter, because augmentations need more than 8 pixels to rotate and shift; and `digits.csv` with the columns

- image: path relative to the table;
- caption: *a handwritten digit seven*;
- label: *zero* to *nine*;
- split: about 60/10/30 % train, val, test of each digit, the same on every run.

Every run writes the same bytes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from finetune.core.csv_text import format_rows
from finetune.core.files import require_own, write_folder, write_text
from finetune.core.shipped import script
from finetune.data.table.even_splits import draw_evenly
from finetune.data.table.splits import SPLITS

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32  # pixels
WRITTEN = {"images", "digits.csv"}


def draw_digit(ink: np.ndarray) -> Image.Image:
    """Draws a digit as a grey picture.

    Args:
        ink: Array of shape (8, 8), from 0 (paper) to 16 (ink).
    """
    grey = np.rint(255 - ink * (255 / 16)).astype(np.uint8)
    return Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def prepare(output: Path) -> dict[str, int]:
    """Writes pictures and table, all or nothing, and returns the number of rows of each split.

    Args:
        output: The folder; an existing one is replaced.
    """
    digits = load_digits()
    paths = [f"images/{number:04d}.png" for number in range(len(digits.target))]
    splits = [SPLITS[code] for code in draw_evenly(paths, digits.target, val=0.1, test=0.3)]
    rows: list[list[str]] = []
    with write_folder(output, overwrite=True) as folder:
        (folder / "images").mkdir()
        for path, ink, digit, split in zip(paths, digits.images, digits.target, splits, strict=True):
            draw_digit(ink).save(folder / path)
            rows.append([path, f"a handwritten digit {NAMES[digit]}", NAMES[digit], split])
        write_text(folder / "digits.csv", format_rows(["image", "caption", "label", "split"], rows))
    return {split: splits.count(split) for split in SPLITS}


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/digits"), help="folder to write (%(default)s)")
    output: Path = parser.parse_args(argv).output
    require_own(output, lambda names: names == WRITTEN)
    counts = prepare(output)
    rows = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    return f"{output / 'digits.csv'}: {sum(counts.values()):,} rows ({rows})"


if __name__ == "__main__":
    sys.exit(main())

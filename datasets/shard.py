"""Writes tar shards in img2dataset's layout from a table and its image files.

    python datasets/shard.py --table photos.csv --caption caption --output data/shards

Writes 00000.tar, 00001.tar, ... with up to three members for each row, in the table's order:

- KEY.jpg (.png, .webp, ...): the unchanged bytes of the image file; if its name has no known ending, its content
  decides;
- KEY.json: key, sha256 of the image, and the cells of the named columns, as texts under their own names;
- KEY.txt: the caption, if --caption names a column.

KEY is the number of the shard and that of the row in it: 000000000 to 000009999 in the first shard. Without --split,
the splits are drawn as `data.table` draws them and written as `split`. Every run on the same files writes the same
bytes.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from PIL import Image

from finetune.core.errors import RecipeError, TableError
from finetune.core.files import require_own, write_folder
from finetune.core.shipped import script
from finetune.data.prepare.images import EXTENSIONS, FORMATS
from finetune.data.prepare.members import place_of, read_bytes
from finetune.data.prepare.pictures import SUFFIXES
from finetune.data.table.faults import Fault
from finetune.data.table.sources import TextFormat, read_cells
from finetune.data.table.splits import SPLITS
from finetune.data.table.table import Table


class Sample(NamedTuple):
    """One row.

    Attributes:
        image: Path of the image file.
        caption: The caption, or None.
        fields: The fields of the JSON beside key and sha256.
    """

    image: str
    caption: str | None
    fields: dict[str, str]


def read_samples(table: Table, columns: Sequence[str]) -> Iterator[Sample]:
    """Yields the rows of a table after checking all of it.

    Args:
        table: A table without filter or limit, with at most one column of captions.
        columns: Columns to write beside those that the table names.

    Raises:
        TableError: If the table has a fault.
    """
    rows, faults = table.read(required=()), list[Fault]()
    named = [name for name in (table.caption, table.label, table.split) if isinstance(name, str)]
    text_format, names = TextFormat(table.separator, table.quoting), [*named, *columns]
    cells, _ = read_cells((str(table.path),), [table.image, *names], text_format, None, faults)
    assert not faults, faults
    assert len(cells) == len(rows), (len(cells), len(rows))
    drawn = {} if isinstance(table.split, str) else {"split": [SPLITS[code] for code in rows.splits]}
    fields = drawn | {name: cells.columns[name].tolist() for name in names}
    for row, (image, caption) in enumerate(zip(rows.images.tolist(), rows.captions.tolist(), strict=True)):
        yield Sample(image, caption if table.caption else None, {name: values[row] for name, values in fields.items()})


def picture_ending(name: str, picture: bytes) -> str:
    """Finds the ending that marks a picture in a tar: that of its name, or of its content.

    Args:
        name: The name of the image file.
        picture: Its bytes.

    Raises:
        TableError: If neither name nor content says what the picture is.
    """
    ending = PurePosixPath(name).suffix.lower()
    if ending in EXTENSIONS:
        return ending
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            return SUFFIXES[str(image.format)]
    except Exception as error:  # decoders raise all kinds: OSError, SyntaxError, struct.error, ...
        message = f"Expected {name} to be an image ({', '.join(FORMATS)}), but it cannot be opened: {error}."
        raise TableError(f"{message} Save it again, or remove its rows.") from error


def write_shard(path: Path, number: int, samples: Sequence[Sample]) -> None:
    """Writes one tar.

    Args:
        path: The tar.
        number: Its number.
        samples: Its rows.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for at, sample in enumerate(samples):
            key, picture = f"{number:05d}{at:04d}", read_bytes(sample.image)
            record = {"key": key, "sha256": hashlib.sha256(picture).hexdigest(), **sample.fields}
            members = {
                picture_ending(place_of(sample.image), picture): picture,
                ".json": json.dumps(record, ensure_ascii=False).encode(),
            }
            if sample.caption is not None:
                members[".txt"] = sample.caption.encode()
            for ending, content in members.items():
                header = tarfile.TarInfo(key + ending)  # its date is 1970, and it has no owner
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def write_shards(table: Table, columns: Sequence[str], size: int, output: Path) -> tuple[int, int]:
    """Writes all shards or none, and returns the number of rows and of shards.

    Args:
        table: The table, as for `read_samples`.
        columns: The columns, as for `read_samples`.
        size: Number of rows in each shard but the last.
        output: The folder; an existing one is replaced.
    """
    samples, rows, shards = read_samples(table, columns), 0, 0
    with write_folder(output, overwrite=True) as folder:
        while chunk := list(islice(samples, size)):
            write_shard(folder / f"{shards:05d}.tar", shards, chunk)
            rows, shards = rows + len(chunk), shards + 1
    return rows, shards


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="the table, as data.table.path: CSV, Parquet, JSON lines, tars")
    parser.add_argument("--image", default=Table.image, help="column of image paths (%(default)s)")
    parser.add_argument("--images", help="folder that the paths are relative to (the table's)")
    parser.add_argument("--caption", help="column of captions")
    parser.add_argument("--label", help="column of labels")
    parser.add_argument("--split", help="column of splits (drawn: 10 %% val, 10 %% test)")
    parser.add_argument("--columns", nargs="*", default=[], help="further columns to keep, such as scores to filter by")
    parser.add_argument("--samples", type=int, default=10_000, help="rows in a shard, at most 10000 (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("data/shards"), help="folder to write (%(default)s)")
    options = parser.parse_args(argv)
    output: Path = options.output
    if not 1 <= options.samples <= 10_000:
        raise RecipeError(f"Expected --samples to be from 1 to 10000, but got {options.samples}.")
    names = {"image": options.image, "caption": options.caption, "label": options.label, "images": options.images}
    split = {} if options.split is None else {"split": options.split}
    require_own(output, lambda names: all(PurePath(name).match("[0-9]*.tar") for name in names))
    rows, shards = write_shards(Table(options.table, **names, **split), options.columns, options.samples, output)
    return f"{output}: {rows:,} rows in {shards:,} shards"


if __name__ == "__main__":
    sys.exit(main())

r"""Joins COYO-700M's metadata with the images that img2dataset downloaded, into one table.

    img2dataset --url_list metadata --input_format parquet --url_col url --caption_col text \
        --output_format files --output_folder data/coyo_images --image_size 346 --resize_mode keep_ratio
    python datasets/coyo.py --metadata 'metadata/*.parquet' --images data/coyo_images --output data/coyo

Source: COYO-700M (Kakao Brain, 2022; CC BY 4.0 for the metadata, while each picture has the rights that its page
states), which comes as Parquet files of addresses, texts and scores. img2dataset's `files` format writes a folder and a
Parquet file for each shard, `00000/000000000.jpg` and `00000.parquet` with the columns key, url and status.

Writes `coyo.parquet` with the metadata's own columns, and

- image: path relative to the folder of images.

Rows without a downloaded picture are left out. Rows with the same address share its picture. Every run on the same
files writes the same rows.
"""

import argparse
import sys
from glob import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from finetune.core.errors import TableError
from finetune.core.files import require_own, write_folder
from finetune.core.shipped import script

BATCH = 1_000_000  # rows of metadata in memory at a time
WRITTEN = {"coyo.parquet"}


def find_downloads(images: Path) -> pa.Table:
    """Lists the downloaded addresses, each once, with their pictures.

    Args:
        images: The folder that img2dataset wrote.

    Returns:
        A table with the columns url and image.

    Raises:
        TableError: If no shard in the folder holds a picture.
    """
    urls, paths = [], []
    for shard in sorted(path for path in images.glob("*.parquet") if path.with_suffix("").is_dir()):
        pictures = {path.name for path in (images / shard.stem).glob("*.jpg")}
        for record in pq.read_table(shard, columns=["key", "url", "status"]).to_pylist():
            name = f"{record['key']}.jpg"
            if record["status"] == "success" and name in pictures:
                urls.append(record["url"])
                paths.append(f"{shard.stem}/{name}")
    if not urls:
        raise TableError(
            f"Expected {images} to hold img2dataset's output in its files format, but got no shard with a picture. "
            "Name the folder that holds 00000.parquet and 00000/."
        )
    first = dict(zip(reversed(urls), reversed(paths), strict=True))
    return pa.table({"url": list(first), "image": list(first.values())})


def join(metadata: list[str], images: Path, output: Path) -> tuple[int, int]:
    """Writes the table, all or nothing, and returns the number of rows of the metadata and of the table.

    Args:
        metadata: COYO's Parquet files.
        images: The folder that img2dataset wrote.
        output: The folder to write; an existing one is replaced.

    Raises:
        TableError: If a file cannot be read or lacks the column url, or no picture was downloaded.
    """
    seen = written = 0
    try:
        downloads = find_downloads(images)
        source = ds.dataset(metadata, format="parquet")
        if "url" not in source.schema.names:
            raise TableError(f"Expected a column 'url' in {metadata[0]}, but got {', '.join(source.schema.names)}.")
        schema = source.schema.remove_metadata().append(pa.field("image", pa.string()))
        with write_folder(output, overwrite=True) as folder:
            with pq.ParquetWriter(folder / "coyo.parquet", schema, compression="zstd") as writer:
                for batch in source.to_batches(batch_size=BATCH, batch_readahead=1, fragment_readahead=1):
                    found = pc.index_in(batch["url"], value_set=downloads["url"])
                    table = pa.Table.from_batches([batch]).append_column("image", downloads["image"].take(found))
                    kept = table.filter(found.is_valid())
                    writer.write_table(kept.cast(schema))
                    seen, written = seen + len(batch), written + len(kept)
            if not written:
                raise TableError(
                    f"Expected {images} to hold pictures of the metadata, but got none of its {seen:,} addresses. "
                    "Pass the metadata that img2dataset read."
                )
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"Expected Parquet files of COYO's metadata and of img2dataset, but got: {error}") from error
    return seen, written


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata", required=True, help="COYO's Parquet files: a file, or a pattern in quotes")
    parser.add_argument("--images", type=Path, required=True, help="the folder that img2dataset wrote")
    parser.add_argument("--output", type=Path, default=Path("data/coyo"), help="folder to write (%(default)s)")
    options = parser.parse_args(argv)
    output: Path = options.output
    require_own(output, lambda names: names == WRITTEN)
    files = sorted(glob(options.metadata))  # noqa: PTH207
    if not files:
        raise TableError(
            f"Expected --metadata to name files, but nothing matches {options.metadata!r}. Write a pattern in quotes."
        )
    seen, written = join(files, options.images, output)
    return f"{output / 'coyo.parquet'}: {written:,} rows with a picture, of {seen:,} in the metadata"


if __name__ == "__main__":
    sys.exit(main())

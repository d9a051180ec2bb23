"""Tar shards, written with plain tarfile as img2dataset and WebDataset do."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data.table.table import Table

SPECIES = ("cat", "dog", "emu")
ENDINGS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture(seed: int, ending: str = "jpg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, ENDINGS[ending])
    return content.getvalue()


def sample(number: int, key: str | None = None, ending: str = "jpg", **fields: object) -> dict[str, bytes]:
    """The members of a sample as img2dataset names and writes them."""
    key = key or f"{number // 10:05d}{number % 10:04d}"
    record = {
        "caption": f"a {SPECIES[number % 3]} number {number}",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 40,
        "height": 30,
        "species": SPECIES[number % 3],
        "split": ("train", "train", "train", "val", "test")[number // 3 % 5],
        "score": number / 20,
        "exif": "{}",
    }
    return {
        f"{key}.{ending}": picture(number, ending),
        f"{key}.json": json.dumps(record | fields, indent=4).encode(),
        f"{key}.txt": f"a {SPECIES[number % 3]} number {number}".encode(),
    }


def write_tar(path: Path, *samples: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w|") as tar:
        for name, content in (member for one in samples for member in one.items()):
            header = tarfile.TarInfo(name)
            header.size, header.mode, header.mtime = len(content), 0o444, 1_700_000_000.5
            header.uname = header.gname = "bigdata"
            tar.addfile(header, io.BytesIO(content))
    return path


def table(shards: Path, **settings: object) -> Table:
    named = {"caption": "txt", "split": "split"} | settings
    return Table(str(shards / "*.tar"), **{name: value for name, value in named.items() if value is not None})

"""Writes pictures that come as bytes into files that the toolkit reads, each picture once."""

import io
from hashlib import blake2b
from pathlib import Path

from PIL import Image, ImageOps

from finetune.data.prepare.images import FORMATS, check_pixels

CONVERTED = ("AVIF", "JPEG2000", "PPM")
SUFFIXES = {name: f".{name.lower()}" for name in FORMATS} | {"JPEG": ".jpg", "MPO": ".jpg"}
PNG_MODES = ("1", "I;16", "L", "LA", "P", "RGB", "RGBA")
IN_A_FOLDER = 10_000


class Pictures:
    """Image files below a folder, numbered in the order of writing; equal bytes are one file.

    Args:
        folder: The parent of the folder `images`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def write(self, data: bytes) -> str | None:
        """Writes a picture, unless it was written before.

        Args:
            data: The content of a file in one of `FORMATS` or `CONVERTED`.

        Returns:
            The path relative to the folder, or None if the picture cannot be opened.
        """
        digest = blake2b(data, digest_size=16).digest()
        if digest not in self._paths:
            try:
                suffix, content = encode_picture(data)
            except Exception:  # decoders raise all kinds: OSError, SyntaxError, struct.error, ...
                return None
            path = Path("images") / f"{len(self) // IN_A_FOLDER:04d}" / f"{len(self):08d}{suffix}"
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / path).write_bytes(content)
            self._paths[digest] = path.as_posix()
        return self._paths[digest]


def encode_picture(data: bytes) -> tuple[str, bytes]:
    """Chooses the suffix and content of a picture's file: its own bytes in one of `FORMATS`, else those of a PNG.

    Args:
        data: A file's content, which is decoded only for a conversion.

    Raises:
        Exception: If the content is no picture or too large; Pillow's decoders raise all kinds.
    """
    with Image.open(io.BytesIO(data), formats=(*FORMATS, *CONVERTED)) as image:
        check_pixels(image)
        if image.format in SUFFIXES:
            return SUFFIXES[image.format], data
        ImageOps.exif_transpose(image, in_place=True)
        file = io.BytesIO()
        (image if image.mode in PNG_MODES else image.convert("RGB")).save(file, "PNG")
    return ".png", file.getvalue()

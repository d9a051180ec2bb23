"""Files that are broken, foreign or no files are refused with the reason; links and damaged Exif do not matter."""

import io
import os
import socket
import struct
import time
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from finetune.core.errors import TableError
from finetune.data.prepare.images import MOST_PIXELS, open_image, try_image

from ..images import chunk, noise


@pytest.mark.parametrize("written_as", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_half_a_file(written_as: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "image", io.BytesIO()
    Image.fromarray(noise(200, 200, 3)).save(whole, written_as)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(TableError, match=r"to be a whole image .* but got: .*Save it again as a PNG or JPEG"):
        open_image(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    ],
)
def test_no_image(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"image\.png to be a whole image \(BMP, GIF, JPEG, PNG, TIFF, WEBP\)"):
        open_image(path)


def test_an_empty_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    assert try_image(tmp_path / "image.png") == "an empty file"
    with pytest.raises(TableError, match=r"image\.png to be a whole image .*, but got: an empty file\. Save it again"):
        open_image(tmp_path / "image.png")


@pytest.mark.parametrize("written_as", ["PPM", "TGA", "EPS", "PDF", "ICO", "AVIF"])
def test_other_formats_are_not_opened(written_as: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(noise(16, 16, 3)).save(path, written_as)
    assert try_image(path) == "its content is of none of these formats"
    with pytest.raises(TableError, match="to be a whole image .* but got: its content is of none of these formats"):
        open_image(path)


def test_decompression_bomb(tmp_path: Path) -> None:
    path, side = tmp_path / "bomb.png", 10_000
    rows = zlib.compress(bytes(side * (side // 8 + 1)))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks))
    assert path.stat().st_size < 20_000
    limit = Image.MAX_IMAGE_PIXELS
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(TableError, match="but got: 10000 x 10000 pixels, more than 89,478,485"):
            open_image(path)
    assert time.perf_counter() - started < 1  # refused before it is decoded
    assert limit == Image.MAX_IMAGE_PIXELS == MOST_PIXELS


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    names = ("nothing.png", "", "pipe.png", "link.png", "broken.png", "circle.png", "a\0b.png", "x" * 300 + ".png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.png"))  # a socket's path may have 107 letters
        for path in (*(tmp_path / name for name in names), tmp_path / "socket.png", Path("/dev/zero")):
            with pytest.raises(TableError, match=f"Expected {path} to be an image file, but got none"):
                open_image(path)
            assert try_image(path) == "no file"


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (20, 10), "red").save(tmp_path / "folder" / "image.png")
    (tmp_path / "link.jpg").symlink_to("folder/image.png")
    assert open_image(tmp_path / "link.jpg").size == (20, 10)


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(noise(20, 10, 3)).save(path, exif=b"Exif\0\0no such thing")
    assert open_image(path).size == (20, 10)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"iCCP"])
def test_a_png_with_megabytes_of_metadata_is_a_whole_image(kind: bytes, tmp_path: Path) -> None:
    """A workflow, an edit history: before the pixels and after; an Exif turn among them still counts."""
    grey = Image.fromarray(noise(6, 9, 3))
    whole, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    grey.save(whole, "PNG", exif=exif)
    text = b"x" * (2 << 20)
    data = {
        b"zTXt": b"workflow\0\0" + zlib.compress(text),
        b"iTXt": b"workflow\0\1\0\0\0" + zlib.compress(text),
        b"tEXt": b"workflow\0" + text,
        b"iCCP": b"profile\0\0" + zlib.compress(text),
    }[kind]
    content = whole.getvalue()
    for place in (33, len(content) - 12):  # after the header, before the end
        (tmp_path / "image.png").write_bytes(content[:place] + chunk(kind, data) + content[place:])
        opened = try_image(tmp_path / "image.png")
        assert isinstance(opened, Image.Image), opened
        assert opened.tobytes() == grey.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_metadata_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(6, 6, 3)).save(whole, "PNG")
    bomb = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(80 << 20)))
    content = whole.getvalue()
    (tmp_path / "image.png").write_bytes(content[:33] + bomb + content[33:])
    assert "too large" in str(try_image(tmp_path / "image.png"))

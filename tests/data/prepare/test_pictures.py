"""Pictures that come as bytes: their own bytes where the toolkit reads them, else a PNG of the same pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.prepare.images import open_image
from finetune.data.prepare.pictures import Pictures, encode_picture


def encoded(kind: str, seed: int = 0, mode: str = "RGB", **options) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("BMP", ".bmp"), ("GIF", ".gif"), ("JPEG", ".jpg"), ("PNG", ".png"), ("TIFF", ".tiff"), ("WEBP", ".webp")],
)
def test_what_the_toolkit_reads_keeps_its_bytes(tmp_path: Path, kind: str, suffix: str) -> None:
    data = encoded(kind)
    path = Pictures(tmp_path).write(data)
    assert path == f"images/0000/00000000{suffix}"
    assert (tmp_path / path).read_bytes() == data
    assert open_image(tmp_path / path).size == (12, 9)


def test_a_camera_s_jpeg_of_several_pictures_keeps_its_bytes(tmp_path: Path) -> None:
    other = Image.new("RGB", (12, 9), "red")
    data = encoded("MPO", save_all=True, append_images=[other])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    path = Pictures(tmp_path).write(data)
    assert path.endswith(".jpg")
    assert (tmp_path / path).read_bytes() == data


@pytest.mark.parametrize(("kind", "mode"), [("PPM", "RGB"), ("PPM", "L"), ("JPEG2000", "RGB"), ("JPEG2000", "RGBA")])
def test_other_formats_become_a_png_of_the_same_pixels(kind: str, mode: str) -> None:
    data = encoded(kind, mode=mode)
    suffix, content = encode_picture(data)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(content)) as after:
        assert (suffix, after.format) == (".png", "PNG")
        assert np.array_equal(np.asarray(before), np.asarray(after))


def test_equal_pictures_are_one_file(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    paths = [pictures.write(encoded("PNG", seed)) for seed in (1, 2, 1)]
    assert paths == ["images/0000/00000000.png", "images/0000/00000001.png", "images/0000/00000000.png"]
    assert len(pictures) == len(list((tmp_path / "images" / "0000").iterdir())) == 2


@pytest.mark.parametrize("data", [b"", b"no picture", encoded("PNG")[:20], encoded("PPM")[:40]])
def test_what_cannot_be_opened_is_not_written(tmp_path: Path, data: bytes) -> None:
    assert Pictures(tmp_path).write(data) is None
    assert not list(tmp_path.iterdir())


def test_a_picture_too_large_to_decode_is_not_written(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(file, "PNG")
    with pytest.raises(Image.DecompressionBombError, match="10000 x 9000 pixels, more than"):
        encode_picture(file.getvalue())
    assert Pictures(tmp_path).write(file.getvalue()) is None

"""Pictures of every format, colour space and depth as they are opened; all of a table decoded."""

import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from finetune.core.errors import TableError
from finetune.data.checks.decode import decode_images
from finetune.data.prepare.images import EXTENSIONS, FORMATS, open_image
from finetune.data.table.table import Table

from ..checked import write
from ..images import chunk, draw, noise


def on_white(rgba: np.ndarray) -> Image.Image:
    """Alpha compositing in exact arithmetic, rounded to the nearest level."""
    colour, alpha = rgba[..., :3].astype(np.int64), rgba[..., 3:].astype(np.int64)
    return Image.fromarray(((2 * (colour * alpha + 255 * (255 - alpha)) + 255) // 510).astype(np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (64, 48), (1, 500)])
def test_transparent_pixels_lie_on_white(size: tuple[int, int], tmp_path: Path) -> None:
    path, rgba = tmp_path / "image.png", noise(*size, 4)
    rgba[0, 0] = (10, 20, 30, 0)  # the hidden colour must not show
    Image.fromarray(rgba).save(path)
    assert Image.open(path).mode == "RGBA"
    found, expected = np.asarray(open_image(path)), np.asarray(on_white(rgba))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_transparent_greys_palettes_and_colours_lie_on_white(tmp_path: Path) -> None:
    path, grey = tmp_path / "image.png", noise(40, 30, 2)
    Image.fromarray(grey, "LA").save(path)
    assert Image.open(path).mode == "LA"
    expected = on_white(grey[..., [0, 0, 0, 1]])
    assert np.abs(np.asarray(open_image(path)).astype(int) - np.asarray(expected)).max() <= 1

    palette = Image.fromarray(noise(40, 30, 3)).quantize(16)
    palette.save(path, transparency=3)
    assert Image.open(path).mode == "P"
    found, indices = np.asarray(open_image(path)), np.asarray(palette)
    assert (found[indices == 3] == 255).all()
    assert np.array_equal(found[indices != 3], np.asarray(palette.convert("RGB"))[indices != 3])

    colours = noise(40, 30, 3)
    colours[5, 7] = colours[9, 1] = (1, 2, 3)
    Image.fromarray(colours).save(path, transparency=(1, 2, 3))
    colours[5, 7] = colours[9, 1] = 255
    assert np.array_equal(np.asarray(open_image(path)), colours)


@pytest.mark.parametrize("written_as", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(written_as: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(path, written_as)
    assert Image.open(path).mode == "I;16"
    found = np.asarray(open_image(path))
    assert np.array_equal(found[..., 0], np.floor(levels / 257 + 0.5).astype(np.uint8))
    assert np.array_equal(found[..., 0], found[..., 2])
    assert found.mean() == pytest.approx(127.5)


def test_big_endian_16_bit_grey(tmp_path: Path) -> None:
    path, levels = tmp_path / "image.tiff", np.array([[0, 257, 65_535]], dtype=">u2")
    Image.frombytes("I;16B", (3, 1), levels.tobytes()).save(path)
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [0, 1, 255]


def tiff(path: Path, bits: int, photometric: int, data: bytes) -> None:
    """Two grey pixels as an uncompressed little-endian TIFF, in a layout that Pillow reads and does not write."""
    tags = {
        256: 2,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 8 + 2 + 12 * 9 + 4,
        277: 1,
        278: 1,
        279: len(data),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data)


def test_12_bit_grey_and_grey_counted_from_white(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    tiff(path, 12, 1, bytes([0xFF, 0xF8, 0x00]))  # 4095 and 2048, packed
    assert np.asarray(open_image(path))[0, :, 1].tolist() == [255, 128]
    tiff(path, 16, 0, struct.pack("<HH", 0, 65_535))
    assert np.asarray(open_image(path))[0, :, 1].tolist() == [255, 0]
    tiff(path, 8, 0, bytes([0, 255]))
    assert np.asarray(open_image(path))[0, :, 1].tolist() == [255, 0]


def png(path: Path, levels: np.ndarray, colour_type: int, hidden: bytes = b"") -> None:
    """A PNG of one row of 16-bit levels, with a transparent level if one is given."""
    header = struct.pack(">IIBBBBB", levels.shape[1], 1, 16, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", hidden) if hidden else b""]
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + levels.tobytes())), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_16_bit_colours(tmp_path: Path) -> None:
    path, levels = tmp_path / "image.png", np.array([[[0, 257, 65_535], [32_768, 33_000, 1_000]]], dtype=">u2")
    png(path, levels, colour_type=2)
    found = np.asarray(open_image(path)).astype(float)
    assert np.abs(found - levels / 257).max() < 1
    png(path, np.dstack([levels, [[0, 65_535]]]).astype(">u2"), colour_type=6)
    assert np.asarray(open_image(path))[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(np.asarray(open_image(path))[0, 1], found[0, 1])


def test_a_transparent_level_of_16_bit_grey_is_white(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    png(path, np.array([[1_000, 1_001, 65_535]], dtype=">u2"), colour_type=0, hidden=struct.pack(">H", 1_000))
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [255, 4, 255]


@pytest.mark.parametrize("written_as", ["JPEG", "TIFF"])
def test_cmyk_has_the_colours_of_its_inks(written_as: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    for inks, colour in (((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255,) * 3)):
        Image.new("CMYK", (16, 16), inks).save(path, written_as)
        assert Image.open(path).mode == "CMYK"
        assert np.abs(np.array(open_image(path).getpixel((8, 8))) - colour).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_grey_is_refused(dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "image.tiff"
    Image.fromarray(np.ones((4, 4), dtype=dtype)).save(path)
    with pytest.raises(TableError, match=r"image\.tiff to be a whole image .* but got: 32-bit grey levels"):
        open_image(path)


@pytest.mark.parametrize("written_as", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(written_as: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    first.save(
        path, written_as, save_all=True, append_images=[second], **({"lossless": True} if written_as == "WEBP" else {})
    )
    assert Image.open(path).n_frames == 2  # type: ignore[attr-defined]
    assert open_image(path).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_colours_in_other_spaces(mode: str, tmp_path: Path) -> None:
    path, red = tmp_path / "image.tif", {"YCbCr": (76, 85, 255), "LAB": (138, 209, 198)}[mode]
    Image.new(mode, (4, 4), red).save(path)
    assert Image.open(path).mode == mode
    assert np.abs(np.array(open_image(path).getpixel((2, 2))) - (255, 0, 0)).max() <= 5


def test_first_picture_of_a_phones_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    red.save(path, "MPO", save_all=True, append_images=[blue])
    assert Image.open(path).format == "MPO"
    assert np.abs(np.array(open_image(path).getpixel((5, 5))) - (255, 0, 0)).max() <= 1


@pytest.mark.parametrize(("written_as", "name"), [("JPEG", "image.png"), ("PNG", "image.jpg"), ("WEBP", "image.txt")])
def test_the_extension_does_not_matter(written_as: str, name: str, tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / name, written_as)
    assert open_image(tmp_path / name).size == (20, 10)


def test_colour_profiles_are_ignored(tmp_path: Path) -> None:
    path, pixels = tmp_path / "image.png", noise(20, 10, 3)
    Image.fromarray(pixels).save(path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    assert "icc_profile" in Image.open(path).info
    assert np.array_equal(np.asarray(open_image(path)), pixels)


def test_formats_are_all_built_in() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert all(Image.registered_extensions()[extension] in FORMATS for extension in EXTENSIONS)
    assert features.check("webp")


def test_every_image_is_decoded(folder: Path) -> None:
    half = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(half[: len(half) // 2])
    (folder / "c.png").write_bytes(b"")
    draw(folder / "d.png", 9, (7, 90))
    images = ["a.png", "b.png", "c.png", "d.png", "b.png"]
    rows = Table(write(folder, image=images, one=images, two=images), caption=("one", "two")).read(required=())
    found = decode_images(rows, "image", processes=2, alone=0.0)
    assert [(fault.row, fault.column) for fault in found.faults] == [(3, "image"), (4, "image"), (6, "image")]
    assert found.sizes[::2].tolist() == [[40, 30], [0, 0], [0, 0], [7, 90], [0, 0]]
    assert str(found.faults[0]).startswith(f"{folder / 't.csv'}:3:image: Expected a whole image (BMP, GIF")
    assert "Reading it failed: " in found.faults[0].repair


@pytest.mark.parametrize("order", ["twice", "even then odd", "half again"])
def test_images_may_be_listed_in_any_order(folder: Path, order: str) -> None:
    """NumPy's default sort of strings ends the process on some of them."""
    names = [f"{number:04}.png" for number in range(300)]
    for name in names:
        os.link(folder / "a.png", folder / name)
    images = {
        "twice": names * 2,
        "even then odd": names[::2] + names[1::2],
        "half again": names + names[:150],
    }[order]
    rows = Table(write(folder, image=images, caption=images), caption="caption").read(required=())
    found = decode_images(rows, "image", processes=1)
    assert found.faults == ()
    assert found.sizes.tolist() == [[40, 30]] * len(images)


def test_no_process_is_started_for_a_few_images(folder: Path) -> None:
    rows = Table(write(folder, image=["a.png", "b.png"], caption=["x", "y"]), caption="caption").read(required=())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert decode_images(rows, "image", processes=2).sizes.tolist() == [[40, 30]] * 2
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime, after.ru_stime) == (before.ru_utime, before.ru_stime)

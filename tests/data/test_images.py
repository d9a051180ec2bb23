import io
import os
import socket
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
from PIL import Image, ImageCms, features
from torch.utils.data import DataLoader, Dataset
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

from finetune.data.images import (
    EXTENSIONS,
    FORMATS,
    MOST_PIXELS,
    Augmentation,
    ImagePreparation,
    open_image,
    try_image,
)
from finetune.errors import CheckpointError, TableError

SIZES = [(1, 1), (1, 500), (500, 1), (3, 3), (289, 289), (346, 346), (640, 480), (97, 1013)]
ORIENTATION = 0x0112


def align_base(**changes: Any) -> Any:
    settings = {
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "resample": 2,
        "do_center_crop": True,
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "do_normalize": False,
        "include_top": False,
    }
    return EfficientNetImageProcessorPil(**settings | changes)


def align_mini(**changes: Any) -> Any:
    settings = {
        "size": {"height": 96, "width": 96},
        "crop_size": {"height": 96, "width": 96},
        "resample": 3,
        "do_center_crop": True,
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
        "rescale_offset": False,
        "include_top": False,
    }
    return EfficientNetImageProcessorPil(**settings | changes)


PROCESSORS = {
    "align-base": align_base(),
    "align-mini": align_mini(),
    "class defaults": EfficientNetImageProcessorPil(),
    "three channels, twice normalised": align_mini(
        image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4], include_top=True
    ),
    "crop beyond the border": align_base(size={"height": 200, "width": 301}, crop_size={"height": 289, "width": 224}),
    "odd margins": align_base(size={"height": 100, "width": 101}, crop_size={"height": 63, "width": 62}),
    "no resize": align_base(do_resize=False, crop_size={"height": 64, "width": 64}),
    "no crop": align_base(do_center_crop=False),
    "no arithmetic": align_base(do_rescale=False),
}


def noise(width: int, height: int, channels: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng([seed, width, height, channels])
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def on_white(rgba: np.ndarray) -> Image.Image:
    """Alpha compositing in exact arithmetic, rounded to the nearest level."""
    colour, alpha = rgba[..., :3].astype(np.int64), rgba[..., 3:].astype(np.int64)
    return Image.fromarray(((2 * (colour * alpha + 255 * (255 - alpha)) + 255) // 510).astype(np.uint8))


def opaque_images() -> Iterator[tuple[str, Image.Image, str]]:
    """Name, image and written_as, in modes whose plain conversion to RGB shows what is there."""
    for width, height in SIZES:
        rgb = Image.fromarray(noise(width, height, 3))
        grey = Image.fromarray(noise(width, height, 1)[..., 0])
        cmyk = Image.frombytes("CMYK", (width, height), noise(width, height, 4).tobytes())
        named = f"{width}x{height}"
        yield f"RGB {named}", rgb, "PNG"
        yield f"RGB jpeg {named}", rgb, "JPEG"
        yield f"L {named}", grey, "PNG"
        yield f"1 {named}", grey.convert("1"), "PNG"
        yield f"P {named}", rgb.quantize(64), "PNG"
        yield f"CMYK jpeg {named}", cmyk, "JPEG"
        yield f"CMYK tiff {named}", cmyk, "TIFF"
    for written_as in ("BMP", "GIF", "WEBP"):
        yield written_as, Image.fromarray(noise(60, 40, 3)), written_as


OPAQUE = list(opaque_images())


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_processor_bit_for_bit(name: str, tmp_path: Path) -> None:
    processor, path = PROCESSORS[name], tmp_path / "image"
    preparation = ImagePreparation.from_processor(processor)
    compared = 0
    for told, image, written_as in OPAQUE:
        image.save(path, written_as)
        with Image.open(path) as plain:
            expected = processor(plain.convert("RGB"), return_tensors="np")["pixel_values"][0]
        found = preparation(open_image(path))
        assert found.dtype == np.float32
        assert np.array_equal(found, expected), told
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("name", PROCESSORS)
def test_inverted_pixels_are_those_before_the_levels(name: str) -> None:
    processor, image = PROCESSORS[name], Image.fromarray(noise(640, 480, 3))
    unscaled = {"do_rescale": False, "do_normalize": False, "include_top": False}
    plain = processor(image, **unscaled, return_tensors="np")["pixel_values"][0]
    preparation = ImagePreparation.from_processor(processor)
    found = preparation.invert(preparation(image))
    assert found.dtype == np.uint8
    assert np.array_equal(found, plain.transpose(1, 2, 0).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["align-base", "align-mini"])
def test_exif_orientation(name: str, orientation: int, tmp_path: Path) -> None:
    pixels, path = noise(40, 30, 3), tmp_path / "image.png"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert np.array_equal(np.asarray(open_image(path)), upright)
    processor = PROCESSORS[name]
    expected = processor(Image.fromarray(upright), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(ImagePreparation.from_processor(processor)(open_image(path)), expected)


@pytest.mark.parametrize(
    ("changed", "changes"),
    [
        ("filter", {"resample": 3}),
        ("size", {"size": {"height": 345, "width": 346}}),
        ("factor", {"rescale_factor": 1 / 127}),
        ("offset", {"rescale_offset": False}),
        ("mean and deviation", {"do_normalize": True}),
        ("second deviation", {"include_top": True}),
    ],
)
def test_a_changed_setting_is_not_equal(changed: str, changes: dict[str, Any]) -> None:
    image = Image.fromarray(noise(640, 480, 3))
    expected = align_base()(image, return_tensors="np")["pixel_values"][0]
    found = ImagePreparation.from_processor(align_base(**changes))(image)
    assert found.shape == expected.shape
    assert not np.array_equal(found, expected), changed


def test_a_crop_one_pixel_off_is_not_equal() -> None:
    image = Image.fromarray(noise(346, 346, 3))
    preparation = ImagePreparation.from_processor(align_base())
    expected = align_base()(image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(preparation(image), expected)
    shifted = Image.fromarray(np.roll(np.asarray(image), 1, axis=1))
    assert not np.array_equal(preparation(shifted), expected)


def test_other_backends_and_sizes_are_refused() -> None:
    processor = align_base()
    processor.size = type(processor.size)(shortest_edge=346)
    with pytest.raises(CheckpointError, match=r"a height and a width, but got \{.shortest_edge.: 346\}"):
        ImagePreparation.from_processor(processor)

    class Torchvision(EfficientNetImageProcessorPil):
        @property
        def backend(self) -> str:
            return "torchvision"

    with pytest.raises(CheckpointError, match=r"to run on Pillow, but got the backend 'torchvision'.*backend='pil'"):
        ImagePreparation.from_processor(Torchvision())


# ---- opening


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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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


def test_an_empty_file_is_told(tmp_path: Path) -> None:
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


def test_formats_are_all_built_in() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert all(Image.registered_extensions()[extension] in FORMATS for extension in EXTENSIONS)
    assert features.check("webp")


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


def test_images_are_opened_without_torch() -> None:
    code = "import sys, finetune.data.images; print('torch' in sys.modules, 'albumentations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


# ---- augmentation

IMAGE = Image.fromarray(noise(60, 40, 3))
FLIPS = [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]
MANY = [
    albumentations.Affine(translate_percent=(-0.1, 0.1), rotate=(-15, 15), scale=(0.9, 1.1), p=1.0),
    albumentations.OneOf([albumentations.HorizontalFlip(), albumentations.ColorJitter()], p=0.9),
    albumentations.RandomResizedCrop((50, 50)),
    albumentations.GaussNoise(p=0.5),
]


def test_augmentation_follows_seed_epoch_and_row_alone() -> None:
    augmentation = Augmentation(MANY)
    first = augmentation(IMAGE, 0, 1, 2)
    assert first.dtype == np.uint8
    assert first.shape == (50, 50, 3)
    others = [augmentation(IMAGE, *key) for key in ((1, 1, 2), (0, 0, 2), (0, 1, 3), (0, 2, 1), (2, 1, 0))]
    assert not any(np.array_equal(first, other) for other in others)
    assert np.array_equal(augmentation(IMAGE, 0, 1, 2), first)
    assert np.array_equal(Augmentation(MANY)(IMAGE, 0, 1, 2), first)


def test_transforms_draw_independently_of_each_other() -> None:
    augmentation, pixels = Augmentation(FLIPS), np.asarray(IMAGE)
    flipped = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    counts = [0, 0, 0, 0]
    for row in range(400):
        found = augmentation(IMAGE, 0, 0, row)
        counts[[np.array_equal(found, expected) for expected in flipped].index(True)] += 1
    assert min(counts) > 70  # 100 expected, standard deviation 9


class Augmented(Dataset[np.ndarray]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> np.ndarray:
        return Augmentation(MANY)(IMAGE, 7, 3, row)


def test_augmentation_does_not_depend_on_workers() -> None:
    alone, two, three = (
        np.concatenate([part.numpy() for part in DataLoader(Augmented(), batch_size=3, num_workers=workers)])
        for workers in (0, 2, 3)
    )
    assert np.array_equal(alone, two)
    assert np.array_equal(alone, three)
    assert len({picture.tobytes() for picture in alone}) == 12


@pytest.mark.parametrize("name", ["align-base", "align-mini"])
def test_augmented_images_are_prepared_like_any_other(name: str) -> None:
    processor = PROCESSORS[name]
    preparation = ImagePreparation.from_processor(processor)
    for transforms in (MANY, FLIPS):
        pixels = Augmentation(transforms)(IMAGE, 0, 0, 0)
        expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        assert np.array_equal(preparation.finish(pixels), expected)


def test_reseeding_costs_little() -> None:
    augmentation = Augmentation([albumentations.NoOp(p=0) for _ in range(4)])
    image = Image.new("RGB", (8, 8))
    augmentation(image, 0, 0, 0)
    started = time.perf_counter()
    for row in range(300):
        augmentation(image, 0, 0, row)
    assert (time.perf_counter() - started) / 300 < 1e-3  # 0.1 ms here; wide, as machines are shared

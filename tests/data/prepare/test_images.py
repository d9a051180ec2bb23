import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

from finetune.core.errors import CheckpointError
from finetune.data.prepare.images import ImagePreparation, open_image
from finetune.model.pixels import PixelScale, read_levels

from ..images import noise
from ..processors import PROCESSORS, align_base

SIZES = [(1, 1), (1, 500), (500, 1), (3, 3), (289, 289), (346, 346), (640, 480), (97, 1013)]
ORIENTATION = 0x0112


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


def scale(pixels: np.ndarray, processor: Any) -> np.ndarray:
    """What the towers make of pixels that travelled as bytes."""
    return PixelScale(read_levels(processor))(torch.from_numpy(pixels)[None])[0].numpy()


def prepare(processor: Any, image: Image.Image) -> np.ndarray:
    return scale(ImagePreparation.from_processor(processor)(image), processor)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_processor_bit_for_bit(name: str, tmp_path: Path) -> None:
    processor, path = PROCESSORS[name], tmp_path / "image"
    preparation = ImagePreparation.from_processor(processor)
    compared = 0
    for mode, image, written_as in OPAQUE:
        image.save(path, written_as)
        with Image.open(path) as plain:
            expected = processor(plain.convert("RGB"), return_tensors="np")["pixel_values"][0]
        found = scale(preparation(open_image(path)), processor)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected), mode
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_travel_as_the_processor_resizes_and_crops_them(name: str) -> None:
    processor, image = PROCESSORS[name], Image.fromarray(noise(640, 480, 3))
    unscaled = {"do_rescale": False, "do_normalize": False, "include_top": False}
    plain = processor(image, **unscaled, return_tensors="np")["pixel_values"][0]
    found = ImagePreparation.from_processor(processor)(image)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, plain.astype(np.uint8))


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
    assert np.array_equal(prepare(processor, open_image(path)), expected)


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
    found = prepare(align_base(**changes), image)
    assert found.shape == expected.shape
    assert not np.array_equal(found, expected), changed


def test_a_crop_one_pixel_off_is_not_equal() -> None:
    image = Image.fromarray(noise(346, 346, 3))
    expected = align_base()(image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(prepare(align_base(), image), expected)
    shifted = Image.fromarray(np.roll(np.asarray(image), 1, axis=1))
    assert not np.array_equal(prepare(align_base(), shifted), expected)


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


def test_images_are_opened_without_torch() -> None:
    code = "import sys, finetune.data.prepare.images; print('torch' in sys.modules, 'albumentations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]

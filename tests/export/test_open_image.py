"""The code that README, cards and the adapter guide show makes of every image and text what training makes of them."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.prepare.images import ImagePreparation, open_image
from finetune.data.prepare.texts import TextEncoder
from finetune.export.cards import OPEN_IMAGE, write_card
from finetune.export.classifier import ImageClassifier
from finetune.export.merged import MergedCheckpoint
from finetune.model.base import Base
from finetune.model.pixels import PixelScale

from ..data.images import noise
from .runs import open_trained
from .test_cards import CLASSIFIER_PROOF, MERGED_PROOF

ROOT = Path(__file__).parents[2]
ORIENTATION = 0x0112
LABELS = ["an image of a red square and " + "a very blue one and " * 40, "a cat"]
RGB, RGBA = Image.fromarray(noise(70, 50, 3)), Image.fromarray(noise(70, 50, 4))
GREY16 = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))


def write_pictures(folder: Path) -> Iterator[Path]:
    """Pictures that plain `Image.open(path).convert("RGB")` gets wrong, and ordinary ones."""
    palette = RGBA.quantize(64)
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.jpg": (RGB, {}),
        "rgba.png": (RGBA, {}),
        "rgba.webp": (RGBA, {"lossless": True}),
        "rgba.tif": (RGBA, {}),
        "la.png": (RGBA.convert("LA"), {}),
        "palette.png": (RGB.quantize(64), {}),
        "palette-with-transparency.png": (palette, {}),
        "palette-with-one-transparent-colour.png": (RGB.quantize(64), {"transparency": 3}),
        "palette-with-one-transparent-colour.gif": (RGB.quantize(64), {"transparency": 3}),
        "rgb-with-one-transparent-colour.png": (RGB, {"transparency": RGB.getpixel((3, 3))}),
        "grey-with-one-transparent-level.png": (RGB.convert("L"), {"transparency": 77}),
        "grey.png": (RGB.convert("L"), {}),
        "16-bit.png": (GREY16, {}),
        "16-bit.tif": (GREY16, {}),
        "16-bit-big-endian.tif": (Image.frombytes("I;16B", (256, 256), np.asarray(GREY16).astype(">u2").tobytes()), {}),
        "cmyk.jpg": (RGB.convert("CMYK"), {}),
        "cmyk.tif": (RGB.convert("CMYK"), {}),
        "1-bit.png": (RGB.convert("1"), {}),
        "1-bit.tif": (RGB.convert("1"), {}),
    }
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        pictures[f"turned-{orientation}.jpg"] = (RGB, {"exif": exif})
        pictures[f"turned-{orientation}.png"] = (RGBA, {"exif": exif})
    for name, (image, options) in pictures.items():
        image.save(folder / name, **options)
        yield folder / name


def read_python(page: Path) -> str:
    """The first Python of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[0]


@pytest.fixture
def merged(base, run, tmp_path, monkeypatch) -> Path:
    """A merged folder with its card, in the working directory, beside a picture."""
    monkeypatch.chdir(tmp_path)
    RGB.save(tmp_path / "photo.png")
    artifact, folder = MergedCheckpoint(open_trained(run, base)), tmp_path / "merged"
    folder.mkdir()
    artifact.write(folder)
    write_card(folder, artifact.card("merged", MERGED_PROOF), "birds", {})
    return folder


def run_code(code: str) -> dict[str, Any]:
    """The names that there are once code with the labels of this file has run."""
    names: dict[str, Any] = {}
    assert OPEN_IMAGE in code
    code, count = re.subn(r"labels = \[.*\]", f"labels = {LABELS}", code)
    assert count <= 1
    exec(code, names)
    return names


def run_card(merged: Path, _: pytest.FixtureRequest) -> dict[str, Any]:
    return run_code(read_python(merged / "README.md"))


def run_readme(merged: Path, _: pytest.FixtureRequest) -> dict[str, Any]:
    code = read_python(ROOT / "README.md")
    assert "runs/quickstart/merged" in code
    code = code.replace("runs/quickstart/merged", str(merged)).replace("data/digits/images/0000.png", "photo.png")
    names = run_code(code)
    assert names["image_features"].shape == names["image_embeds"].shape
    assert names["text_features"].shape == names["text_embeds"].shape
    return names


def run_guide(_: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    adapter, base = request.getfixturevalue("run").adapter, request.getfixturevalue("tiny")
    request.getfixturevalue("monkeypatch").setattr(sys, "argv", ["alone.py", str(adapter), base, "photo.png"])
    return run_code(read_python(ROOT / "docs" / "adapter-alone.md"))


def prepare(base: Base, path: Path) -> torch.Tensor:
    """What the towers see of an image in training."""
    pixels = ImagePreparation.from_processor(base.processor(64).image_processor)(open_image(path))
    return PixelScale(base.levels)(torch.from_numpy(pixels[None]))


def check_pixels(folder: Path, base: Base, open_shown: Callable[[Path], Image.Image], process: Callable) -> None:
    differing = [
        path.name
        for path in write_pictures(folder)
        if not np.array_equal(process(open_shown(path))["pixel_values"][0], prepare(base, path)[0])
    ]
    assert differing == []


@pytest.mark.parametrize("run_shown", [run_card, run_readme, run_guide])
def test_shown_code_gives_the_pixels_and_tokens_of_training(base, merged, tmp_path, request, run_shown):
    """Turned, transparent, 16-bit, CMYK and 1-bit pictures; a text beyond the model's limit beside a short one."""
    names = run_shown(merged, request)
    processor, encoder = names["processor"], TextEncoder.from_processor(base.processor(64))
    assert processor.image_processor.backend == "pil"
    check_pixels(tmp_path, base, names["open_image"], lambda image: processor(images=image, return_tensors="np"))
    inputs = names["inputs"]
    assert inputs["pixel_values"].equal(prepare(base, tmp_path / "photo.png"))
    for ids, mask, label in zip(inputs["input_ids"], inputs["attention_mask"], LABELS, strict=True):
        assert ids[mask.bool()].tolist() == encoder.encode(label)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [64, 4]


def test_classifiers_card_gives_the_pixels_of_training(base, head_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RGB.save(tmp_path / "photo.png")
    artifact = ImageClassifier.of(open_trained(head_run, base))
    (tmp_path / "pets").mkdir()
    artifact.write(tmp_path / "pets")
    write_card(tmp_path / "pets", artifact.card("pets", CLASSIFIER_PROOF), "birds", {})
    names = run_code(read_python(tmp_path / "pets" / "README.md"))
    assert names["processor"].backend == "pil"
    check_pixels(tmp_path, base, names["open_image"], names["classify"].preprocess)

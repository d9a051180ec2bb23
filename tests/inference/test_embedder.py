"""Vectors are those that plain transformers computes with the checkpoint's own processor."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignModel, AlignProcessor

from finetune.core.errors import RecipeError
from finetune.inference.checkpoint import find_checkpoint
from finetune.inference.embedder import Embedder, ImageEmbedder, Storage, TextEmbedder, describe_processor
from finetune.model.base import Base

CPU = torch.device("cpu")
TEXTS = ["a red square", "a cat", "A cat", "cat " * 80, "ein Käse 🧀", "a red square"]


@pytest.fixture(scope="module")
def images(colour_table) -> list[str]:
    return [str(colour_table.parent / f"{number}.png") for number in range(5)]


def build(kind: type[Embedder], checkpoint: str | Path, *settings) -> Embedder:
    return kind(*find_checkpoint(checkpoint), CPU, *settings)


@torch.no_grad()
def plain_images(folder, images: list[str], processor=None) -> np.ndarray:
    model = AlignModel.from_pretrained(folder)
    processor = processor or AlignProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(images=[Image.open(path).convert("RGB") for path in images], return_tensors="pt")
    return model.get_image_features(**inputs).pooler_output.numpy()


@torch.no_grad()
def plain_texts(folder, texts: list[str]) -> np.ndarray:
    model, processor = AlignModel.from_pretrained(folder), AlignProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(text=texts, truncation=True, max_length=64, return_tensors="pt")
    return model.get_text_features(**inputs).pooler_output.numpy()


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_images_are_those_of_transformers(tiny, images, tmp_path):
    (tmp_path / "cut.png").write_bytes(Path(images[0]).read_bytes()[:-50])
    noted: list[int] = []
    given = [*images[:2], str(tmp_path / "cut.png"), *images[2:]]
    found = build(ImageEmbedder, tiny, Storage(), 2).embed(given, noted.append)
    assert found.kept == [0, 1, 3, 4, 5]
    assert found.skipped == [(str(tmp_path / "cut.png"), "image file is truncated")]
    assert noted == [2, 1, 2]
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, unit(plain_images(tiny, images)), atol=1e-5)


def test_texts_are_those_of_transformers(tiny):
    found = build(TextEmbedder, tiny, Storage(), 2).embed(TEXTS, lambda _: None)
    assert list(found.kept) == [*range(6)]
    np.testing.assert_allclose(found.vectors, unit(plain_texts(tiny, TEXTS)), atol=1e-5)
    np.testing.assert_array_equal(found.vectors[0], found.vectors[5])


def test_raw_vectors_keep_their_length(tiny, images):
    raw = Storage(normalised=False)
    expected = plain_images(tiny, images)
    found = build(ImageEmbedder, tiny, raw).embed(images, lambda _: None).vectors
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.linalg.norm(expected, axis=1).max() > 1.5  # else nothing would be tested
    found = build(TextEmbedder, tiny, raw).embed(TEXTS, lambda _: None).vectors
    np.testing.assert_allclose(found, plain_texts(tiny, TEXTS), atol=1e-5)


def test_half_precision_is_rounded_once(tiny, images):
    whole = build(ImageEmbedder, tiny).embed(images, lambda _: None).vectors
    half = build(ImageEmbedder, tiny, Storage(dtype="float16")).embed(images, lambda _: None).vectors
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, whole.astype(np.float16))


def test_a_run_is_what_it_exported(two_towers, images):
    embedder = build(ImageEmbedder, two_towers.path)
    merged = two_towers.path / "merged"
    assert embedder.space.fingerprint == Base.open(merged).fingerprint
    found = embedder.embed(images, lambda _: None).vectors
    np.testing.assert_allclose(found, unit(plain_images(merged, images)), atol=1e-5)


def test_where_nothing_can_be_read_there_are_no_rows(tiny, tmp_path):
    found = build(ImageEmbedder, tiny).embed([str(tmp_path / "absent.png")], lambda _: None)
    assert found.vectors.shape == (0, 64)
    assert found.skipped == [(str(tmp_path / "absent.png"), "no file")]


def test_the_space_says_what_made_the_vectors(tiny):
    base = Base.open(tiny)
    space = build(TextEmbedder, tiny, Storage(normalised=False, dtype="float16")).space
    assert (space.fingerprint, space.dimension) == (base.fingerprint, 64)
    assert (space.tower, space.normalised, space.dtype, space.column) == ("text", False, "float16", "text")
    processor = AlignProcessor.from_pretrained(tiny, backend="pil")
    grey = processor(images=[Image.new("RGB", (64, 64), c) for c in ("black", "white")], return_tensors="np")
    assert space.processor["black"] == pytest.approx(grey["pixel_values"][0, :, 0, 0].tolist(), abs=1e-6)
    assert space.processor["white"] == pytest.approx(grey["pixel_values"][1, :, 0, 0].tolist(), abs=1e-6)
    assert space.processor["crop"] == [64, 64]
    assert space.processor["tokens"] == 64
    assert describe_processor(base.processor(96)) != space.processor


def test_a_model_that_is_not_sound_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "align")
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.bias"] = torch.full((64,), torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match="Expected finite vectors in float32, but got NaN or infinity: sha256:"):
        build(TextEmbedder, folder).embed(TEXTS, lambda _: None)

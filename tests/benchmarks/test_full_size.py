"""The recipe for retrieval on a checkpoint of align-base's full size, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from transformers import AlignModel

from finetune.model.base import Base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(load_benchmarks: Callable[..., dict[str, ModuleType]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, but the sizes, image processor and vocabulary of align-base."""
    folder = tmp_path_factory.mktemp("base") / "align-base"
    folder.mkdir()
    load_benchmarks(full_size="align_base")["full_size"].write_random_base(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty noisy pictures of several shapes, each with its own caption.

    The splits are named, since these random weights magnify rounding: trained on some of the other rows they do so a
    thousandfold, by which no merge is within its tolerance.
    """
    splits = {0: "test", 18: "test", 1: "val", 3: "val"}
    folder = tmp_path_factory.mktemp("table")
    generator = np.random.default_rng(0)
    lines = ["image,caption,split"]
    for number in range(20):
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((300 + 10 * number, 360)).save(folder / f"{number}.jpg")
        lines.append(f"{number}.jpg,a picture of {number} things on a table,{splits.get(number, 'train')}")
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def merged(base: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two steps of the recipe leave."""
    folder = tmp_path_factory.mktemp("work")
    words = [
        "--model.checkpoint",
        base,
        "--data.table.path",
        table,
        "--data.batch_size",
        4,
        "--data.table.split",
        "split",
    ]
    words += ["--trainer.max_steps", 2, "--trainer.accelerator", "cpu"]
    command = [sys.executable, "-m", "finetune", "fit", "--config", "retrieval_lora", *words]
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "runs" / "retrieval_lora" / "merged"


def test_the_merge_is_proven(merged):
    proof = json.loads((merged / "merge_proof.json").read_text())
    assert proof["max_abs_difference"].keys() >= {"image", "text"}
    assert max(proof["max_abs_difference"].values()) <= 1e-5
    assert (merged.parent / "finished.json").is_file()


def test_its_onnx_files_are_proven(merged, tmp_path):
    command = [sys.executable, "-m", "finetune", "export", merged.parent, "--output", tmp_path / "served", "--onnx"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    proof = json.loads((tmp_path / "served" / "merge_proof.json").read_text())["onnx"]
    assert max(proof["differences"][tower]["raw"] for tower in ("image", "text")) <= 1e-4
    assert (tmp_path / "served" / "onnx" / "image.onnx").stat().st_size > 200e6


def test_the_merged_model_has_been_trained(merged, base):
    before, after = (AlignModel.from_pretrained(folder).state_dict() for folder in (base, merged))
    assert after.keys() == before.keys()
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    for tower in ("vision_model", "text_model", "text_projection", "temperature"):
        assert any(name.startswith(tower) for name in changed), tower
    assert not any("running_" in name for name in changed)


def test_the_processor_stays_the_bases(merged, base):
    found, expected = (Base.open(folder).processor() for folder in (merged, base))
    assert found.image_processor.to_dict() == expected.image_processor.to_dict()
    assert dict(found.image_processor.size) == {"height": 346, "width": 346}
    assert dict(found.image_processor.crop_size) == {"height": 289, "width": 289}
    assert found.image_processor.resample == Image.Resampling.BILINEAR
    assert found.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    pixels = [processor(images=image)["pixel_values"] for processor in (found, expected)]
    np.testing.assert_array_equal(*pixels)
    assert np.shape(pixels[0]) == (1, 3, 289, 289)

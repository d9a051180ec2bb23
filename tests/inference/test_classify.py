"""Images classified as plain transformers classifies them, by prompts or by a head; nothing is computed twice."""

import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import AlignModel, AlignProcessor, AutoModelForImageClassification, pipeline
from transformers.models.align.modeling_align import AlignTextModel, AlignVisionModel
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetModel

from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.core.files import write_json
from finetune.inference.classify import classify, list_images
from finetune.model.base import Base
from finetune.model.efficientnet import build_classifier
from finetune.model.head import LinearHead
from finetune.run.folder import RunFolder

LABELS = ["a red square", "a green square", "something blue"]
CLASSES = ("cat", "dog", "Käse", "emu", "fox")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Coarse noise in several modes and sizes, more than are asked about at a time."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(35):
        noise = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((90 + index, 70))
        noise.convert(("RGB", "L", "P")[index % 3]).save(folder / f"{index:02d}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def sharp(tiny, tmp_path_factory) -> str:
    """The small ALIGN with a low temperature, so that probabilities differ."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("sharp") / "align")
    weights = load_file(folder / "model.safetensors") | {"temperature": torch.tensor(0.01)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def forwards():
    """Batch sizes of the forward passes of each kind of model."""
    sizes = defaultdict(list)

    def note(module, _, output) -> None:
        if isinstance(module, AlignTextModel | AlignVisionModel | EfficientNetModel):
            sizes[type(module).__name__].append(len(output[0]))

    hook = register_module_forward_hook(note)
    yield sizes
    hook.remove()


@pytest.fixture(scope="module", params=[False, True], ids=["one label", "several labels"])
def classifier(request, sharp, tmp_path_factory) -> Path:
    """A classifier as it is exported."""
    return write_classifier(sharp, tmp_path_factory.mktemp("exported") / "classifier", request.param)


def write_classifier(checkpoint: str, folder: Path, is_multilabel: bool) -> Path:
    base, random = Base.open(checkpoint), torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 64, generator=random) / 10, torch.randn(5, generator=random)
    build_classifier(base.load(), LinearHead(weight, bias, CLASSES, is_multilabel)).save_pretrained(folder)
    base.processor().image_processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def plain_probabilities(checkpoint, images: list[Path], labels: list[str]) -> torch.Tensor:
    """One image at a time, as the model card does it."""
    align, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint, backend="pil")
    rows = []
    for path in images:
        inputs = processor(images=Image.open(path).convert("RGB"), text=labels, return_tensors="pt")
        rows.append(align(**inputs).logits_per_image.softmax(dim=1)[0])
    return torch.stack(rows)


def as_matrix(rows: pd.DataFrame, images: list[Path], labels) -> torch.Tensor:
    """Probabilities of shape (images, labels), once the lines are seen to stand in that order."""
    assert list(rows.columns) == ["image", "label", "probability"]
    assert rows["image"].tolist() == [str(path) for path in images for _ in labels]
    assert rows["label"].tolist() == list(labels) * len(images)
    return torch.tensor(rows["probability"].to_numpy(copy=True)).reshape(len(images), len(labels))


def test_prompts_answer_as_the_model_card_does(sharp, images, forwards):
    found = classify(sharp, images, LABELS)
    assert dict(forwards) == {"AlignTextModel": [3], "AlignVisionModel": [32, 3]}
    assert found.answered_by == f"the text prompts of {Path(sharp).resolve()} (zero-shot)"
    probabilities = as_matrix(found.rows, images, LABELS)
    expected = plain_probabilities(sharp, images, LABELS)
    assert expected.std() > 0.1
    torch.testing.assert_close(probabilities, expected, rtol=1e-3, atol=1e-5)


def test_prompts_answer_as_the_pipeline_does(sharp, images):
    ask = pipeline(
        "zero-shot-image-classification", model=sharp, image_processor=Base.open(sharp).processor().image_processor
    )
    found = as_matrix(classify(Path(sharp), images[:3], LABELS).rows, images[:3], LABELS)
    for path, row in zip(images[:3], found.tolist(), strict=True):
        answers = ask(Image.open(path).convert("RGB"), candidate_labels=LABELS, hypothesis_template="{}")
        expected = {answer["label"]: answer["score"] for answer in answers}
        assert dict(zip(LABELS, row, strict=True)) == pytest.approx(expected, abs=1e-4)


def test_many_labels_are_embedded_in_batches(sharp, images, forwards):
    labels = [f"number {index}" for index in range(300)]
    found = classify(sharp, images[:2], labels)
    assert dict(forwards) == {"AlignTextModel": [256, 44], "AlignVisionModel": [2]}
    torch.testing.assert_close(as_matrix(found.rows, images[:2], labels).sum(dim=1), torch.ones(2, dtype=torch.float32))


def test_a_head_answers_for_its_classes(classifier, images, forwards):
    found = classify(classifier, images)
    assert dict(forwards) == {"EfficientNetModel": [32, 3]}
    assert found.answered_by == f"the head of {classifier}"
    probabilities = as_matrix(found.rows, images, CLASSES)
    model = AutoModelForImageClassification.from_pretrained(classifier)
    ask = pipeline("image-classification", model=str(classifier), top_k=len(CLASSES))
    is_multilabel = model.config.problem_type == "multi_label_classification"
    for path, row in zip(images[:4], probabilities.tolist(), strict=False):
        expected = {answer["label"]: answer["score"] for answer in ask(Image.open(path).convert("RGB"))}
        assert dict(zip(CLASSES, row, strict=True)) == pytest.approx(expected, abs=1e-4)
    sums = probabilities.sum(dim=1)
    assert sums.allclose(torch.ones(len(images))) != is_multilabel


def test_a_finished_run_answers_by_its_head_or_its_prompts(sharp, images, tmp_path):
    run = make_run(sharp, tmp_path / "run")
    by_head = classify(str(run.path), images[:3])
    assert by_head.answered_by == f"the head of {run.classifier}"
    pd.testing.assert_frame_equal(by_head.rows, classify(run.classifier, images[:3]).rows)
    by_prompts = classify(str(run.path), images[:3], LABELS)
    assert by_prompts.answered_by == f"the text prompts of {run.merged} (zero-shot)"
    pd.testing.assert_frame_equal(by_prompts.rows, classify(sharp, images[:3], LABELS).rows)


def test_prompts_of_a_run_that_trained_a_head_alone_are_its_bases(sharp, images, tmp_path):
    """There is no merged folder then; images are prepared as in the run, here at another size."""
    run = make_run(sharp, tmp_path / "run")
    shutil.rmtree(run.merged)
    shutil.rmtree(run.processor)
    Base.open(sharp).processor(96).save_pretrained(run.processor)
    write_json(run.environment, {"checkpoint": {"name": sharp}})
    found = classify(run.path, images[:3], LABELS)
    assert found.answered_by == f"the text prompts of {Path(sharp).resolve()} (zero-shot)"
    copied = shutil.copytree(sharp, tmp_path / "larger")
    Base.open(sharp).processor(96).save_pretrained(copied)
    expected = plain_probabilities(copied, images[:3], LABELS)
    torch.testing.assert_close(as_matrix(found.rows, images[:3], LABELS), expected, rtol=1e-3, atol=1e-5)


def make_run(checkpoint: str, path: Path) -> RunFolder:
    """The files of a finished run that are read to classify."""
    run = RunFolder(path)
    path.mkdir()
    shutil.copytree(checkpoint, run.merged)
    write_classifier(checkpoint, run.classifier, is_multilabel=False)
    Base.open(checkpoint).processor().save_pretrained(run.processor)
    run.finish({})
    return run


def test_a_head_reads_no_labels(classifier, images):
    message = (
        r"to be asked without --label, but got 'a red square': an image classifier of fixed classes reads no texts"
    )
    with pytest.raises(RecipeError, match=message):
        classify(classifier, images, LABELS)


@pytest.mark.parametrize("model", ["whole", "absent", "unfinished"])
def test_labels_are_needed_where_there_is_no_head(sharp, images, tmp_path, model):
    """An unfinished run has no head yet, and what is not there has none."""
    if model == "unfinished":
        make_run(sharp, tmp_path / model).finished.unlink()
    path = sharp if model == "whole" else str(tmp_path / model)
    with pytest.raises(
        RecipeError, match=rf"Expected --label for {path}, .* no head .* but got none\. Name each class"
    ):
        classify(path, images)


def test_a_finished_run_without_a_head_needs_labels(sharp, images, tmp_path):
    run = make_run(sharp, tmp_path / "run")
    shutil.rmtree(run.classifier)
    with pytest.raises(RecipeError, match=rf"Expected --label for {run.path}, which has no head that knows classes"):
        classify(run.path, images)


def test_models_that_do_not_open_are_refused(sharp, images, tmp_path):
    with pytest.raises(CheckpointError, match=r"a folder or a hub id.*'align_mini'.*mean 'align-mini'\?"):
        classify("align_mini", images, LABELS)
    folder = write_classifier(sharp, tmp_path / "classifier", is_multilabel=False)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="to open as an AutoImageProcessor, but got: "):
        classify(folder, images)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="to open as an EfficientNetForImageClassification, but got: "):
        classify(folder, images)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json to be a JSON object, but got: a list"):
        classify(folder, images)


def test_images_that_do_not_open_are_refused(sharp, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(images[0].read_bytes()[:-50])
    for path, message in (
        (tmp_path / "absent.png", "to be an image file, but got none"),
        (tmp_path / "broken.png", "whole image"),
    ):
        with pytest.raises(TableError, match=message):
            classify(sharp, [images[0], path], LABELS)


def test_folders_of_images_are_listed_in_the_order_of_names(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    single = tmp_path / "notes.txt"  # named, it is taken for an image
    assert list_images([single, tmp_path]) == [
        single,
        *(tmp_path / name for name in ("a.JPG", "b.png", "deep/c.webp")),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match=r"empty to hold images \(\.bmp, .*\), but it holds none\."):
        list_images([tmp_path / "empty"])

"""Images classified as plain transformers classifies them, by prompts or by a head; nothing is computed twice."""

import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch.nn.modules.module import register_module_forward_hook
from transformers import AlignModel, AlignProcessor, AutoModelForImageClassification, pipeline
from transformers.models.align.modeling_align import AlignTextModel, AlignVisionModel
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetModel

from finetune.core import bar
from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.core.files import write_json
from finetune.inference.classify import classify
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


def test_progress_is_shown(sharp, images, capsys, monkeypatch):
    monkeypatch.setattr(bar, "REPEATED", 0.0)
    classify(sharp, images, LABELS)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("images: 1 of 2 batches, ")
    assert re.fullmatch(r"images: 2 of 2 batches, 00:00 left, [\d.e+]+ images/s", second)


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


@pytest.mark.parametrize("model", ["whole", "absent"])
def test_labels_are_needed_where_there_is_no_head(sharp, images, tmp_path, model):
    """What is not there has none."""
    path = sharp if model == "whole" else str(tmp_path / model)
    with pytest.raises(
        RecipeError, match=rf"Expected --label for {path}, .* no head .* but got none\. Name each class"
    ):
        classify(path, images)


@pytest.mark.parametrize("labels", [(), LABELS])
@pytest.mark.parametrize("is_exported", [False, True])
def test_an_unfinished_run_is_called_unfinished(sharp, images, tmp_path, labels, is_exported):
    run = make_run(sharp, tmp_path / "run")
    run.recipe.touch()
    run.finished.unlink()
    if not is_exported:
        shutil.rmtree(run.merged)
        shutil.rmtree(run.classifier)
    message = rf"{run.path} to be a finished run, but it is unfinished: .* left of it: finetune resume {run.path}"
    with pytest.raises(CheckpointError, match=message):
        classify(run.path, images, labels)


def test_a_misspelt_run_is_named(sharp, images, tmp_path):
    make_run(sharp, tmp_path / "flowers").recipe.touch()
    with pytest.raises(RecipeError, match=r"flower to be a run, .* Did you mean '.*flowers'\?"):
        classify(tmp_path / "flower", images)


def test_a_finished_run_without_a_head_needs_labels(sharp, images, tmp_path):
    run = make_run(sharp, tmp_path / "run")
    shutil.rmtree(run.classifier)
    with pytest.raises(RecipeError, match=rf"Expected --label for {run.path}, which has no head that knows classes"):
        classify(run.path, images)


def test_models_that_do_not_open_are_refused(sharp, images, tmp_path):
    with pytest.raises(CheckpointError, match=r"a folder or a hub id.*'align_mini'.*mean 'align-mini'\?"):
        classify("align_mini", images, LABELS)
    folder = write_classifier(sharp, tmp_path / "classifier", is_multilabel=False)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="to open as an EfficientNetForImageClassification, but got: "):
        classify(folder, images)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="to open as an AutoImageProcessor, but got: "):
        classify(folder, images)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json to be a JSON object, but got: a list"):
        classify(folder, images)


@pytest.fixture
def unreadable(images, tmp_path) -> dict[Path, str]:
    """Files that are no whole images, and why."""
    (tmp_path / "cut.png").write_bytes(images[0].read_bytes()[:-50])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "link.png").symlink_to("nowhere")
    reasons = ("image file is truncated", "an empty file", "its content is of none of these formats", "no file")
    return dict(
        zip((tmp_path / name for name in ("cut.png", "empty.png", "text.jpg", "link.png")), reasons, strict=True)
    )


@pytest.mark.parametrize("by_head", [False, True])
def test_images_that_cannot_be_read_are_left_out_and_the_others_answered(sharp, images, unreadable, forwards, by_head):
    """Among more images than a batch holds, so that one batch has no readable image."""
    model = write_classifier(sharp, next(iter(unreadable)).parent / "classifier", False) if by_head else sharp
    labels = CLASSES if by_head else LABELS
    cut, *others = unreadable
    given = [images[0], cut, *images[1:3], *others, *[cut] * 56, images[3]]
    found = classify(model, given, () if by_head else labels)
    whole = classify(model, images[:4], () if by_head else labels)
    pd.testing.assert_frame_equal(found.rows, whole.rows)
    reasons = {str(path): reason for path, reason in unreadable.items()}
    assert dict(found.skipped) == reasons
    assert [path for path, _ in found.skipped] == [str(path) for path in given if path not in images]
    if not by_head:
        assert forwards == {"AlignTextModel": [3, 3], "AlignVisionModel": [3, 1, 4]}  # texts once a call


def test_where_no_image_can_be_read_nothing_is_opened(sharp, unreadable, forwards, count_opens):
    opened = count_opens(Path(sharp) / "model.safetensors")
    (cut, reason), *_ = unreadable.items()
    for given, end in (
        ([cut], r"\. Save it again"),
        (list(unreadable), r"; nor can the others be read, 4 in all\. Save"),
    ):
        with pytest.raises(TableError, match=f"Expected {cut} to be a whole image .*, but got: {reason}{end}"):
            classify(sharp, given, LABELS)
    assert not forwards
    assert opened() == 0


def test_images_that_are_not_there_are_refused(sharp, images, tmp_path):
    with pytest.raises(TableError, match=r"absent\.png to be an image file, but got none there\. "):
        classify(sharp, [images[0], tmp_path / "absent.png"], LABELS)
    with pytest.raises(TableError, match="Expected at least one image, but got none"):
        classify(sharp, [], LABELS)


def test_one_image_need_not_be_listed(sharp, images):
    pd.testing.assert_frame_equal(
        classify(sharp, images[0], LABELS).rows, classify(sharp, [str(images[0])], LABELS).rows
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a cat", ""], "to be a text, but got ''"),
        (["a cat", " \t"], "to be a text, but got ' "),
        (["a cat"], "two labels or more, .*, but got 'a cat' alone"),
        ("a cat", "two labels or more, .*, but got 'a cat' alone"),
        (["a cat", "a dog", "a cat"], "each --label once, but got 'a cat' twice"),
        (["a cat", " a cat "], "each --label once, but got 'a cat' twice"),
        (["cote", "côte"], "differ to the model, but got 'cote' and 'côte', both of which it reads as 'cote'"),
        (["a cat", "A Cat"], "got 'a cat' and 'A Cat', both of which it reads as 'a cat'"),
        (["🜁", "a cat", "🜂"], r"got '🜁' and '🜂', both of which it reads as '\[UNK\]'"),
        (["a " * 70 + "cat", "a " * 70 + "dog"], "differ to the model"),
    ],
)
def test_labels_whose_probabilities_would_say_nothing_are_refused(sharp, images, count_opens, labels, message):
    """Empty, single, doubled, and equal to the tokenizer by accent, case, unknown signs or truncation."""
    opened = count_opens(Path(sharp) / "model.safetensors")
    with pytest.raises(RecipeError, match=message):
        classify(sharp, images, labels)
    assert opened() == 0


TEMPLATES = ("a photo of a {}.", "{}, drawn", "one {}")


@torch.no_grad()
def plain_ensemble(checkpoint, images: list[Path], names: list[str]) -> torch.Tensor:
    """Class embeddings as in CLIP's notebook: unit vectors of the prompts, their mean, made a unit vector again."""
    align, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint, backend="pil")
    classes = []
    for name in names:
        words = processor(text=[template.format(name) for template in TEMPLATES], return_tensors="pt")
        prompts = align.get_text_features(**words).pooler_output
        mean = (prompts / prompts.norm(dim=-1, keepdim=True)).mean(dim=0)
        classes.append(mean / mean.norm())
    pictures = processor(images=[Image.open(path).convert("RGB") for path in images], return_tensors="pt")
    features = align.get_image_features(**pictures).pooler_output
    features = features / features.norm(dim=-1, keepdim=True)
    return (features @ torch.stack(classes).T / align.temperature).softmax(dim=1)


def test_several_templates_are_averaged_as_class_prompts_are(sharp, images):
    found = classify(sharp, images[:4], ["cat", "dog", "emu"], templates=TEMPLATES)
    expected = plain_ensemble(sharp, images[:4], ["cat", "dog", "emu"])
    assert expected.std() > 0.1
    torch.testing.assert_close(as_matrix(found.rows, images[:4], ["cat", "dog", "emu"]), expected, rtol=1e-3, atol=1e-5)
    assert found.answered_by.endswith("(zero-shot, in a photo of a {}. | {}, drawn | one {})")
    with pytest.raises(RecipeError, match="each template to hold {} once"):
        classify(sharp, images[0], LABELS, templates=["a photo"])


def test_a_file_of_labels_is_written_into_the_runs_own_templates(sharp, images, tmp_path):
    """As is each class of a run that has no head; a label that is given as a text is read as it stands."""
    run = make_run(sharp, tmp_path / "run")
    words = {"classes": ["cat", "dog", "emu"], "templates": TEMPLATES}
    write_json(run.environment, words)
    file = tmp_path / "names.csv"
    file.write_text("n1,cat\n\nn2,dog\nn3, emu\n")
    by_file = classify(run.path, images[:3], file)
    expected = plain_ensemble(sharp, images[:3], words["classes"])
    probabilities = as_matrix(by_file.rows, images[:3], words["classes"])
    torch.testing.assert_close(probabilities, expected, rtol=1e-3, atol=1e-5)
    alone = classify(run.path, images[:3], words["classes"])
    assert alone.answered_by == f"the text prompts of {run.merged} (zero-shot)"
    pd.testing.assert_frame_equal(alone.rows, classify(sharp, images[:3], file).rows)
    pd.testing.assert_frame_equal(alone.rows, classify(run.path, images[:3], file, templates=["{}"]).rows)
    assert classify(run.path, images[:3]).answered_by == f"the head of {run.classifier}"
    with pytest.raises(RecipeError, match="asked without --template, but got 'one {}': its head reads no texts"):
        classify(run.path, images[:3], templates=["one {}"])
    shutil.rmtree(run.classifier)
    pd.testing.assert_frame_equal(classify(run.path, images[:3]).rows, by_file.rows)


def test_answers_are_measured_where_the_truth_is_known(sharp, images):
    """By the labels as the file has them; images that cannot be read or have no label do not count."""
    names = {"n1": "cat", "n2": "dog", "n3": "emu"}
    random = np.random.default_rng(0)
    truth = [None if number % 5 == 4 else f"n{random.integers(1, 4)}" for number in range(len(images))]
    found = classify(sharp, images, names, truth=truth)
    scores = as_matrix(found.rows, images, names.values())
    known = [number for number, label in enumerate(truth) if label]
    expected = [int(truth[number][1]) - 1 for number in known]
    predicted = scores[known].argmax(dim=1).tolist()
    assert found.measured == 28
    assert found.metrics["accuracy"] == pytest.approx(accuracy_score(expected, predicted))
    assert found.metrics["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(expected, predicted))
    assert 0 < found.metrics["accuracy"] < 1
    assert classify(sharp, images[:2], names, truth=[None, ""]).metrics == {}
    column = pd.DataFrame({"label": truth})["label"]
    for labels in (column, column.astype("str"), column.to_numpy(), [label or np.nan for label in truth]):
        assert classify(sharp, images, names, truth=labels).metrics == found.metrics


def test_equal_scores_are_right_by_their_chance(tiny, images, tmp_path):
    """Where all classes have one embedding, a third is right of three, whatever the order."""
    folder = shutil.copytree(tiny, tmp_path / "collapsed")
    weights = load_file(folder / "model.safetensors")
    weights |= {name: torch.zeros_like(weights[name]) for name in weights if name.startswith("text_projection")}
    weights["text_projection.bias"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for label in LABELS:
        found = classify(folder, images[:4], LABELS, truth=[label] * 4)
        assert found.metrics["accuracy"] == pytest.approx(1 / 3)


def test_truth_that_cannot_be_right_is_refused(sharp, classifier, images, count_opens):
    opened = count_opens(Path(sharp) / "model.safetensors")
    message = r"the true label of .*00\.png to be among .*, but got 'a gren square'\. Did you mean 'a green square'\?"
    with pytest.raises(RecipeError, match=message):
        classify(sharp, images[:1], LABELS, truth=["a gren square"])
    with pytest.raises(RecipeError, match="a true label for each of 2 images, but got 1"):
        classify(sharp, images[:2], LABELS, truth=LABELS[:1])
    assert opened() == 0
    with pytest.raises(RecipeError, match=r"one true label of .*00\.png, but got 2: .* gives each image one"):
        classify(sharp, images[:1], LABELS, truth=[LABELS[:2]])
    table = pd.DataFrame({"image": images[:2], "label": CLASSES[:2]})
    if AutoModelForImageClassification.from_pretrained(classifier).config.problem_type == "multi_label_classification":
        with pytest.raises(RecipeError, match="--label_separator, as .* finds several labels an image, but got none"):
            classify(classifier, table, truth="label")
    else:
        with pytest.raises(RecipeError, match=r"no --label_separator for .*, which gives an image one label"):
            classify(classifier, table, truth="label", label_separator="|")


@pytest.mark.parametrize("has_head", [True, False])
def test_runs_know_what_labels_of_their_table_are_called(sharp, images, tmp_path, has_head):
    run = make_run(sharp, tmp_path / "run")
    names = {f"n{number}": name for number, name in enumerate(CLASSES)}
    write_json(run.environment, {"classes": CLASSES, "templates": TEMPLATES, "names": names})
    if not has_head:
        shutil.rmtree(run.classifier)
    found = classify(
        run.path, pd.DataFrame({"image": images[:4], "kind": ["n1", "n3", "n2", CLASSES[0]]}), truth="kind"
    )
    best = as_matrix(found.rows, images[:4], CLASSES).argmax(dim=1).tolist()
    assert found.metrics["accuracy"] == pytest.approx(accuracy_score([1, 3, 2, 0], best))
    assert found.measured == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected labels, but got none"),
        ("a cat\na dog, sitting, up\n", r"labels\.csv:2: Expected a label, or a label and its name.*comma in double"),
        ("n1,cat\nn1,dog\n", r"labels\.csv:2: Expected each label once, but got 'n1'"),
        ("a cat\n", "two labels or more"),
        ("n1,cat\nn2,cat\n", "each --label once, but got 'cat' twice"),
    ],
)
def test_files_of_labels_that_cannot_be_used_are_refused(sharp, images, tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises((TableError, RecipeError), match=message):
        classify(sharp, images[:1], tmp_path / "labels.csv")
    with pytest.raises(TableError, match="--labels to be a file"):
        classify(sharp, images[:1], tmp_path / "label.csv")

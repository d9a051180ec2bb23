"""What follows from the kind of a table: metric, truth, prompts, and what a prediction's line says, against NumPy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from finetune.core.types import Answers
from finetune.data.loading.kinds import MOST_LABELS, Captions, OneLabel, SeveralLabels, TableKind, find_kind
from finetune.data.prepare.texts import TextEncoder
from finetune.data.table.table import Table
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.average_precision import AveragePrecision
from finetune.metrics.retrieval import Retrieval
from finetune.model.base import Base

from ..tables import Write

NAMES = [f"{letter}.png" for letter in "abcdef"]
TEXTS = ["a cat", "a dog", "a cat", "a cow", "two cows", "a dog"]
SETS = ["cat|dog", "", "cow", "emu|cat|fox|gnu|yak|dog", "emu", "dog"]


@pytest.fixture
def captions(write: Write) -> TableKind:
    return find_kind(
        Table(str(write(("image", "text"), *zip(NAMES, TEXTS, strict=True))), caption="text").read(required=())
    )


@pytest.fixture
def one_label(write: Write) -> TableKind:
    return find_kind(
        Table(str(write(("image", "text"), *zip(NAMES, TEXTS, strict=True))), label="text").read(required=())
    )


@pytest.fixture
def several_labels(write: Write) -> TableKind:
    path = write(("image", "text"), *zip(NAMES, SETS, strict=True))
    return find_kind(Table(str(path), label="text", label_separator="|").read(required=()))


def answers_to(kind: TableKind, rows: np.ndarray, seed: int = 0) -> Answers:
    """Random features and scores of rows of a table, scores where it has classes."""
    random = torch.Generator().manual_seed(seed)
    return Answers(
        torch.from_numpy(rows),
        torch.from_numpy(kind.rows.image_ids[rows]),
        torch.from_numpy(kind.rows.caption_ids[rows]),
        kind.truth(rows),
        torch.randn(len(rows), 8, generator=random),
        torch.randn(len(rows), 8, generator=random),
        3 * torch.randn(len(rows), len(kind.classes), generator=random) if kind.classes else None,
    )


def predict(kind: TableKind, answers: Answers) -> pd.DataFrame:
    metric = kind.metric()
    metric.observe(answers)
    return kind.predictions(answers, metric)


def test_captions_are_measured_by_retrieval(captions: TableKind) -> None:
    assert isinstance(captions, Captions)
    assert (captions.classes, captions.has_one_label, captions.is_multilabel) == ((), False, False)
    assert isinstance(captions.metric(), Retrieval)
    assert captions.truth(np.array([0, 3])).tolist() == [-1, -1]


def test_labels_are_measured_by_accuracy(one_label: TableKind) -> None:
    assert isinstance(one_label, OneLabel)
    assert one_label.classes == ("a cat", "a cow", "a dog", "two cows")
    assert (one_label.has_one_label, one_label.is_multilabel) == (True, False)
    assert isinstance(one_label.metric(), ClassAccuracy)
    truth = one_label.truth(np.array([4, 0, 1]))
    assert (truth.dtype, truth.tolist()) == (torch.int64, [3, 0, 2])


def test_several_labels_are_measured_by_average_precision(several_labels: TableKind) -> None:
    assert isinstance(several_labels, SeveralLabels)
    assert several_labels.classes == ("cat", "cow", "dog", "emu", "fox", "gnu", "yak")
    assert (several_labels.has_one_label, several_labels.is_multilabel) == (False, True)
    assert isinstance(several_labels.metric(), AveragePrecision)
    rows = np.array([3, 1, 0])
    truth = several_labels.truth(rows)
    assert truth.dtype == torch.bool
    assert truth.tolist() == [[name in SETS[row].split("|") for name in several_labels.classes] for row in rows]


@pytest.mark.parametrize("name", ["captions", "one_label", "several_labels"])
def test_every_metric_is_fresh(name: str, request: pytest.FixtureRequest) -> None:
    kind: TableKind = request.getfixturevalue(name)
    first, second = kind.metric(), kind.metric()
    first.observe(answers_to(kind, np.arange(6), seed=1))
    for metric in (first, second):
        metric.observe(answers_to(kind, np.arange(6)))
    once = kind.metric()
    once.observe(answers_to(kind, np.arange(6)))
    found = {key: float(value) for key, value in second.compute().items()}
    assert found == {key: float(value) for key, value in once.compute().items()}
    assert found != {key: float(value) for key, value in first.compute().items()}


def test_figures_are_those_of_numpy(captions: TableKind, one_label: TableKind) -> None:
    """The figure that speaks for a model, counted by hand from the same answers."""
    rows = np.array([5, 0, 1, 2, 3])
    answers = answers_to(one_label, rows)
    metric = one_label.metric()
    metric.observe(answers)
    assert answers.class_scores is not None
    right = answers.class_scores.numpy().argmax(axis=1) == one_label.rows.label_ids[rows]
    assert float(metric.compute()[metric.headline]) == pytest.approx(right.mean())
    answers = answers_to(captions, np.array([0, 1, 3, 4]))  # all captions differ
    metric = captions.metric()
    metric.observe(answers)
    assert answers.image_features is not None
    assert answers.text_features is not None
    similarity = cosines(answers.image_features, answers.text_features)
    best = (similarity.argmax(axis=1) == np.arange(4)).mean()
    assert float(metric.compute()["image_to_text/R@1"]) == pytest.approx(best)


def cosines(images: torch.Tensor, texts: torch.Tensor) -> np.ndarray:
    one, other = (part.double().numpy() for part in (images, texts))
    one, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (one, other))
    return one @ other.T


@pytest.mark.parametrize("name", ["one_label", "several_labels"])
def test_prompts_are_every_class_in_every_template(name: str, request: pytest.FixtureRequest) -> None:
    kind: TableKind = request.getfixturevalue(name)
    processor, templates = Base.open("align-mini").processor(), ("a {}.", "one {} of many words")
    prompts = kind.prompts(TextEncoder.from_processor(processor), templates)
    assert prompts is not None
    assert prompts.names == kind.classes
    assert prompts.label_ids.tolist() == [label for label in range(len(kind.classes)) for _ in templates]
    texts = [template.replace("{}", name) for name in kind.classes for template in templates]
    expected = processor(text=texts, padding="longest", return_tensors="pt")
    assert prompts.input_ids.equal(expected["input_ids"])
    assert prompts.attention_mask.equal(expected["attention_mask"])


def test_captions_have_no_prompts(captions: TableKind) -> None:
    assert captions.prompts(TextEncoder.from_processor(Base.open("align-mini").processor()), ("a {}.",)) is None


def test_a_label_is_predicted_with_its_probability(one_label: TableKind) -> None:
    rows = np.array([4, 0, 5, 1])
    answers = answers_to(one_label, rows)
    assert answers.class_scores is not None
    found = predict(one_label, answers)
    assert list(found) == ["row", "label", "prediction", "score"]
    assert found["row"].tolist() == [6, 2, 7, 3]  # as a spreadsheet counts
    assert found["label"].tolist() == [TEXTS[row] for row in rows]
    scores = answers.class_scores.double().numpy()
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert found["prediction"].tolist() == [one_label.classes[label] for label in shares.argmax(axis=1)]
    np.testing.assert_allclose(found["score"], shares.max(axis=1), rtol=1e-5)


def test_of_several_labels_the_best_are_listed(several_labels: TableKind) -> None:
    rows = np.array([3, 0, 1])
    answers = answers_to(several_labels, rows)
    assert answers.class_scores is not None
    found = predict(several_labels, answers)
    assert list(found) == ["row", "label", "prediction", "score"]
    assert found["label"].tolist() == ["cat|dog|emu|fox|gnu|yak", "cat|dog", ""]
    scores = answers.class_scores.numpy()
    for line, own in enumerate(scores):
        best = np.argsort(-own)[:MOST_LABELS]
        assert found["prediction"][line] == "|".join(several_labels.classes[label] for label in best)
        np.testing.assert_allclose([float(score) for score in found["score"][line].split("|")], own[best], rtol=1e-5)


def test_a_caption_finds_its_image_and_an_image_its_caption(captions: TableKind) -> None:
    """Ranks of rows in any order; equal captions are one."""
    rows = np.array([5, 0, 1, 2, 4, 3])
    answers = answers_to(captions, rows)
    assert answers.image_features is not None
    assert answers.text_features is not None
    answers.text_features[[0, 1]] = answers.text_features[[2, 3]]  # "a dog" and "a cat" stand on two rows each
    found = predict(captions, answers)
    similarity = cosines(answers.image_features, answers.text_features)
    texts = [TEXTS[row] for row in rows]
    assert found["caption"].tolist() == texts
    assert found["prediction"].tolist() == [texts[at] for at in similarity.argmax(axis=1)]
    np.testing.assert_allclose(found["score"], similarity.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["similarity"], similarity.diagonal(), rtol=1e-5, atol=1e-6)
    distinct = [texts.index(text) for text in sorted(set(texts))]
    for line, text in enumerate(texts):
        to_texts = similarity[line, distinct]
        assert found["image_to_text_rank"][line] == 1 + (to_texts > similarity[line, texts.index(text)] + 1e-6).sum()
        right = [at for at, other in enumerate(texts) if other == text]
        to_images = similarity[:, line]
        wrong = np.delete(to_images, right)
        assert found["text_to_image_rank"][line] == 1 + (wrong > to_images[right].max()).sum()
        place = captions.rows.place(rows[to_images.argmax()])
        assert found["retrieved"][line] == place
        assert place.endswith(f"table.csv:{rows[to_images.argmax()] + 2}")


@pytest.mark.parametrize("reader", [lambda path: Table(path, label="text"), lambda path: Table(path, caption="text")])
def test_rows_of_several_files_name_theirs(folder: Path, reader: Callable[[str], Table]) -> None:
    for part, at in (("one", 0), ("two", 3)):
        pd.DataFrame({"image": NAMES[at : at + 3], "text": TEXTS[at : at + 3]}).to_csv(
            folder / f"{part}.csv", index=False
        )
    kind = find_kind(reader(str(folder / "*.csv")).read(required=()))
    found = predict(kind, answers_to(kind, np.array([4, 0])))
    assert list(found)[-1] == "file"
    assert [Path(file).name for file in found["file"]] == ["two.csv", "one.csv"]
    assert found["row"].tolist() == [3, 2]

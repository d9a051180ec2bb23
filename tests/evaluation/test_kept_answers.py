"""Answers joined from kept halves, against each model asked as a whole."""

from collections import Counter

import pytest
import torch

from finetune.core.interpolation import Interpolation
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.kept_answers import KeptAnswers
from finetune.export.choose_interpolation import Line
from finetune.model.base import Base
from finetune.model.head import LinearHead

IMAGE = ((0.0, 0.0), (0.4, 0.4), (1.0, 0.5))
TEXT = ((0.0, 0.0), (0.4, 0.4), (0.9, 0.9))
PROFILES = [Interpolation(image, text) for image in IMAGE for text in TEXT]
KINDS = ["captions", "labels", "head"]


@pytest.fixture(scope="module")
def data(tiny, colour_table):
    def read(kind):
        table = Table(
            str(colour_table), **({"caption": "caption"} if kind == "captions" else {"label": "label"}), split="split"
        )
        return ImageTextDataModule(table, tiny, batch_size=8)

    return {kind: read(kind) for kind in KINDS}


def build_line(tiny, kind, moved=("vision_model.", "text_")) -> Line:
    """Noise in all of one tower or both, and a head."""
    base = Base.open(tiny)
    generator = torch.Generator().manual_seed(0)
    state = base.load().state_dict()
    for name, tensor in state.items():
        if name.startswith(moved) and tensor.ndim > 1:
            state[name] = tensor + 0.2 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    width = base.dimension
    weight, start = (torch.randn(3, width, generator=generator) / width for _ in range(2))
    head = LinearHead(weight, torch.zeros(3), ("blue", "green", "red"), False, start, torch.ones(3))
    state["temperature"] = torch.tensor(0.3)
    return Line(base, state, head if kind == "head" else None, torch.device("cpu"))


def count_forwards(line) -> Counter:
    """How often each tower is asked from now on."""
    seen = Counter()
    for name, part in (("image", line.towers.align.vision_model), ("text", line.towers.align.text_model)):
        part.register_forward_hook(lambda *_, name=name: seen.update([name]))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_halves_is_the_model_of_that_profile(tiny, data, kind, cpu):
    rows, line = data[kind], build_line(tiny, kind)
    kept, whole = KeptAnswers(line, rows, "val", cpu, "val", by_head=True), build_line(tiny, kind)
    seen = count_forwards(line)
    found = [kept.evaluate(profile) for profile in PROFILES]
    passes = len(rows.loader("val"))
    assert seen["image"] == passes * len(IMAGE)
    assert seen["text"] == {"captions": passes * len(TEXT), "labels": len(TEXT), "head": 0}[kind]
    scores = set()
    for profile, one in zip(PROFILES, found, strict=True):
        model = whole.at(profile, rows.class_prompts)
        expected = evaluate(model, rows.loader("val"), rows.kind.metric(), cpu)
        assert one.headline == expected.headline
        assert one.metrics == pytest.approx(expected.metrics, abs=1e-6)
        assert one.answers.rows.equal(expected.answers.rows)
        for name in ("image_features", "text_features", "class_scores"):
            answer, other = getattr(one.answers, name), getattr(expected.answers, name)
            assert (answer is None) == (other is None)
            if other is not None:
                torch.testing.assert_close(answer, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
                scores.add(float(answer.double().sum()))
    assert len(scores) > len(IMAGE)
    images = found[0].answers.image_features.nbytes
    texts = {"captions": images, "labels": images // 3, "head": 0}[kind]  # nine rows, three classes
    assert kept.count_bytes({"image": 3, "text": 5}) == 3 * images + 5 * texts


def test_the_tower_that_was_not_trained_is_asked_once(tiny, data, cpu):
    rows, line = data["captions"], build_line(tiny, "captions", moved=("text_",))
    kept, seen = KeptAnswers(line, rows, "val", cpu, "val"), count_forwards(line)
    answers = [kept.answers(weight) for weight in (0.0, 0.5, 1.0)]
    passes = len(rows.loader("val"))
    assert seen == {"image": passes, "text": 3 * passes}
    assert answers[0].image_features is answers[2].image_features
    assert not answers[0].text_features.equal(answers[2].text_features)
    assert line.moved == ("text",)
    kept.forget()
    kept.answers(0.5)
    assert seen == {"image": 2 * passes, "text": 4 * passes}


def test_a_head_answers_on_its_own_table_alone(tiny, data, cpu):
    line = build_line(tiny, "head")
    by_prompts = KeptAnswers(line, data["labels"], "val", cpu, "val").answers(0.5)
    by_head = KeptAnswers(line, data["labels"], "val", cpu, "val", by_head=True).answers(0.5)
    assert by_prompts.image_features.equal(by_head.image_features)
    expected = by_head.image_features @ line.head_at(0.5).weight.T + line.head_at(0.5).bias
    torch.testing.assert_close(by_head.class_scores, expected)
    assert not by_prompts.class_scores.equal(by_head.class_scores)

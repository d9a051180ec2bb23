"""Metrics observe a model's answers: the fields they need, and no others."""

import pytest
import torch

from finetune.core.types import Answers
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.average_precision import AveragePrecision
from finetune.metrics.retrieval import Retrieval


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[-1]))


ROWS, IMAGE_IDS, CAPTION_IDS = torch.arange(6) + 4, torch.arange(6) // 2, torch.arange(6) % 4
LABEL_IDS, TARGETS = torch.arange(6) % 3, draw(6, 3) > 0


def answers(truth: torch.Tensor, **given: torch.Tensor) -> Answers:
    return Answers(ROWS, IMAGE_IDS, CAPTION_IDS, truth, **given)


@pytest.mark.parametrize(
    ("build", "headline", "observed", "fields"),
    [
        (
            Retrieval,
            "mean_R@K",
            answers(LABEL_IDS, image_features=draw(6, 5), text_features=-draw(6, 5)),
            (draw(6, 5), -draw(6, 5), IMAGE_IDS, CAPTION_IDS),
        ),
        (ClassAccuracy, "accuracy", answers(LABEL_IDS, class_scores=draw(6, 3)), (draw(6, 3), LABEL_IDS)),
        (
            lambda: AveragePrecision("abc"),
            "mean_average_precision",
            answers(TARGETS, class_scores=draw(6, 3)),
            (draw(6, 3), TARGETS),
        ),
    ],
    ids=["retrieval", "accuracy", "precision"],
)
def test_observing_is_updating_with_the_right_fields(build, headline, observed, fields):
    by_answers, by_fields = build(), build()
    by_answers.observe(observed)
    by_fields.update(*fields)
    assert by_answers.compute() == by_fields.compute()
    assert by_answers.headline == headline
    assert headline in by_answers.figures()


@pytest.mark.parametrize(
    ("metric", "given", "missing"),
    [
        (Retrieval(), {"image_features": draw(6, 5)}, "text_features"),
        (Retrieval(), {"text_features": draw(6, 5)}, "image_features"),
        (ClassAccuracy(), {"image_features": draw(6, 5)}, "class_scores"),
        (AveragePrecision("abc"), {"image_features": draw(6, 5)}, "class_scores"),
    ],
)
def test_answers_without_what_a_metric_needs_are_refused(metric, given, missing):
    with pytest.raises(ValueError, match=rf"Expected answers to have {missing}, but got none\."):
        metric.observe(answers(LABEL_IDS, **given))

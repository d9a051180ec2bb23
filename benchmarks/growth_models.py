"""Work on embeddings, scores and batches for the growth benchmark: each function prepares the work of a size."""

from collections.abc import Callable
from pathlib import Path

import torch
from align_base import random_batch
from growth_tables import CLASSES, Prepare, Work

from finetune.core.types import ClassPrompts, Embeddings, Texts
from finetune.data.prepare.texts import TextEncoder
from finetune.inference.embed import embed_classes
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.average_precision import AveragePrecision
from finetune.metrics.bootstrap import paired_difference
from finetune.metrics.knn import neighbour_votes
from finetune.metrics.retrieval import Retrieval
from finetune.metrics.row_metric import RowMetric
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.model.towers import AlignTowers
from finetune.objectives import CrossEntropy, Objective
from finetune.training.head_start import FromProbe, Seen
from finetune.training.heap import freed_memory_kept
from finetune.training.task import AlignTask

Metric = Callable[[int], RowMetric]
"""Makes a metric for a number of classes."""

DIMENSION = 320
"""Width of the embeddings, as align-mini's."""

SCORED = 4096
"""Rows where the number of classes grows."""

BATCH = 1024
"""Rows that a metric sees at a time."""


def retrieve(rows: int, _: Path) -> Work:
    """Ranks all captions for each image and all images for each caption."""
    torch.manual_seed(0)
    images, texts = torch.randn(2, rows, DIMENSION)
    ids = torch.arange(rows)

    def work() -> object:
        metric = Retrieval()
        metric.update(images, texts, ids, ids)
        return metric.compute()

    return work


def vote(rows: int, _: Path) -> Work:
    """Lets the nearest training images of each test image vote, as many of the ones as of the others."""
    torch.manual_seed(0)
    queries, items = torch.nn.functional.normalize(torch.randn(2, rows, DIMENSION), dim=-1)
    labels = torch.arange(rows) % CLASSES
    return lambda: neighbour_votes(queries, items, labels, CLASSES)


def by_rows(metric: Metric) -> Prepare:
    """Measures the scores of `CLASSES` classes for growing rows."""
    return lambda rows, _: _measure(metric, rows, CLASSES)


def by_classes(metric: Metric) -> Prepare:
    """Measures the scores of growing classes for `SCORED` rows."""
    return lambda classes, _: _measure(metric, SCORED, classes)


def _measure(metric: Metric, rows: int, classes: int) -> Work:
    torch.manual_seed(0)
    scores, labels = torch.randn(rows, classes), torch.arange(rows) % classes
    truth = torch.nn.functional.one_hot(labels, classes).bool() if metric is average_precision else labels

    def work() -> object:
        found = metric(classes)
        for part in zip(scores.split(BATCH), truth.split(BATCH), strict=True):
            found.update(*part)
        return found.compute()

    return work


def accuracy(_: int) -> RowMetric:
    """The metric of tables with one label a row."""
    return ClassAccuracy()


def average_precision(classes: int) -> RowMetric:
    """The metric of tables with several labels a row."""
    return AveragePrecision([f"class {number}" for number in range(classes)])


def bootstrap(rows: int, _: Path) -> Work:
    """Finds the interval of a difference of accuracies."""
    figures = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        metric = ClassAccuracy()
        metric.update(torch.randn(rows, 2), torch.arange(rows) % 2)
        figures.append(metric.figures()["accuracy"])
    return lambda: paired_difference(*figures)


def step(rows: int, _: Path) -> Work:
    """Trains a step of both towers, forward and backward."""
    task, batch = AlignTask("align-mini"), random_batch(rows, 64, 8)
    return freed_memory_kept()(lambda: task.loss(task(batch), batch).backward())


def step_of_texts(tokens: int, _: Path) -> Work:
    """Trains a step of the text tower."""
    task, batch = AlignTask("align-mini", image_lora=None), random_batch(64, 32, tokens)
    texts = Texts(batch.input_ids, batch.attention_mask)
    return freed_memory_kept()(lambda: task.towers.text_embeddings(texts).text_embeds.sum().backward())


def lose(objective: Objective) -> Prepare:
    """Computes an objective and its gradient."""

    def prepare(rows: int, _: Path) -> Work:
        batch = random_batch(rows, 1, 1)
        images, texts = torch.randn(2, rows, DIMENSION, requires_grad=True)
        embeddings = Embeddings(images, texts, torch.tensor(0.05))
        return freed_memory_kept()(lambda: torch.autograd.grad(objective(embeddings, batch), [images, texts]))

    return prepare


def embed_prompts(classes: int, _: Path) -> Work:
    """Embeds the prompts of all classes."""
    base = Base.open("align-mini")
    towers = AlignTowers(base.load())
    encoder = TextEncoder.from_processor(base.processor())

    def work() -> object:
        names = tuple(f"class {number}" for number in range(classes))
        ids, mask = map(torch.as_tensor, encoder.pad([encoder.encode(f"a photo of a {name}.") for name in names]))
        return embed_classes(towers, ClassPrompts(names, ids, mask, torch.arange(classes)), torch.device("cpu"))

    return work


def step_of_head(classes: int, _: Path) -> Work:
    """Computes the loss of a head on 64 rows, and its gradient."""
    names = [str(number) for number in range(classes)]
    head, objective = LinearHead(torch.randn(classes, DIMENSION), torch.zeros(classes), names), CrossEntropy()
    batch = random_batch(64, 1, 1)._replace(label_ids=torch.arange(64) % classes)
    features = torch.randn(64, DIMENSION)
    return lambda: objective(head(features), batch).backward()


def start_from_probe(classes: int, _: Path) -> Work:
    """Starts a head from a probe of as many rows as a run shows it."""
    torch.manual_seed(0)
    rows = FromProbe().rows
    seen = Seen(torch.randn(rows, DIMENSION), torch.arange(rows) % classes, torch.ones(rows))
    return lambda: FromProbe()(torch.randn(classes, DIMENSION), torch.tensor(0.05), seen)

"""The kind of a table: captions, one label a row, or several. What is measured on its rows follows from it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from finetune.core.types import Answers, ClassPrompts
from finetune.data.loading.prompts import encode_prompts
from finetune.data.prepare.texts import TextEncoder
from finetune.data.table.cells import Integers
from finetune.data.table.rows import Rows
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.average_precision import AveragePrecision
from finetune.metrics.retrieval import Retrieval
from finetune.metrics.row_metric import RowMetric

MOST_LABELS = 5
"""Labels that are listed of a prediction where an image may have several."""

ROWS = 4096
"""Rows that are looked at at a time."""


class TableKind(ABC):
    """Owns what depends on whether rows carry captions, one label, or several.

    Args:
        rows: The table's rows.

    Attributes:
        has_one_label: Whether each row has exactly one class, so that probabilities can be right or wrong.
        is_multilabel: Whether a row may have several classes, or none.
    """

    has_one_label = False
    is_multilabel = False

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where rows carry captions alone."""
        return self.rows.classes

    @abstractmethod
    def metric(self) -> RowMetric:
        """Returns a fresh metric, by which models are measured on such rows."""

    def truth(self, rows: Integers) -> Tensor:
        """Returns what the class scores of rows are measured against, see `Batch.truth`: label ids, -1 without classes.

        Args:
            rows: Positions in the table, shape (N,).
        """
        return torch.from_numpy(self.rows.label_ids[rows])

    @abstractmethod
    def predict(self, rows: Integers, answers: Answers, metric: RowMetric) -> dict[str, Any]:
        """Returns the columns of `predictions.csv` that say what a model makes of rows.

        Args:
            rows: Positions in the table, shape (N,).
            answers: What the model says of them.
            metric: That of this kind, which has observed the answers.
        """

    def prompts(self, texts: TextEncoder, templates: Sequence[str]) -> ClassPrompts | None:
        """Returns every class name in every template; None where there are no classes.

        Args:
            texts: Encodes as the base's tokenizer does.
            templates: Sentences with `{}` once, where the name goes.
        """
        return encode_prompts(self.classes, texts, templates) if self.classes else None

    def predictions(self, answers: Answers, metric: RowMetric) -> pd.DataFrame:
        """Returns what a model says of rows, a line for each.

        Columns: `row` as the table numbers it; `label` or `caption`; `prediction`; `score` (probability of the class,
        or cosine similarity of the caption). Where an image may have several labels, the `MOST_LABELS` best, best
        first, and their logits, separated as the table's labels are. With captions also `similarity` (of the row's own
        image and caption), `image_to_text_rank` and `text_to_image_rank` (from 1, of the best placed correct item), and
        `retrieved` (the row whose image is nearest to the caption, as `file:row`). And `file` where the table has
        several, as each of them numbers its own rows.

        Args:
            answers: What the model says.
            metric: That of this kind, which has observed the answers.
        """
        rows = answers.rows.numpy()
        columns = self.predict(rows, answers, metric)
        found = pd.DataFrame({"row": [self.rows.number(row) for row in rows], **columns})
        return found.assign(file=[self.rows.file(row) for row in rows]) if len(self.rows.files) > 1 else found


class Captions(TableKind):
    """Rows with captions and no labels: images and texts find each other."""

    def metric(self) -> Retrieval:
        """Returns a fresh `Retrieval`."""
        return Retrieval()

    def predict(self, rows: Integers, answers: Answers, metric: RowMetric) -> dict[str, Any]:
        """Returns the nearest caption of each image, the nearest image of each caption, and the ranks."""
        assert isinstance(metric, Retrieval)
        assert answers.image_features is not None
        assert answers.text_features is not None
        table, found = self.rows, metric.search()
        images, captions = found.rows.T
        return {
            "caption": [table.captions[row] for row in rows],
            "prediction": [
                table.captions[rows[row]] for row in found.captions[found.image_to_text.nearest[images]].tolist()
            ],
            "score": found.image_to_text.similarity[images].tolist(),
            "similarity": _similarities(answers.image_features, answers.text_features).tolist(),
            "image_to_text_rank": found.image_to_text.placement.ranks()[images].tolist(),
            "text_to_image_rank": found.text_to_image.placement.ranks()[captions].tolist(),
            "retrieved": [
                table.place(rows[row]) for row in found.images[found.text_to_image.nearest[captions]].tolist()
            ],
        }


class OneLabel(TableKind):
    """Rows with one label each: images find their class."""

    has_one_label = True

    def metric(self) -> ClassAccuracy:
        """Returns a fresh `ClassAccuracy`."""
        return ClassAccuracy()

    def predict(self, rows: Integers, answers: Answers, metric: RowMetric) -> dict[str, Any]:  # noqa: ARG002
        """Returns the most probable class of each image."""
        assert answers.class_scores is not None
        best = [part.softmax(dim=-1).max(dim=-1) for part in answers.class_scores.split(ROWS)]
        return {
            "label": [self.classes[self.rows.label_ids[row]] for row in rows],
            "prediction": [self.classes[index] for part in best for index in part.indices.tolist()],
            "score": [score for part in best for score in part.values.tolist()],
        }


class SeveralLabels(TableKind):
    """Rows with several labels each, or none: classes find their images, and images their classes."""

    is_multilabel = True

    def metric(self) -> AveragePrecision:
        """Returns a fresh `AveragePrecision`."""
        return AveragePrecision(self.classes)

    def truth(self, rows: Integers) -> Tensor:
        """Returns which labels rows have, bool of shape (N, C)."""
        return torch.from_numpy(self.rows.targets(rows))

    def predict(self, rows: Integers, answers: Answers, metric: RowMetric) -> dict[str, Any]:  # noqa: ARG002
        """Returns the best classes of each image."""
        assert answers.class_scores is not None
        assert self.rows.label_sets is not None
        separator = self.rows.label_sets.separator
        best = answers.class_scores.topk(min(MOST_LABELS, len(self.classes)))
        return {
            "label": [self.rows.captions[row] for row in rows],
            "prediction": [separator.join(self.classes[index] for index in line) for line in best.indices.tolist()],
            "score": [separator.join(f"{score:.6g}" for score in line) for line in best.values.tolist()],
        }


def find_kind(rows: Rows) -> TableKind:
    """Returns the kind of a table.

    Args:
        rows: Its rows.
    """
    if not rows.classes:
        return Captions(rows)
    return OneLabel(rows) if rows.label_sets is None else SeveralLabels(rows)


def _similarities(images: Tensor, texts: Tensor) -> Tensor:
    """The cosine similarity of each image with the text of the same row."""
    parts = zip(images.split(ROWS), texts.split(ROWS), strict=True)
    return torch.cat([cosine_similarity(image, text, dim=-1) for image, text in parts])

"""What a base's frozen image embeddings give without fine-tuning: a linear probe, and the nearest neighbours."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from finetune.core.types import Answers, Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.inference.embed import embed
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.knn import neighbour_votes
from finetune.metrics.row_metric import RowMetric
from finetune.metrics.statistics import Figure
from finetune.model.towers import AlignTowers


class FrozenImages(NamedTuple):
    """Image embeddings of a table with labels, all of one model.

    Attributes:
        train_embeds: Float32 tensor of shape (N, D), unit vectors; an image that stands on several rows comes once.
        train_truth: Int64 tensor of shape (N,), the label of each, or bool of shape (N, C) where it may have several.
        test_embeds: Float32 tensor of shape (M, D), unit vectors, one for each test row.
        test_truth: Likewise.
        classes: Number of classes.
    """

    train_embeds: Tensor
    train_truth: Tensor
    test_embeds: Tensor
    test_truth: Tensor
    classes: int


def embed_images(
    towers: AlignTowers, data: ImageTextDataModule, device: torch.device, test: Answers, progress: str | None = None
) -> FrozenImages:
    """Embeds the training images without augmentation, in float32.

    Args:
        towers: The model, on `device`.
        data: A table with labels.
        device: Where the image tower runs.
        test: What the same model said of the test rows, image features among it.
        progress: Title under which progress is shown; None shows none.
    """

    def encode(batch: Batch) -> Answers:
        return Answers.of(batch, towers.image_features(batch.pixel_values))

    train = embed(encode, data.loader("train"), device, progress=progress, shared=True)
    assert train.image_features is not None
    assert test.image_features is not None
    rows, kind, trained = data.rows, data.kind, train.rows.numpy()
    text_ids = rows.caption_ids if kind.is_multilabel else rows.label_ids
    pairs = np.stack([rows.image_ids[trained], text_ids[trained]], axis=1)
    once = np.sort(np.unique(pairs, axis=0, return_index=True)[1])
    return FrozenImages(
        train_embeds=normalize(train.image_features[once], dim=-1),
        train_truth=kind.truth(trained[once]),
        test_embeds=normalize(test.image_features, dim=-1),
        test_truth=kind.truth(test.rows.numpy()),
        classes=len(kind.classes),
    )


def neighbour_accuracy(images: FrozenImages, neighbours: int) -> Figure:
    """Returns what share of the test rows the nearest training images classify rightly, see `neighbour_votes`.

    Args:
        images: The embeddings.
        neighbours: How many training images vote, at least 1.
    """
    metric = ClassAccuracy()
    votes = neighbour_votes(images.test_embeds, images.train_embeds, images.train_truth, images.classes, neighbours)
    metric.update(votes, images.test_truth)
    return metric.figures()["accuracy"]


def linear_probe(images: FrozenImages, metric: RowMetric) -> dict[str, float]:
    """Returns what a logistic regression on the training images' embeddings reaches on the test rows.

    Where an image may have several labels, one classifier is fitted for each of them.

    Args:
        images: The untouched base's embeddings.
        metric: A fresh one, that of the table's kind.

    Returns:
        The keys that a test of the base has, such as `test/accuracy`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    train, test = images.train_embeds.numpy(), images.test_embeds.numpy()
    classifier = LogisticRegression(C=100.0, max_iter=2000)
    if images.test_truth.ndim == 2:
        classifiers = OneVsRestClassifier(classifier).fit(train, images.train_truth.numpy())
        scores = classifiers.decision_function(test)
        scores = scores.reshape(images.test_truth.shape)  # of a single class scikit-learn returns no column
    else:
        truth = images.train_truth.numpy()
        known = np.unique(truth)
        scores = np.full((len(test), images.classes), -np.inf)
        scores[:, known] = classifier.fit(train, truth).predict_log_proba(test) if len(known) > 1 else 0.0
    metric.update(torch.from_numpy(scores), images.test_truth)
    return {f"test/{name}": float(value) for name, value in metric.compute().items()}

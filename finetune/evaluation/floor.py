"""The honest floor: logistic regression on the frozen embeddings of the untouched checkpoint."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torchmetrics import Metric

from finetune.evaluation.baselines import FrozenImages


def logistic_regression_floor(images: FrozenImages, metric: Metric) -> dict[str, float]:
    """What the embeddings give without any fine-tuning: a linear classifier fitted on the training images.

    Where an image may have several labels, one classifier for each of them.

    Args:
        images: The untouched checkpoint's embeddings.
        metric: A fresh one, see `finetune.metrics.choose_metric`.

    Returns:
        The keys that a test of the checkpoint has, such as `test/accuracy`.
    """
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

"""The honest floor: logistic regression on the frozen embeddings of the untouched checkpoint."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from finetune.frozen import FrozenImages
from finetune.metrics import ClassAccuracy


def logistic_regression_floor(images: FrozenImages) -> dict[str, float]:
    """What the embeddings give without any fine-tuning: a linear classifier fitted on the training images.

    Args:
        images: The untouched checkpoint's embeddings.

    Returns:
        The keys that a test of the checkpoint has, such as `test/accuracy`.
    """
    classifier = LogisticRegression(C=100.0, max_iter=2000)
    classifier.fit(images.train_embeds.numpy(), images.train_labels.numpy())
    scores = np.full((len(images.test_labels), images.classes), -1e9)
    scores[:, classifier.classes_] = classifier.predict_log_proba(images.test_embeds.numpy())
    metric = ClassAccuracy()
    metric.update(torch.from_numpy(scores), images.test_labels)
    return {f"test/{name}": float(value) for name, value in metric.compute().items()}

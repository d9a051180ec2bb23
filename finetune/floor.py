"""The honest floor: logistic regression on the frozen embeddings of the untouched checkpoint."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torch.utils.data import DataLoader
from torchmetrics import Metric

from finetune.batch import Batch
from finetune.data.datamodule import ImageTextDataModule
from finetune.metrics import choose_metric
from finetune.task import AlignTask


def logistic_regression_floor(task: AlignTask, data: ImageTextDataModule) -> dict[str, float]:
    """What the embeddings give without any fine-tuning: a linear classifier fitted on the training rows.

    Where an image may have several labels, one classifier for each of them.

    Args:
        task: The untouched checkpoint; its image tower is used.
        data: A table with labels.

    Returns:
        The keys that a test of the checkpoint has, such as `test/accuracy`.
    """
    train_embeds, train_labels = _image_embeds(task, data.loader("train"))
    test_embeds, test_labels = _image_embeds(task, data.loader("test"))
    classifier = LogisticRegression(C=100.0, max_iter=2000)
    if data.rows.label_sets is not None:
        scores = OneVsRestClassifier(classifier).fit(train_embeds, train_labels).decision_function(test_embeds)
        scores = scores.reshape(test_labels.shape)  # of a single class scikit-learn returns no column
    else:
        classifier.fit(train_embeds, train_labels)
        scores = np.full((len(test_labels), len(data.rows.classes)), -1e9)
        scores[:, classifier.classes_] = classifier.predict_log_proba(test_embeds)
    metric: Metric = choose_metric(data.class_prompts)
    metric.update(torch.from_numpy(scores), torch.from_numpy(test_labels))
    return {f"test/{name}": float(value) for name, value in metric.compute().items()}


@torch.inference_mode()
def _image_embeds(task: AlignTask, loader: DataLoader[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Normalised image embeddings of shape (N, D), and label ids of shape (N,) or targets of shape (N, C)."""
    embeds, labels = [], []
    task.eval()
    for batch in loader:
        features = task.towers.image_features(batch.pixel_values.to(task.device))
        embeds.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy())
        labels.append(batch.truth.numpy())
    return np.concatenate(embeds), np.concatenate(labels)

"""A checkpoint's image embeddings of training and test rows, and how well the nearest neighbours classify."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.cells import Integers
from finetune.data.table.rows import Rows
from finetune.metrics import ClassAccuracy, Figure, neighbour_votes
from finetune.training.task import AlignTask


class FrozenImages(NamedTuple):
    """Image embeddings of a table with labels, all of one checkpoint.

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


@torch.inference_mode()
def embed_images(
    device: torch.device, task: AlignTask, data: ImageTextDataModule, test_rows: Integers, test_features: Tensor
) -> FrozenImages:
    """Embeds the training images without augmentation, in float32.

    Args:
        device: Where the image tower runs; the task is on the CPU afterwards.
        task: The checkpoint; its image tower is used.
        data: A table with labels.
        test_rows: Int64 array of shape (M,), the test rows that were measured.
        test_features: What `evaluate` found for the test rows with the same checkpoint, shape (M, D).
    """
    task.eval().to(device)
    features, seen = [], []
    for batch in data.loader("train"):
        features.append(task.towers.image_features(batch.pixel_values.to(device)).float().cpu())
        seen.append(batch.rows.numpy())
    task.cpu()
    rows, train = data.rows, np.concatenate(seen)
    truth_ids = rows.label_ids if rows.label_sets is None else rows.caption_ids
    pairs = np.stack([rows.image_ids[train], truth_ids[train]], axis=1)
    once = np.sort(np.unique(pairs, axis=0, return_index=True)[1])
    return FrozenImages(
        train_embeds=normalize(torch.cat(features)[once], dim=-1),
        train_truth=_truth(rows, train[once]),
        test_embeds=normalize(test_features, dim=-1),
        test_truth=_truth(rows, test_rows),
        classes=len(rows.classes),
    )


def _truth(rows: Rows, chosen: Integers) -> Tensor:
    return torch.from_numpy(rows.label_ids[chosen] if rows.label_sets is None else rows.targets(chosen))


def neighbour_accuracy(images: FrozenImages, neighbours: int) -> Figure:
    """What share of the test rows the nearest training images classify rightly, see `neighbour_votes`.

    Args:
        images: The embeddings.
        neighbours: How many training images vote, at least 1.
    """
    metric = ClassAccuracy()
    votes = neighbour_votes(images.test_embeds, images.train_embeds, images.train_truth, images.classes, neighbours)
    metric.update(votes, images.test_truth)
    return metric.figures()["accuracy"]

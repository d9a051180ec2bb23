"""A plain training loop: AdamW, warm-up and cosine, bfloat16 autocast, BatchNorm in evaluation mode."""

from collections.abc import Callable, Iterable

import albumentations
import numpy as np
import torch
from torch import Tensor
from transfer_data import TaskData
from transfer_tasks import Task
from transformers import get_cosine_schedule_with_warmup

from finetune.data.prepare.augmentation import Augmentation

BATCH_SIZE = 64


def build_augmentation(task: Task) -> Augmentation:
    """Builds the task's augmentations."""
    return Augmentation(
        [
            getattr(albumentations, step["class_path"].rpartition(".")[2])(**step.get("init_args", {}))
            for step in task.augmentations
        ]
    )


def train(
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    data: TaskData,
    learning_rate: float,
    seed: int,
    epochs: range | None = None,
) -> None:
    """Trains for the task's epochs, or for some of them under a schedule of their own.

    Args:
        parameters: The parameters to train; the model stays in evaluation mode.
        loss: Takes pixel values (B, 3, S, S) and the positions (B,) of the rows in `data.train`.
        data: The task.
        learning_rate: Peak of the schedule.
        seed: Draws order and augmentations.
        epochs: Which of the task's epochs; None for all.
    """
    epochs = range(data.task.epochs) if epochs is None else epochs
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-2)
    batches = -(-len(data.train) // BATCH_SIZE)
    steps = len(epochs) * batches
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    augmentation = build_augmentation(data.task)
    for epoch in epochs:
        order = np.random.default_rng([seed, epoch]).permutation(len(data.train))
        for rows in np.array_split(order, batches):
            pixels = np.stack([_augment(augmentation, data, seed, epoch, row) for row in rows.tolist()])
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(data.train.pixel_values(pixels), torch.from_numpy(rows))
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()


def _augment(augmentation: Augmentation, data: TaskData, seed: int, epoch: int, row: int) -> np.ndarray:
    compose = augmentation.compose
    compose.set_random_seed(int(np.random.default_rng([seed, epoch, row]).integers(2**31)))
    image = np.ascontiguousarray(data.train.pixels[row].transpose(1, 2, 0))
    return compose(image=image)["image"].transpose(2, 0, 1)

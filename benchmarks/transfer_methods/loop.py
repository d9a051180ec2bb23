"""A plain loop: augmented batches, AdamW, warm-up and cosine, bfloat16 autocast, BatchNorm in evaluation mode."""

from collections.abc import Callable, Iterable

import albumentations
import numpy as np
import torch
from torch import Tensor
from transfer_data import TaskData
from transformers import get_cosine_schedule_with_warmup

from finetune.data.prepare.images import Augmentation

BATCH_SIZE = 64


def build_augmentation(data: TaskData) -> Augmentation:
    """The task's augmentations."""
    steps = []
    for step in data.task.augmentations:
        arguments = dict(step.get("init_args", {}))
        if "size" in arguments:
            arguments["size"] = (data.train.image_size, data.train.image_size)
        steps.append(getattr(albumentations, step["class_path"].rpartition(".")[2])(**arguments))
    return Augmentation(steps)


def train(
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    data: TaskData,
    learning_rate: float,
    seed: int,
) -> None:
    """Trains for the task's epochs.

    Args:
        parameters: What is trained; the model stays in evaluation mode.
        loss: Called with pixel values (B, 3, S, S) and the positions (B,) of the rows in `data.train`.
        data: The task.
        learning_rate: Peak of the schedule.
        seed: Seed of order and augmentations.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-2)
    batches = -(-len(data.train) // BATCH_SIZE)
    steps = data.task.epochs * batches
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    augmentation = build_augmentation(data)
    for epoch in range(data.task.epochs):
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

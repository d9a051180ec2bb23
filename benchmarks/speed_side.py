"""What every side of the training-speed benchmark is, and how batches are held and moved."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from speed_data import TEMPLATE, Job
from speed_meter import DEVICE, StepClock
from torch import Tensor
from torch.optim import Optimizer

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.base import Base

LR = 1e-3
KEPT = {"cpu": 16, "cuda": 4}[DEVICE]
"""Batches that a bare loop decodes beforehand and goes around."""


@dataclass
class Side:
    """What trains.

    Args:
        job: What to train.
    """

    job: Job

    @cached_property
    def base(self) -> Base:
        """The base, opened once."""
        return Base.open(self.job.checkpoint)

    @cached_property
    def data(self) -> ImageTextDataModule:
        """The toolkit's view of the table, without workers."""
        job = self.job
        column = {"caption": "caption"} if job.task == "captions" else {"label": "label"}
        table = Table(job.table, split="split", outside=True, **column)
        return ImageTextDataModule(
            table,
            self.base,
            templates=(TEMPLATE,),
            image_size=job.image_size,
            batch_size=job.batch_size,
            cache=None,
        )

    def train(self, clock: StepClock) -> float:
        """Trains, and returns the loss of the first batch with untouched weights, without dropout.

        Args:
            clock: Is called at each step's start.
        """
        raise NotImplementedError


def loop_over(
    batches: list[Any], job: Job, clock: StepClock, optimizer: Optimizer, compute_loss: Callable[[Any], Tensor]
) -> float:
    """Trains in a bare loop over batches in memory, and returns the first loss.

    Args:
        batches: The batches, gone around.
        job: Says how many steps there are, and in which precision.
        clock: Is called at each step's start.
        optimizer: Over what is trained.
        compute_loss: From a batch on the device to its loss.
    """
    first = None
    for batch in itertools.islice(itertools.cycle(batches), job.total):
        clock.start_step(job.batch_size)
        moved = move(batch)
        with autocast(job.computes_in_bf16):
            loss = compute_loss(moved)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        first = loss.detach() if first is None else first
    clock.start_step(0)
    assert first is not None
    return float(first)


def autocast(is_bf16: bool) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=is_bf16)


def pin(batch: Any) -> Any:
    """Puts the tensors of a batch where a card can fetch them by itself."""
    return _map(batch, torch.Tensor.pin_memory) if DEVICE == "cuda" else batch


def move(batch: Any) -> Any:
    """Moves the tensors of a batch to the device."""
    return _map(batch, lambda tensor: tensor.to(DEVICE, non_blocking=True))


def _map(batch: Any, change: Any) -> Any:
    """Changes the tensors of a dict or of a named tuple."""
    if isinstance(batch, dict):
        return {name: change(part) if isinstance(part, Tensor) else part for name, part in batch.items()}
    return type(batch)(*map(change, batch))

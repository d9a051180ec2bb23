"""What is random in a training step depends on the seed, the epoch and the batch alone."""

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from finetune.core import processes


class StepSeeds(Callback):
    """Seeds torch, NumPy and Python's `random` before each training batch.

    So a step draws the same numbers whatever was drawn before it, and a training that goes on draws as one that was
    never stopped. Each of several processes draws numbers of its own, the first one those of a single process.

    Args:
        seed: The training's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Seeds them."""
        others = [processes.rank()] if processes.rank() else []
        key = [self.seed, trainer.current_epoch, batch_idx, *others]
        first, second, third = np.random.SeedSequence(key).generate_state(3)
        torch.manual_seed(int(first))
        np.random.seed(int(second))  # noqa: NPY002 (for code that draws from it)
        random.seed(int(third))

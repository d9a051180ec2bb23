"""Which parameters decay, and how the learning rate moves: parameter groups, warm-up and cosine."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from lightning import Trainer
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.core.errors import RecipeError


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Returns the factor that multiplies the learning rate at one step.

    The factor rises linearly, from `1 / (warmup_steps + 1)` at step 0 to 1 at step `warmup_steps`, and then
    falls along half a cosine to 0 at step `total_steps`. So neither the first nor the last step trains with 0.
    The cosine is that of Loshchilov and Hutter 2017 (arXiv 1608.03983) without restarts.

    Args:
        step: Optimizer steps taken so far, from 0.
        total_steps: Optimizer steps of the whole run.
        warmup_steps: Steps of the linear rise.

    Example:
        >>> [round(warmup_cosine(step, 6, 2), 3) for step in range(7)]
        [0.333, 0.667, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if step >= total_steps:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


class WarmupCosine(LambdaLR):
    """Raises the learning rate linearly, then lowers it along half a cosine to zero. Step it once per optimizer step.

    Args:
        optimizer: The optimizer whose learning rates are moved; each group keeps its own peak.
        total_steps: Optimizer steps of the whole run, at least 1.
        warmup: Fraction of the steps spent warming up, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.1) -> None:
        if total_steps < 1:
            raise ValueError(f"Expected total_steps to be at least 1, but got {total_steps}.")
        if not 0.0 <= warmup <= 1.0:
            raise ValueError(f"Expected warmup to be in [0, 1], but got {warmup}.")
        factor = partial(warmup_cosine, total_steps=total_steps, warmup_steps=round(warmup * total_steps))
        super().__init__(optimizer, factor)


def parameter_groups(named_parameters: Iterable[tuple[str, Parameter]]) -> list[dict[str, Any]]:
    """Splits the trainable parameters into those that weight decay may shrink and those that it must not.

    Decay must not shrink scalars and vectors (biases, norms, the temperature), nor DoRA's magnitudes, which for a
    convolution are a vector in the shape of a kernel. Parameters that need no gradient are left out, and so is an
    empty group.

    Args:
        named_parameters: Pairs as `Module.named_parameters()` gives them.

    Returns:
        At most two groups for an optimizer: the first takes the optimizer's own weight decay, the last none.

    Example:
        >>> from torch import nn
        >>> groups = parameter_groups(nn.Linear(3, 2).named_parameters())
        >>> [(tuple(group["params"][0].shape), group.get("weight_decay")) for group in groups]
        [((2, 3), None), ((2,), 0.0)]
    """
    decayed: list[Parameter] = []
    kept: list[Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            is_free = parameter.ndim <= 1 or "magnitude" in name
            (kept if is_free else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def total_steps(trainer: Trainer) -> int:
    """Returns the optimizer steps of a whole fit, from lengths alone: a restored loader is not disturbed.

    Args:
        trainer: A trainer that is fitting.

    Raises:
        RecipeError: If nothing says how many there are.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is None or trainer.max_epochs is None or trainer.max_epochs < 0:
        steps = trainer.max_steps if datamodule is not None else trainer.estimated_stepping_batches
        if steps in (-1, float("inf")):
            raise RecipeError(
                "Expected the trainer's max_epochs or max_steps to say how long the training is, as the learning rate "
                "follows it, but got neither, or loaders without a length. Set max_steps; max_time may end it sooner."
            )
        return int(steps)
    batches = limit_batches(len(datamodule.train_dataloader()), trainer.limit_train_batches)
    steps = -(-batches // trainer.accumulate_grad_batches) * trainer.max_epochs
    return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)


def limit_batches(batches: int, limit: float) -> int:
    """Returns how many batches of an epoch a trainer takes.

    Args:
        batches: How many there are.
        limit: Lightning's `limit_train_batches`: a number of batches, or as a float their share.

    Example:
        >>> limit_batches(3, 2), limit_batches(3, 1.0), limit_batches(3, 0.01)
        (2, 3, 0)
    """
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

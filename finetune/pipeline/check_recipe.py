"""What a recipe has to hold up to before it is run: its objects are built as a run builds them, and asked."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from finetune.core.errors import RecipeError, did_you_mean
from finetune.core.types import Answers
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.kinds import TableKind
from finetune.model.batchnorm import FollowingBatchNorm2d
from finetune.model.layers import IMAGE, TOWERS
from finetune.pipeline.choose import check_settings
from finetune.pipeline.recipe import Recipe
from finetune.pipeline.train import build_training
from finetune.run.folder import RunFolder
from finetune.training.classification_task import ClassificationTask
from finetune.training.data_parallel import DataParallel
from finetune.training.head_first import HeadFirst
from finetune.training.schedules import limit_batches, total_steps
from finetune.training.task import AlignTask

_REFUSED: dict[type[Callback], tuple[str, str]] = {
    GradientAccumulationScheduler: (
        "by which the steps of the learning rate cannot be counted",
        "Set trainer.accumulate_grad_batches.",
    ),
    LearningRateFinder: (
        "which looks for a learning rate in the task",
        "Try values of --model.optimizer.lr instead.",
    ),
    StochasticWeightAveraging: (
        "whose state is lost where a run is stopped",
        "Set run.soup to average several trainings.",
    ),
    OnExceptionCheckpoint: (
        "from whose file a new training would go on",
        "Set run.save_every, from whose saves `finetune resume` goes on.",
    ),
}
"""Callbacks that do not go together with a run: why, and what does."""

_OWN = ("finetune", "lightning")
"""Packages whose tasks and callbacks log nothing but what is known here."""


def check_recipe(recipe: Recipe, data: ImageTextDataModule) -> AlignTask:
    """Finds what would end a run of a recipe, the cheapest first. Nothing is written, measured or trained.

    Args:
        recipe: The recipe.
        data: Its tables.

    Returns:
        The task, adapters freshly drawn.

    Raises:
        TableError: If a table has a fault, or nothing can be learnt from its training rows.
        RecipeError: If the trainer's values do not go together or with the table, the interpolation is to be chosen
            but the tables hold nothing to choose it by, or nothing is trained.
        CheckpointError: If the base does not load.
    """
    own = recipe.build_trainer()
    check_trainer(own)
    for callback in own.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, HeadFirst):
            callback.require_head(recipe.task_class)
    data.rows.require("train", "test")
    for other in data.retention.values():
        other.rows.require("test")
    check_settings(recipe.run, data)
    trainer = build_training(recipe, data, RunFolder(recipe.folder)).trainer
    _check_shares(trainer, data)
    steps = _count_steps(trainer, data)
    validates = _check_validation(trainer, data)
    recipe.task_class.require_learnable(data)
    task = recipe.build_trainable()
    _check_statistics(trainer, task)
    _check_optimizer(task, steps)
    _check_monitors(own, task, data.kind if validates else None)
    return task


def check_trainer(trainer: Trainer) -> None:
    """Refuses what Lightning takes and a run does not do.

    Args:
        trainer: As a recipe describes it.

    Raises:
        RecipeError: If it tries or overfits instead of training, or never ends.
    """
    if fault := next(_find_faults(trainer), None):
        raise RecipeError(fault)


def _find_faults(trainer: Any) -> Iterator[str]:
    """Yields what Lightning takes and a run does not do."""
    if trainer.fast_dev_run:
        yield (
            "Expected trainer.fast_dev_run to be false, but got true: a run would export what a single batch has left "
            "as if it were trained. For a quick trial set trainer.max_steps, such as --trainer.max_steps 3."
        )
    if trainer.overfit_batches:
        yield (
            f"Expected trainer.overfit_batches to be 0, but got {trainer.overfit_batches}: Lightning would put its own "
            "order in the place of the run's. Set trainer.limit_train_batches, or data.table.limit_rows for fewer rows."
        )
    if trainer.max_epochs in (None, -1) and trainer.max_steps == -1:
        yield (
            "Expected trainer.max_epochs or trainer.max_steps to say how long the training is, as the learning rate "
            "follows it, but got neither. Set one of them; trainer.max_time may end it sooner."
        )
    remaining = [one.time_remaining() for one in trainer.callbacks if isinstance(one, Timer)]
    if any(seconds is not None and seconds <= 0 for seconds in remaining):
        yield "Expected trainer.max_time to leave time to train, but got none. Raise it, or set it to null."
    if trainer.check_val_every_n_epoch is not None and trainer.check_val_every_n_epoch < 1:
        yield (
            "Expected trainer.check_val_every_n_epoch to be at least 1 or null, but got "
            f"{trainer.check_val_every_n_epoch}. To validate never, set trainer.limit_val_batches to 0."
        )
    if trainer.accumulate_grad_batches < 1:
        yield (
            "Expected trainer.accumulate_grad_batches to be at least 1, but got "
            f"{trainer.accumulate_grad_batches}. 1 takes a step after each batch."
        )
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DataParallel):
        yield (
            f"Expected trainer.strategy to be auto, but got {type(trainer.strategy).__name__}: a run has a strategy of "
            "its own, whose losses compare rows across all devices. Set it to auto."
        )
    for kind, (fault, repair) in _REFUSED.items():
        if any(isinstance(one, kind) for one in trainer.callbacks):
            yield f"Expected trainer.callbacks to name no {kind.__name__}, {fault}, but got one. {repair}"


def _check_shares(trainer: Trainer, data: ImageTextDataModule) -> None:
    """Refuses a batch of which some device would never have a row."""
    if data.batch_size < trainer.world_size:
        raise RecipeError(
            f"Expected data.batch_size to be at least {trainer.world_size}, a row for each device, but got "
            f"{data.batch_size}. It is the size of the batch that all devices share: raise it, or take fewer devices."
        )


def _check_statistics(trainer: Trainer, task: AlignTask) -> None:
    """Refuses statistics of a batch where no process has all of its rows."""
    if trainer.world_size > 1 and any(isinstance(module, FollowingBatchNorm2d) for module in task.modules()):
        raise RecipeError(
            "Expected model.image_lora.train_statistics to be false on several devices, but got true: each would "
            "follow the images of its own rows. Set it to false, or trainer.devices to 1."
        )


def _count_steps(trainer: Trainer, data: ImageTextDataModule) -> int:
    """Returns the optimizer steps of the training, if there are any and validation takes place in between."""
    trainer.datamodule = data  # type: ignore[attr-defined]  # as `Trainer.fit` does
    steps = total_steps(trainer)
    batches = len(data.train_dataloader())
    taken = limit_batches(batches, trainer.limit_train_batches)
    if not steps or not taken:
        raise RecipeError(
            f"Expected at least one step of training, but got none of {batches:,} batches, with trainer.max_epochs "
            f"{trainer.max_epochs}, max_steps {trainer.max_steps} and limit_train_batches "
            f"{trainer.limit_train_batches}. Raise the one that is too small."
        )
    return steps


def _check_validation(trainer: Trainer, data: ImageTextDataModule) -> bool:
    """Returns whether validation takes place, and checks that it fits between the batches of an epoch."""
    rows, limit = len(data.rows.indices("val")), trainer.limit_val_batches
    if not rows or not limit:
        return False
    if not limit_batches(len(data.val_dataloader()), limit):
        raise RecipeError(
            f"Expected trainer.limit_val_batches to leave a batch of the {rows:,} validation rows, but got {limit}, "
            "which leaves none. Raise it, or set it to 0 for no validation."
        )
    every = getattr(trainer, "val_check_interval", None)  # Lightning takes a time as well, and has no number then
    taken = limit_batches(len(data.train_dataloader()), trainer.limit_train_batches)
    if isinstance(every, int) and every > taken and trainer.check_val_every_n_epoch is not None:
        raise RecipeError(
            f"Expected trainer.val_check_interval to be at most the {taken:,} batches of an epoch, but got {every}. "
            "Lower it, or set trainer.check_val_every_n_epoch to null to count the batches of all epochs."
        )
    return True


def _check_optimizer(task: AlignTask, steps: int) -> None:
    """Takes a step with a parameter that stands for all."""
    stand_in = nn.Parameter(torch.zeros(1))
    stand_in.grad = torch.zeros(1)
    try:
        optimizer = task.optimizer([stand_in])
        schedule = task.lr_scheduler(optimizer, steps)
        optimizer.step(lambda: 0.0)
        schedule.step()
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"Expected model.optimizer and model.lr_scheduler to take their values, but got: {error}"
        ) from error


def _check_monitors(trainer: Trainer, task: AlignTask, validated: TableKind | None) -> None:
    """Refuses callbacks that wait for a metric which nothing logs; what a user's own classes log is not known.

    Args:
        trainer: With the recipe's callbacks alone.
        task: What is trained.
        validated: The kind of the validation rows; None where there is no validation.
    """
    callbacks: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
    if any(type(one).__module__.split(".")[0] not in _OWN for one in (task, *callbacks)):
        return
    known = {*_logged_in_training(task), *(_logged_in_validation(task, validated) if validated else ())}
    better = {"train/loss": "min", "val/loss": "min"}
    if validated is not None:
        better[f"val/{validated.metric().headline}"] = "max"
    for callback in callbacks:
        name, monitor, mode = type(callback).__name__, getattr(callback, "monitor", None), getattr(callback, "mode", "")
        if monitor is None or str(monitor).startswith("lr-"):  # those of LearningRateMonitor
            continue
        if monitor not in known:
            raise RecipeError(
                f"Expected {name} of trainer.callbacks to monitor what is logged, but got {monitor!r}. "
                f"{did_you_mean(str(monitor), known)}"
            )
        if mode and mode != better.get(monitor, mode):
            raise RecipeError(
                f"Expected mode of {name} in trainer.callbacks to be {better[monitor]} for {monitor}, but got {mode}: "
                f"it would take worse for better. Set it to {better[monitor]}."
            )


def _logged_in_training(task: AlignTask) -> Iterator[str]:
    """The names that task and run log in each step."""
    yield from ("train/loss", "train/temperature", "train/duplicate_positives")
    trained = [name for name, parameter in task.towers.named_parameters() if parameter.requires_grad]
    yield from (f"train/{tower.name}_gradient_norm" for tower in TOWERS if any(map(tower.owns, trained)))
    yield from (f"train/{tower}_distance" for tower in task.preserved)


def _logged_in_validation(task: AlignTask, kind: TableKind) -> Iterator[str]:
    """The names that task and run log after each validation, from the figures of two rows that are made up."""
    yield "val/loss"
    towers = (IMAGE,) if isinstance(task, ClassificationTask) else TOWERS  # a head reads no texts
    yield from (f"val/{tower.name}_{name}" for tower in towers for name in ("spread", "effective_rank"))
    rows, features, classes = torch.arange(2), torch.eye(2), len(kind.classes)
    truth = torch.ones(2, classes, dtype=torch.bool) if kind.is_multilabel else torch.zeros(2, dtype=torch.long)
    metric = kind.metric()
    metric.observe(Answers(rows, rows, rows, truth, features, features, torch.zeros(2, classes) if classes else None))
    yield from (f"val/{name}" for name in metric.compute())

"""A recipe's training: the weights kept by the validation metric, or the average of several trainings (a soup)."""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import yaml
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger
from peft import LoraConfig, PeftModel
from torch import Tensor

from finetune.core import processes
from finetune.core.errors import Concern, RecipeError
from finetune.core.files import read_json, write_json
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.model.base import Base
from finetune.model.lora import ADAPTER
from finetune.model.soup import average_adapters, average_weights
from finetune.model.towers import AlignTowers
from finetune.pipeline.recipe import Recipe
from finetune.run.folder import RunFolder
from finetune.training.best_weights import LatestBest
from finetune.training.collapse import CollapseWatch
from finetune.training.early_end import find_early_end
from finetune.training.heap import freed_memory_kept
from finetune.training.loggers import LogRecipe, TensorBoardLog, finish, has_tensorboard
from finetune.training.progress import BEST, Progress
from finetune.training.save_progress import SaveProgress
from finetune.training.step_seeds import StepSeeds
from finetune.training.stop_request import StopRequest
from finetune.training.task import AlignTask
from finetune.training.training_bar import TrainingBar

_MODEL = "towers.model."


class Trained(NamedTuple):
    """What is left of one or several trainings, beside what they have trained.

    Attributes:
        notices: What is worth knowing of them, such as that one has ended early.
        loggers: Those that the recipe names, of the last training that took place in this process.
    """

    notices: list[Concern]
    loggers: list[Logger]


class Training(NamedTuple):
    """What trains, and the run's own callbacks that follow it, beside those of the recipe.

    Attributes:
        trainer: The recipe's trainer.
        keep: Chooses the weights to keep.
        watch: Notices what goes wrong.
        progress: Where it is saved from time to time.
        stop: Knows whether the process is asked to end.
        bar: Shows how far it is; what follows it may be told to it.
        own: The run's own loggers, beside those that the recipe names.
    """

    trainer: Trainer
    keep: LatestBest
    watch: CollapseWatch
    progress: Progress
    stop: StopRequest
    bar: TrainingBar
    own: Sequence[Logger]


def build_training(recipe: Recipe, data: ImageTextDataModule, run: RunFolder) -> Training:
    """Builds a recipe's trainer as it trains in a run; nothing is written before it fits.

    Args:
        recipe: Has the trainer.
        data: The table.
        run: Where checkpoints and logged values are written.

    Raises:
        RecipeError: If the trainer's values do not go together, or with this machine.
    """
    rows = len(data.rows.indices("val"))
    metric = f"val/{data.kind.metric().headline}" if rows else None
    keep = LatestBest(rows, monitor=metric, dirpath=run.checkpoints, filename=BEST, save_last=True)
    watch = CollapseWatch()
    log = CSVLogger(save_dir=run.path.parent, name=run.path.name, version="")
    board = TensorBoardLog(run.tensorboard) if recipe.takes_tensorboard and has_tensorboard() else None
    progress, stop = Progress(run.checkpoints, log, board), StopRequest()
    save, bar = SaveProgress(progress, recipe.run.save_interval, stop), TrainingBar(metric)
    own: list[Logger] = [log, *filter(None, [board])]
    told = LogRecipe(yaml.safe_load(recipe.resolved), own)
    trainer = recipe.build_trainer([save, StepSeeds(data.seed), keep, watch, told], own, bar)
    return Training(trainer, keep, watch, progress, stop, bar, own)


def fit(
    recipe: Recipe, task: AlignTask, data: ImageTextDataModule, run: RunFolder, seconds_after: float = 0.0
) -> Trained:
    """Trains, and leaves the latest best weights by the validation metric in the task, or the last without one.

    With `run.soup` above 1 it trains so many times, and leaves the average. The first training is the one there would
    be without; the others differ from it in their seed, of which adapters, order and augmentations depend.

    What an earlier process has saved of the same training in the run's folder is gone on from.

    Args:
        recipe: Has the trainer.
        task: What is trained.
        data: The table.
        run: Where checkpoints and logged values are written.
        seconds_after: What the run takes after the training, as far as known, to be shown.

    Returns:
        What is worth knowing, and the loggers that may be told results.
    """
    if recipe.run.soup == 1:
        kept, trained = _fit_once(recipe, lambda: task, data, run, 0, seconds_after)
        _load(task, kept)
        return trained
    members, notices, loggers = [], list[Concern](), list[Logger]()
    for number, folder in enumerate(run.members(recipe.run.soup)):
        seed = member_seed(recipe.run.seed, number)
        build_member = partial(recipe.build_task, seed) if number else lambda: task
        finish(loggers)
        kept, trained = _fit_once(recipe, build_member, data.with_seed(seed), folder, number, seconds_after)
        members.append(kept)
        notices, loggers = notices + trained.notices, trained.loggers
        gc.collect()  # a trainer and its task hold each other, and a whole model with them
    _take_average(task, recipe.base, members)
    return Trained(list(dict.fromkeys(notices)), loggers)


def member_seed(seed: int, number: int) -> int:
    """The seed of one of several trainings: the run's own for the first, unlike those of other runs for the others.

    Args:
        seed: The run's.
        number: Which training, from 0.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) if number else seed


def _fit_once(
    recipe: Recipe,
    build_task: Callable[[], AlignTask],
    data: ImageTextDataModule,
    run: RunFolder,
    number: int,
    seconds_after: float,
) -> tuple[dict[str, Any], Trained]:
    """Trains once, and returns the checkpoint to keep: of the weights, all that training changes."""
    loggers: list[Logger] = []
    if not processes.from_first(run.fitted.is_file):
        seed_everything(data.seed, verbose=False)  # whatever this process has drawn before
        training = build_training(recipe, data, run)
        training.bar.place(number, recipe.run.soup, seconds_after)
        take_steps(build_task(), data, run, training)
        loggers = [one for one in training.trainer.loggers if one not in training.own]
    fitted = processes.from_first(lambda: read_json(run.fitted))
    kept = torch.load(run.checkpoints / fitted["kept"], map_location="cpu", weights_only=True)
    data.bad_images.reasons.update({int(row): reason for row, reason in fitted["unreadable"].items()})
    return kept, Trained([Concern.of_record(notice) for notice in fitted["notices"]], loggers)


def take_steps(task: AlignTask, data: ImageTextDataModule, run: RunFolder, training: Training) -> None:
    """Takes the steps that are left, and records which weights to keep.

    Args:
        task: What is trained.
        data: The table.
        run: Where that is recorded.
        training: What `build_training` returned.
    """
    trainer, keep, watch, progress, stop, *_ = training
    checkpoint = processes.from_first(progress.recover)
    with stop.awaited():
        try:
            with freed_memory_kept():
                trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
        except MisconfigurationException as error:
            raise RecipeError(f"Expected the trainer's values to suit the training, but got: {error}") from error
        # A fit that stops inside its first epoch (trainer.max_steps) is never validated: its last weights count.
        path = keep.best_model_path or keep.last_model_path
        if not path:
            raise RecipeError("Expected at least one step of training, but got none before trainer.max_time. Raise it.")
        noticed = [*watch.notices, *filter(None, [find_early_end(trainer)])]
        notices = [notice._asdict() for notice in noticed]
        data.share_unreadable()
        fitted = {"kept": Path(path).name, "notices": notices, "unreadable": data.bad_images.reasons}
        processes.from_first(lambda: write_json(run.fitted, fitted))
        stop.agree()


def _take_average(task: AlignTask, base: Base, checkpoints: Sequence[Mapping[str, Any]]) -> None:
    """Puts the average of the members into one of them, whose adapter becomes as wide as all of theirs."""
    members: Sequence[Mapping[str, Tensor]] = [checkpoint["state_dict"] for checkpoint in checkpoints]
    if isinstance(task.towers.model, PeftModel):
        config = cast(LoraConfig, task.towers.model.peft_config[ADAPTER])
        towers, members = zip(*map(_divide, members), strict=True)
        adapted = average_adapters(base.load(), config, towers)
        task.towers = AlignTowers(adapted, min_temperature=task.towers.min_temperature, levels=base.levels)
    _load(task, {**checkpoints[0], "state_dict": average_weights(members)})


def _divide(member: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was trained of the model, by name in it, and what else the task trains."""
    inside = {name.removeprefix(_MODEL): tensor for name, tensor in member.items() if name.startswith(_MODEL)}
    return inside, {name: tensor for name, tensor in member.items() if not name.startswith(_MODEL)}


def _load(task: AlignTask, checkpoint: dict[str, Any]) -> None:
    """Puts weights into a task, which makes a place for them first: another process may have trained them."""
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(checkpoint["state_dict"], strict=False)

"""A run tried on a few batches of each stage in a folder that is removed, and what the whole run is going to take."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer

from finetune.core.cores import count_share
from finetune.core.errors import RecipeError
from finetune.core.files import write_text
from finetune.data.loading.workers import time_loading, typical
from finetune.export.choose_interpolation import Choice
from finetune.model.kept_features import MOST_BYTES
from finetune.pipeline.forecast import Forecast, Need, Plan, plan_training
from finetune.pipeline.measure_pace import MeasurePace
from finetune.pipeline.pace import TRIED, Reading, StepWatch, clock
from finetune.pipeline.recipe import Recipe
from finetune.pipeline.room import count_bytes, find_disk, find_memory
from finetune.pipeline.run_recipe import check_run, quieten
from finetune.pipeline.stages import EXPORT, TRAIN
from finetune.pipeline.train import build_training, take_steps
from finetune.pipeline.work import Work
from finetune.run.folder import RunFolder
from finetune.training.classification_task import ClassificationTask
from finetune.training.collapse import CollapseWatch
from finetune.training.data_parallel import find_launched
from finetune.training.head_first import HeadFirst
from finetune.training.head_start import FromPrompts
from finetune.training.memory import free_bytes
from finetune.training.schedules import total_steps

_AS_TRIED: dict[str, Any] = {
    "trainer.max_epochs": 1,
    "trainer.max_steps": -1,
    "trainer.min_epochs": None,
    "trainer.min_steps": None,
    "trainer.max_time": None,
    "trainer.limit_val_batches": 2,
    "trainer.val_check_interval": 1.0,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.logger": False,
    "trainer.enable_progress_bar": False,
}
"""What a training of a few batches has otherwise than the recipe."""


_LEFT_OUT = (HeadFirst, EarlyStopping, CollapseWatch)
"""Callbacks that make the first batches cheaper than others, or judge them."""


def dry_run(recipe: Recipe, overwrite: bool = False) -> Forecast:
    """Checks a recipe as a run does, tries every stage on a few batches, and leaves nothing behind.

    Args:
        recipe: What is to be run. It is changed, and good for nothing else afterwards.
        overwrite: Whether a run of that name is going to be replaced.

    Raises:
        RecipeError: If `torchrun` or `srun` has started several processes; and as `run_recipe`.
        TableError: As `run_recipe`.
        CheckpointError: As `run_recipe`.
        OSError: If the disk has no room for what is exported.
    """
    quieten()
    if find_launched() is not None:
        raise RecipeError("Expected --dry_run to be started by itself, but got torchrun or srun. Start one process.")
    work = Work(recipe, RunFolder(recipe.folder))
    check_run(work, overwrite)
    place = next(path for path in (recipe.folder.absolute().parent, *recipe.folder.absolute().parents) if path.is_dir())
    with TemporaryDirectory(dir=place, prefix=".dry_run-") as folder:
        return _Trial(work, Path(folder) / recipe.folder.name).forecast()


class _Trial:
    """The stages of a run, each tried once.

    Args:
        checked: The run as it is going to be, of which nothing exists.
        folder: Where it is tried.
    """

    def __init__(self, checked: Work, folder: Path) -> None:
        self.recipe, self.settings = checked.recipe, checked.recipe.run
        self.work = work = Work(checked.recipe, RunFolder(folder))
        work.data, work.task = checked.data, checked.task
        self.data, self.run = checked.data, work.run
        self.run.create(overwrite=False)
        write_text(self.run.recipe, self.recipe.resolved)
        self.started = time.time() - psutil.Process().create_time()
        self.free = free_bytes(torch.device("cpu")) + psutil.Process().memory_info().rss
        self.notes: list[str] = []
        self.plan = self._plan()
        self.device = work.device
        self.prepared = clock(lambda: TRAIN.prepare(work))
        image = time_loading(self.data) / self.data.batch_size
        self.reading = Reading(image, self.data.workers, count_share(), self.device.type == "cpu")
        self.pace = MeasurePace(self.data, self.settings, self.device, self.reading)

    def _plan(self) -> Plan:
        """Counts what the whole training does, before it is cut short; several devices are tried as one of them."""
        recipe, data = self.recipe, self.data
        trainer: Any = recipe.build_trainer()
        trainer.datamodule = data
        validation = data.val_dataloader()
        checks = 0 if isinstance(validation, list) else len(validation)
        plan = plan_training(trainer, total_steps(trainer), len(data.train_dataloader()), checks, self.settings.soup)
        if trainer.world_size > 1:
            data.batch_size = -(-data.batch_size // trainer.world_size)
            recipe.take_one_device()
            self.notes.append(f"One of {trainer.world_size} devices was tried: what they tell each other comes on top.")
        if any(isinstance(one, EarlyStopping | Timer) for one in trainer.callbacks):
            self.notes.append("The training may end earlier, as the recipe says.")
        self.accumulated = trainer.accumulate_grad_batches
        return plan

    def forecast(self) -> Forecast:
        """Tries all stages, in their order."""
        measured = self.pace.expect_base(self.work.base)
        started = time.perf_counter()
        watch = self._train()
        tried = time.perf_counter() - started
        of_training = count_bytes(self.run.checkpoints)
        written = clock(lambda: TRAIN.write(self.work, []))
        fixed = self.settings.fixed_interpolation
        Choice(1.0 if fixed is None else fixed).write(self.run.choice)
        chosen = self.pace.expect_choice(self.run, self.work.base)
        exported = clock(lambda: EXPORT.make(self.work))
        step = self.reading.join(typical(watch.steps), self.data.batch_size)
        stages = {
            "start": self.started,
            "measure base": measured,
            "train": self.prepared + self.plan.trainings * self._expect_training(watch, step, tried) + written,
            "choose": chosen,
            "export": exported,
            "measure": self.pace.expect_exported(self.run),
        }
        if watch.kept:
            self.notes.append("Epochs after the first take less: what a frozen tower has made of an input is kept.")
        self.notes.append("Not tried: intervals, the fit of the linear probe, and the report.")
        return Forecast(
            f"{self.device}, {self.reading.cores} cores",
            self.data.batch_size,
            typical(watch.steps),
            self.data.batch_size * self.reading.image,
            step,
            self.reading.workers,
            stages,
            self._find_needs(watch, of_training),
            tuple(self.notes),
        )

    def _train(self) -> StepWatch:
        """Trains a few batches, validates, and saves."""
        task, batches = self.work.task, max(TRIED, 2 * self.accumulated)
        if isinstance(task, ClassificationTask):
            self.head_start, task.head_start = task.head_start, FromPrompts(rows=1)
        self.recipe.settle({**_AS_TRIED, "trainer.limit_train_batches": batches})
        training = build_training(self.recipe, self.data, self.run)
        watch = StepWatch(training.progress)
        callbacks: list[Any] = training.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [watch, *(one for one in callbacks if not isinstance(one, _LEFT_OUT))]
        take_steps(task, self.data, self.run, training)
        return watch

    def _expect_training(self, watch: StepWatch, step: float, tried: float) -> float:
        """Seconds of a training; what the one that was tried took beside steps and validation, another takes too."""
        plan, data = self.plan, self.data
        checks = plan.validation_batches * self.reading.join(
            typical(watch.checks) if watch.checks else 0.0, data.batch_size
        )
        beside = tried - len(watch.steps) * step - watch.around - sum(watch.checks) - watch.save
        seconds = max(0.0, beside) + plan.batches * step + plan.validations * (watch.around + checks)
        if isinstance(self.work.task, ClassificationTask):
            rows = len(data.rows.indices("train"))
            seconds += min(self.head_start.views, self.head_start.rows / rows) * self.pace.images
        every = self.settings.save_interval
        if every is not None:
            steps = plan.batches / self.accumulated
            saves = steps // every.steps if every.steps else seconds // (every.seconds or seconds)
            seconds += saves * watch.save
        return seconds

    def _find_needs(self, watch: StepWatch, of_training: int) -> tuple[Need, ...]:
        """Memory and disk."""
        data, run, width = self.data, self.run, self.work.task.towers.align.config.projection_dim
        rows = {split: len(data.rows.indices(split)) for split in ("train", "test")}
        answers = 4 * (rows["test"] * (2 * width + len(data.kind.classes)) + rows["train"] * width)
        measured = 3 * 4 * self.pace.probed * width
        written = measured + count_bytes(run.path) - count_bytes(run.checkpoints)
        seen = len(watch.steps) * data.batch_size
        kept = min(MOST_BYTES, watch.kept * rows["train"] / seen)
        saved = count_bytes(*run.checkpoints.glob("step-*")) + int(kept)
        return (
            *find_memory(self.device, watch.helpers + max(answers, self.pace.kept), self.free),
            find_disk(run.path, self.plan.trainings, of_training, saved, written),
        )

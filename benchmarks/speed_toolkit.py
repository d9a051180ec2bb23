"""Sides that train the toolkit's task, as a shipped recipe builds it."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from speed_data import TEMPLATE
from speed_meter import DEVICE, StepClock
from speed_side import KEPT, LR, Side, loop_over, pin
from torch import Tensor

from finetune.core.shipped import find_recipe
from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.pipeline.recipe import Recipe, read_recipe
from finetune.pipeline.run_recipe import quieten
from finetune.pipeline.train import fit
from finetune.run.folder import RunFolder
from finetune.training.classification_task import ClassificationTask
from finetune.training.heap import freed_memory_kept
from finetune.training.task import AlignTask

FROM_PROMPTS = ("--model.head_start", "finetune.FromPrompts")
RECIPES = {"captions": "retrieval_lora", "prompts": "classify_prompts", "head": "classify_head"}


class ToolkitSide(Side):
    """A side that trains the toolkit's task, as a shipped recipe builds it."""

    def read(self, folder: Path, *more: object) -> Recipe:
        """Reads the recipe of the task, with neither augmentations nor a soup.

        Args:
            folder: Where runs are written.
            more: Words that set further keys.
        """
        job = self.job
        is_captions = job.task == "captions"
        ranks = ["image_lora", *([] if job.task == "head" else ["text_lora"])]
        words = [
            *("--model.checkpoint", job.checkpoint),
            *itertools.chain(*((f"--model.{tower}.rank", job.rank) for tower in ranks)),
            *("--model.optimizer.lr", LR),
            *("--data.table.path", job.table, "--data.table.split", "split", "--data.table.outside", "true"),
            *(("--data.table.caption", "caption") if is_captions else ("--data.table.label", "label")),
            *(() if is_captions else ("--data.templates", f'["{TEMPLATE}"]')),
            *("--data.augmentations", "null", "--data.image_size", job.image_size),
            *("--data.batch_size", job.batch_size, "--data.num_workers", job.workers, "--data.cache", job.cache),
            *("--trainer.accelerator", "gpu" if DEVICE == "cuda" else "cpu"),
            *("--trainer.precision", "bf16-mixed" if job.computes_in_bf16 else "32-true"),
            *("--run.soup", 1, "--run.folder", folder),
            *(FROM_PROMPTS if job.task == "head" else ("--model.text_preservation", "null")),
            *more,
        ]
        return read_recipe(find_recipe(RECIPES[job.task]), [*map(str, words)])


class BareFusedSide(ToolkitSide):
    """A loop over batches in memory, with the toolkit's model and objective, and its care for freed memory."""

    @freed_memory_kept()
    def train(self, clock: StepClock) -> float:
        job = self.job
        with tempfile.TemporaryDirectory() as folder:
            recipe = self.read(Path(folder))
            task = recipe.build_task().to(DEVICE)
            if isinstance(task, ClassificationTask):
                _start_head(task, recipe.build_trainer(), self.data)
        batches = [pin(batch) for batch in itertools.islice(self.data.train_dataloader(), KEPT)]
        return loop_over(batches, job, clock, task.build_optimizer(), lambda batch: task.loss(task(batch), batch))


def _start_head(task: ClassificationTask, trainer: Trainer, data: ImageTextDataModule) -> None:
    """Starts the head of a task as its fit does."""
    trainer.datamodule = data
    task.trainer = trainer
    task.setup("fit")


class ClockOfLightning(Callback):
    """Tells the clock of Lightning's steps, and keeps the first loss."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.first: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: AlignTask, batch: Batch, batch_idx: int) -> None:
        self.clock.start_step(len(batch.rows))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: AlignTask, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.first = outputs["loss"].detach() if self.first is None else self.first

    def on_train_end(self, trainer: Trainer, pl_module: AlignTask) -> None:
        self.clock.start_step(0)


class OurSide(ToolkitSide):
    """The training of `finetune fit`, with its loggers and callbacks."""

    def train(self, clock: StepClock) -> float:
        follows = ClockOfLightning(clock)
        self.fit(follows, "--trainer.max_steps", self.job.total)
        assert follows.first is not None
        return float(follows.first)

    def fit(self, follows: Callback, *more: object) -> None:
        """Trains as a run does.

        Args:
            follows: Follows the training beside the run's own callbacks.
            more: Words that set further keys of the recipe.
        """
        quieten()
        with tempfile.TemporaryDirectory() as folder:
            recipe = self.read(Path(folder), *more)
            data, task = recipe.build_data(), recipe.build_trainable()
            task.configure_callbacks = lambda: [follows]  # Lightning adds them to those of the trainer
            fit(recipe, task, data, RunFolder(recipe.folder))


class OurPreservingSide(OurSide):
    """The same, which holds a tower to the base: with a head the image tower on other images, else the text tower."""

    def fit(self, follows: Callback, *more: object) -> None:
        tower = "image" if self.job.task == "head" else "text"
        super().fit(follows, *more, f"--model.{tower}_preservation", "{}")

"""How far a training is: epoch, step, loss, validation metric, images a second, time left."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from finetune.core import processes
from finetune.core.bar import Bar, format_seconds
from finetune.core.types import Batch
from finetune.training.schedules import total_steps


class TrainingBar(ProgressBar):
    """Shows how far a training is, and after each validation a line that stays.

    Values are read from the device when they are shown, so no step waits for them in between.

    Args:
        metric: The validation metric that the run is about; None without one.
    """

    def __init__(self, metric: str | None) -> None:
        super().__init__()
        self.metric = metric
        self._title = "training"
        self._trainings_left, self._seconds_after = 0, 0.0
        self._is_shown = True
        self._bar = Bar(self._title, None, shown=False)
        self._steps = self._total = 0

    def place(self, number: int, trainings: int, seconds_after: float) -> None:
        """Says where in a run the training stands.

        Args:
            number: Which of its trainings this one is, from 0.
            trainings: How many there are, of the same length.
            seconds_after: What the run takes after them, as far as known.
        """
        if trainings > 1:
            self._title = f"training {number + 1} of {trainings}"
        self._trainings_left, self._seconds_after = trainings - number - 1, seconds_after

    def disable(self) -> None:
        """Shows nothing from now on."""
        self._is_shown = False

    def enable(self) -> None:
        """Shows again."""
        self._is_shown = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts to count, from where a training goes on."""
        self._steps, self._total = trainer.global_step, total_steps(trainer)
        self._bar = Bar(self._name(trainer), self._total, "steps", "images", self._steps, self._is_shown, self._note)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Names the epoch."""
        self._bar.title = self._name(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Counts the batch; of one that processes share, the parts of all."""
        self._bar.advance(trainer.global_step - self._steps, len(batch.rows) * processes.count())
        self._steps = trainer.global_step

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Batch,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Counts the validation's batch, which is no step."""
        self._bar.title = f"{self._name(trainer)}, validation {batch_idx + 1} of {self.total_val_batches:.0f}"
        self._bar.advance(0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Writes what was found."""
        self._bar.title = self._name(trainer)
        if trainer.sanity_checking:
            return
        left = self._bar.seconds_left
        time_left = "" if left is None else f"; {format_seconds(left)} left"
        self._bar.write(
            f"{self._name(trainer)}, step {trainer.global_step} of {self._total}: {self._values()}{time_left}"
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Removes the bar."""
        self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Does so too."""
        self._bar.close()

    def _name(self, trainer: Trainer) -> str:
        epochs = trainer.max_epochs
        of_all = f" of {epochs}" if epochs is not None and epochs > 0 else ""
        return f"{self._title}, epoch {trainer.current_epoch + 1}{of_all}"

    def _values(self) -> str:
        """The loss and the validation metric, as far as there are any yet."""
        known = self.trainer.callback_metrics
        names = dict.fromkeys(("train/loss", "val/loss", self.metric))
        return ", ".join(f"{name} {float(known[name]):.4g}" for name in names if name in known)

    def _note(self) -> str:
        """The values, and the time left of the run where more follows than this training."""
        left, each = self._bar.seconds_left, self._bar.seconds_a_step
        if left is None or each is None:
            return self._values()
        whole = left + self._trainings_left * each * self._total + self._seconds_after
        return f"{self._values()}, {format_seconds(whole)} left of the run" if whole > left else self._values()

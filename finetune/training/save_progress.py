"""Saves a training from time to time, and when the process is asked to end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from finetune.core import processes
from finetune.core.interval import Interval
from finetune.data.loading.loader import TrainBatchLoader
from finetune.training.epoch_log import EpochLog
from finetune.training.progress import Progress, name_features
from finetune.training.stop_request import StopRequest
from finetune.training.task import AlignTask

_KEY = "align_finetune_progress"


class SaveProgress(Callback):
    """Saves from time to time, and when the process is asked to end, which it then does.

    Saves between two steps of the optimiser, once validation and all else that follows a step is over. Where the
    training rows come from a loader of another kind than the toolkit's, or a task steps its optimisers itself, that is
    between two epochs.

    Args:
        progress: Where to save.
        every: How often to; None saves only when the process is asked to end.
        stop: Notes the signals that ask it to.
    """

    def __init__(self, progress: Progress, every: Interval | None, stop: StopRequest) -> None:
        self.progress = progress
        self.every = every
        self.stop = stop
        self._saved_at = (0, 0.0)
        self._loaded: dict[str, Any] | None = None
        self._logged = EpochLog()
        self._is_saving = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens to signals, and restores the features of a frozen tower."""
        assert isinstance(pl_module, AlignTask)
        self.stop.listen()
        self._saved_at = (trainer.global_step, time.monotonic())
        if self._loaded is not None and trainer.ckpt_path is not None:
            features = Path(trainer.ckpt_path).parent / name_features(processes.rank())
            if features.is_file() and self._loaded["processes"] == processes.count():
                pl_module.towers.restore_kept(load_file(features))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Saves where that is due.

        Raises:
            SystemExit: If the process was asked to end.
        """
        assert isinstance(pl_module, AlignTask)
        if self._loaded is not None:
            _correct(trainer, self._loaded)
            self._loaded = None
        else:
            self._logged.add(trainer)
        goes_on_anywhere = isinstance(trainer.train_dataloader, TrainBatchLoader) and pl_module.automatic_optimization
        can_go_on = not batch_idx or goes_on_anywhere
        if not can_go_on or batch_idx % trainer.accumulate_grad_batches:
            return
        self.stop.agree()
        if self.stop.signal is not None or any(processes.sum_counts([self._is_due(trainer.global_step)])):
            self._is_saving = True
            with _before_batch(trainer):
                self.progress.write(trainer, pl_module)
            self._is_saving = False
            self._saved_at = (trainer.global_step, time.monotonic())
        self.stop.heed()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Completes what is logged over the epoch."""
        self._logged.complete(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Adds what Lightning's checkpoints lack."""
        checkpoint[_KEY] = {
            "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "processes": processes.count(),
            "should_stop": trainer.should_stop,
            "callback_metrics": dict(trainer.callback_metrics),
            "logged": self._logged.read(trainer),
        }
        if not isinstance(trainer.train_dataloader, TrainBatchLoader) and self._is_saving:
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)  # counts the batch to come

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Notes what the first batch needs."""
        self._loaded = checkpoint.get(_KEY)
        if self._loaded is not None:
            self._logged = EpochLog(self._loaded["logged"])

    def _is_due(self, step: int) -> bool:
        if self.every is None:
            return False
        steps, moment = self._saved_at
        if self.every.steps is not None:
            return step - steps >= self.every.steps
        return (
            processes.is_first() and self.every.seconds is not None and time.monotonic() - moment >= self.every.seconds
        )


@contextmanager
def _before_batch(trainer: Trainer) -> Iterator[None]:
    """Lets loop and loader count the batch that is about to be trained as still to come, as long as the block runs."""
    progress, loader = trainer.fit_loop.epoch_loop.batch_progress, trainer.train_dataloader
    is_last = progress.is_last_batch
    progress.is_last_batch = False
    for counts in (progress.current, progress.total):
        counts.ready -= 1
    try:
        if isinstance(loader, TrainBatchLoader):
            with loader.one_given_back():
                yield
        else:
            yield
    finally:
        progress.is_last_batch = is_last
        for counts in (progress.current, progress.total):
            counts.ready += 1


def _correct(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Sets what Lightning does not save, and the count of steps for logs, one too high after it has resumed."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = saved["batches_that_stepped"]
    trainer.accumulate_grad_batches = saved["accumulate_grad_batches"]
    trainer.should_stop = saved["should_stop"]
    trainer._logger_connector._callback_metrics.update(saved["callback_metrics"])

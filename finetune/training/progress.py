"""Saves what a training needs to go on where it was, and reads it again."""

import csv
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file

from finetune.core.console import say
from finetune.core.files import fingerprint_file, read_json, read_text, write_file, write_folder, write_json, write_text
from finetune.core.interval import Interval
from finetune.data.loading.loader import TrainBatchLoader
from finetune.training.epoch_log import EpochLog
from finetune.training.stop_request import StopRequest
from finetune.training.task import AlignTask

KEPT = 2
"""How many saves are kept: the older one until the newer one is whole, and then for the case that it is damaged."""

_STATE, _LOG, _FEATURES = "state.ckpt", "metrics.csv", "features.safetensors"
_FINGERPRINTS = "fingerprints.json"
_KEY = "align_finetune_progress"


class Progress:
    """The saves of one training: a folder `step-N` each, with the state after N steps and the files that go with it.

    They are a Lightning checkpoint, the values logged so far, the best weights so far, and the features kept of a
    frozen tower.

    Args:
        folder: Where they lie.
        best: File of the best weights.
        log: The training's log.
    """

    def __init__(self, folder: Path, best: Path, log: CSVLogger) -> None:
        self.folder = folder
        self.best = best
        self.log = log

    def write(self, trainer: Trainer, task: AlignTask) -> None:
        """Saves, before the batch that is about to be trained. A save of the same step stays as it is.

        Args:
            trainer: At the start of a batch.
            task: What it trains.

        Raises:
            OSError: If it cannot be written; the saves that were there still are.
        """
        target, saves = self.folder / f"step-{trainer.global_step:08d}", list_saves(self.folder)
        if target in saves:
            return
        self.log.save()
        with write_folder(target) as staging, _before_batch(trainer):
            trainer.save_checkpoint(staging / _STATE)
            logged = Path(self.log.experiment.metrics_file_path)
            if logged.is_file():
                shutil.copyfile(logged, staging / _LOG)
            if self.best.is_file():
                _share(self.best, staging / self.best.name)
            save_file(task.towers.list_kept(), staging / _FEATURES)
            write_json(staging / _FINGERPRINTS, {file.name: fingerprint_file(file) for file in staging.iterdir()})
        for outdated in list_saves(self.folder)[KEPT:]:
            shutil.rmtree(outdated)

    def take_newest(self) -> Path | None:
        """Returns the newest save that is as it was written; None where there is none. Says and removes what is not.

        Raises:
            OSError: If the disk does not let a save be read.
        """
        for save in list_saves(self.folder):
            fault = _find_fault(save)
            if fault is None:
                return save
            say(f"warning: {save} is damaged and is removed: {fault}", file=sys.stderr)
            shutil.rmtree(save)
        return None

    def restore(self, save: Path) -> Path:
        """Puts the files of a save back to where the training left them.

        Args:
            save: One of `list_saves`.

        Returns:
            The checkpoint from which Lightning goes on.
        """
        self.best.unlink(missing_ok=True)
        if (save / self.best.name).is_file():
            _share(save / self.best.name, self.best)
        writer = self.log.experiment  # removes the log that is there
        if (save / _LOG).is_file():
            text = read_text(save / _LOG)
            write_text(Path(writer.metrics_file_path), text)
            writer.metrics_keys = next(csv.reader([text.splitlines()[0]]))
        return save / _STATE

    def clear(self) -> None:
        """Removes the checkpoints of a training that has no save: a new one would go on from them, or keep them."""
        for path in self.folder.glob("*.ckpt"):
            path.unlink()


def list_saves(folder: Path) -> list[Path]:
    """Returns the saves that there are, the newest first.

    Args:
        folder: See `Progress`.
    """
    saves = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(saves, key=lambda save: int(save.name.removeprefix("step-")), reverse=True)


def clear_saves(folder: Path) -> None:
    """Removes the saves of a training that has ended.

    Args:
        folder: See `Progress`.
    """
    for save in list_saves(folder):
        shutil.rmtree(save)


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
            features = Path(trainer.ckpt_path).parent / _FEATURES
            if features.is_file():
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
        if self.stop.signal is not None or self._is_due(trainer.global_step):
            self._is_saving = True
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
        return self.every.seconds is not None and time.monotonic() - moment >= self.every.seconds


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


def _find_fault(save: Path) -> str | None:
    """What is wrong with a save; None of one that is as it was written."""
    try:
        fingerprints = read_json(save / _FINGERPRINTS)
        for name, fingerprint in fingerprints.items():
            if fingerprint_file(save / name) != fingerprint:
                return f"{name} is not as it was written."
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None if _STATE in fingerprints else f"{_STATE} is missing."


def _share(source: Path, target: Path) -> None:
    """Copies a file that is only ever replaced as a whole: as a link to the same bytes where the disk has links."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as file, write_file(target) as copy:
            shutil.copyfileobj(file, copy)

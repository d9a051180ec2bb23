"""The loggers of a training beside its CSV: TensorBoard's by default, and those that a recipe names."""

import csv
import shutil
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

INSTALL_TENSORBOARD = "pip install 'align-finetune[tensorboard]'"


def has_tensorboard() -> bool:
    """Returns whether TensorBoard's files can be written here."""
    return find_spec("tensorboard") is not None


class TensorBoardLog(TensorBoardLogger):
    """A run's own files for TensorBoard.

    Of a training that goes on, what was logged after its newest save is logged again, and shown once.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name="", version=folder.name, default_hp_metric=False)
        self.folder = folder

    def save(self) -> None:
        """Writes what is logged; Lightning's would add a file without values."""
        self.experiment.flush()

    def go_on(self, log: Path) -> None:
        """Lets what was logged after the last value of another log count no more.

        Args:
            log: The CSV of the newest save; where there is none, the training begins anew.
        """
        step = find_last_step(log)
        if step is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self._kwargs["purge_step"] = step + 1


class LogRecipe(Callback):
    """Tells the recipe to the loggers that it names, when training begins.

    Args:
        values: The recipe.
        own: The run's own, which need not be told.
    """

    def __init__(self, values: Mapping[str, Any], own: Iterable[Logger]) -> None:
        self.values = dict(values)
        self.own = [*own]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Tells them."""
        for logger in trainer.loggers:
            if logger not in self.own:
                logger.log_hyperparams(self.values)


def find_last_step(log: Path) -> int | None:
    """Returns the last step of which a CSV log holds a value; None where it holds none.

    Args:
        log: The file, which need not be there.
    """
    if not log.is_file():
        return None
    with log.open(newline="") as file:
        return max((int(float(row["step"])) for row in csv.DictReader(file) if row.get("step")), default=None)


def finish(loggers: Iterable[Logger]) -> None:
    """Ends what loggers have begun, so that the next training begins anew: Weights & Biases would go on with its run.

    Args:
        loggers: Those of a training that is over.
    """
    for logger in loggers:
        ended = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(ended):
            ended()

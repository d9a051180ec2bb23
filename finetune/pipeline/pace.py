"""How fast batches go by: the seconds in which they are computed, and in which they are read."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import psutil
import torch
from lightning import Callback, LightningModule, Trainer

from finetune.core.types import Batch
from finetune.data.loading.workers import typical
from finetune.training.progress import Progress
from finetune.training.task import AlignTask

TRIED = 3
"""Batches that are tried: the first one warms up."""


def clock(act: Callable[[], object]) -> float:
    """Returns the seconds that something takes.

    Args:
        act: What is done.
    """
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


class FirstBatches:
    """The first batches of a loader, timed while a model is asked about them.

    Args:
        loader: The rows.

    Attributes:
        total: How many batches the loader has.
        seconds: How long each was computed.
    """

    def __init__(self, loader: Any) -> None:
        self.total = len(loader)
        self.seconds: list[float] = []
        self._loader: Iterable[Batch] = loader

    @property
    def warming_up(self) -> float:
        """Seconds that the first batch took longer than the others."""
        return max(0.0, self.seconds[0] - typical(self.seconds))

    def __iter__(self) -> Iterator[Batch]:
        for batch in islice(self._loader, TRIED):
            started = time.perf_counter()
            yield batch
            self.seconds.append(time.perf_counter() - started)


class Reading(NamedTuple):
    """How images are read.

    Attributes:
        image: Seconds of an image in one process.
        workers: Processes that read them; 0 where the main process does.
        cores: Cores that all of this has.
        on_cpu: Whether the model takes the same cores.
    """

    image: float
    workers: int
    cores: int
    on_cpu: bool

    def join(self, computing: float, images: int) -> float:
        """Returns the seconds of a batch: one after the other in one process, else side by side as far as cores allow.

        Args:
            computing: Seconds in which it is computed.
            images: How many images it has.

        Example:
            >>> [Reading(0.01, workers, 4, False).join(1.0, 200) for workers in (0, 1, 4)]
            [3.0, 2.0, 1.0]
            >>> Reading(0.01, 1, 2, True).join(1.0, 200)
            2.0
        """
        reading = images * self.image
        if not self.workers:
            return computing + reading
        shared = computing + reading / self.cores if self.on_cpu else computing
        return max(shared, reading / self.workers)


class StepWatch(Callback):
    """Times steps and validation batches on the device, and a save; notes the memory of the processes that read images.

    Args:
        progress: Where the training is saved.

    Attributes:
        steps: Seconds of each training batch.
        checks: Seconds of each validation batch.
        around: Seconds of the validation beside its batches.
        save: Seconds of a save.
        helpers: Most bytes that other processes have held.
        kept: Bytes of what is kept of a frozen tower.
    """

    def __init__(self, progress: Progress) -> None:
        self.steps: list[float] = []
        self.checks: list[float] = []
        self.around = self.save = 0.0
        self.helpers = self.kept = 0
        self._progress = progress
        self._started = self._validation = 0.0

    def on_train_batch_start(self, *args: Any) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._started = _now()

    def on_train_batch_end(self, *args: Any) -> None:  # noqa: ARG002
        """Stops it, and looks at the workers."""
        self.steps.append(_now() - self._started)
        self.helpers = max(self.helpers, sum(child.memory_full_info().uss for child in psutil.Process().children()))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._validation = _now()

    def on_validation_batch_start(self, *args: Any) -> None:  # noqa: ARG002
        """Starts another."""
        self._started = _now()

    def on_validation_batch_end(self, *args: Any) -> None:  # noqa: ARG002
        """Stops it."""
        self.checks.append(_now() - self._started)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """What remains is the same for many rows as for few."""
        self.around = max(0.0, _now() - self._validation - sum(self.checks))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves once."""
        assert isinstance(pl_module, AlignTask)
        kept = pl_module.towers.list_kept()
        self.kept = sum(part.nbytes for name, part in kept.items() if name.endswith(".features"))
        started = _now()
        self._progress.write(trainer, pl_module)
        self.save = _now() - started


def _now() -> float:
    """The time at which the device has done what it was asked to."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()

"""What a whole run is going to take, and how that is said."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from finetune.core.bar import format_seconds
from finetune.training.schedules import limit_batches

GIB = 1024**3
_NARROW = 0.9
"""Share of what is free that a run may take without a warning."""

_WAITS = 1.15
"""How many times its computation a step may take."""


class Plan(NamedTuple):
    """How often a training does what.

    Attributes:
        batches: Training batches of one training.
        validations: How often it validates.
        validation_batches: Batches of each validation.
        trainings: How many trainings there are.
    """

    batches: int
    validations: int
    validation_batches: int
    trainings: int


class Need(NamedTuple):
    """Bytes that a run takes of something.

    Attributes:
        what: Of what.
        bytes: How many.
        free: How many there are, for this run.
        repair: What helps where there are too few.
    """

    what: str
    bytes: float
    free: int
    repair: str


class Forecast(NamedTuple):
    """What a dry run has found.

    Attributes:
        device: Where the model runs.
        rows: Rows of a training batch.
        computing: Seconds in which a batch is computed.
        reading: Seconds in which one process reads a batch.
        step: Seconds of a batch in training.
        workers: Processes that read images.
        stages: Seconds by the name of each part of the run.
        needs: What it takes beside time.
        notes: What else is to be known.
    """

    device: str
    rows: int
    computing: float
    reading: float
    step: float
    workers: int
    stages: dict[str, float]
    needs: tuple[Need, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(self.stages.values())

    def warnings(self) -> list[str]:
        """Returns what will not do."""
        return [
            f"warning: the run takes {_size(need.bytes)} of {need.what}, but only {_size(need.free)} are free. "
            f"{need.repair}"
            for need in self.needs
            if need.bytes > _NARROW * need.free
        ]

    def lines(self) -> Iterator[str]:
        """Yields the forecast for a reader."""
        yield f"device      {self.device}"
        yield (
            f"a batch     {self.rows:,} rows: {self.computing:.3g} s to compute, {self.reading:.3g} s to read, by "
            f"{self.workers or 'no'} workers: {self.rows / self.step:.3g} images/s"
        )
        for name, seconds in self.stages.items():
            yield f"  {name:<18}{format_seconds(seconds):>9}"
        yield f"whole run   {format_seconds(self.seconds):>9}"
        for need in self.needs:
            yield f"{need.what:<12}{_size(need.bytes)}, of {_size(need.free)} free"
        if self.step > _WAITS * self.computing:
            share = 1 - self.computing / self.step
            yield f"Training waits for images {share:.0%} of the time: set data.num_workers to auto, or higher."
        yield from self.notes
        yield from self.warnings()


def plan_training(trainer: Any, steps: int, batches: int, validation_batches: int, trainings: int) -> Plan:
    """Counts what a training is going to do.

    Args:
        trainer: As the recipe describes it.
        steps: Optimizer steps of one training.
        batches: Batches of an epoch.
        validation_batches: Batches of the validation rows.
        trainings: How many trainings there are.
    """
    in_epoch = limit_batches(batches, trainer.limit_train_batches)
    epochs = steps / max(1, math.ceil(in_epoch / trainer.accumulate_grad_batches))
    whole = round(epochs * in_epoch)
    checked = limit_batches(validation_batches, trainer.limit_val_batches)
    every, epochs_between = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if not checked or not isinstance(every, int | float):  # by the clock
        return Plan(whole, 0, checked, trainings)
    between = every if isinstance(every, int) else max(1, int(in_epoch * every))
    times = whole // between if epochs_between is None else int(epochs) // epochs_between * (in_epoch // between)
    return Plan(whole, times, checked, trainings)


def _size(amount: float) -> str:
    """Writes bytes in MiB or GiB."""
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / 1024**2:.0f} MiB"

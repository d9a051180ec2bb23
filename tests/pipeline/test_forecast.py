"""What a forecast counts and says: held against what Lightning does, and read as a user does."""

import pytest
import torch
from lightning import Callback
from torch.utils.data import DataLoader

from finetune.pipeline.forecast import GIB, Forecast, Need, plan_training
from finetune.training.schedules import total_steps

from ..still import Still

BATCHES, CHECKS = 7, 3


class Counts(Callback):
    def __init__(self):
        self.batches = self.validations = self.checked = 0

    def on_train_batch_start(self, *args):
        self.batches += 1

    def on_validation_start(self, *args):
        self.validations += 1

    def on_validation_batch_start(self, *args):
        self.checked += 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2},
        {"max_epochs": 3, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "val_check_interval": 0.5},
        {"max_epochs": 2, "val_check_interval": 2},
        {"max_epochs": -1, "max_steps": 12, "val_check_interval": 5, "check_val_every_n_epoch": None},
        {"max_epochs": 2, "limit_val_batches": 0},
        {"max_epochs": 2, "limit_val_batches": 2, "limit_train_batches": 4},
        {"max_epochs": 3, "accumulate_grad_batches": 2},
    ],
)
def test_batches_and_validations_are_those_that_lightning_goes_through(build_trainer, options):
    counts, trainer = Counts(), build_trainer(num_sanity_val_steps=0, **options)
    trainer.callbacks.append(counts)
    loaders = [DataLoader(torch.zeros(size)) for size in (BATCHES, CHECKS)]
    trainer.fit(Still(), *loaders)
    steps = total_steps(trainer)
    plan = plan_training(trainer, steps, BATCHES, CHECKS, 1)
    assert (plan.batches, plan.validations) == (counts.batches, counts.validations)
    assert plan.validations * plan.validation_batches == counts.checked


def test_what_will_not_do_is_said():
    needs = (Need("memory", 3 * GIB, 2 * GIB, "Buy some."), Need("disk", GIB, 9 * GIB, "Free some."))
    found = Forecast("cpu, 2 cores", 64, 1.0, 1.0, 2.0, 0, {"train": 90.0, "export": 5.0}, needs, ("A note.",))
    assert [*found.lines()] == [
        "device      cpu, 2 cores",
        "a batch     64 rows: 1 s to compute, 1 s to read, by no workers: 32 images/s",
        "  train                 01:30",
        "  export                00:05",
        "whole run       01:35",
        "memory      3.0 GiB, of 2.0 GiB free",
        "disk        1.0 GiB, of 9.0 GiB free",
        "Training waits for images 50% of the time: set data.num_workers to auto, or higher.",
        "A note.",
        "warning: the run takes 3.0 GiB of memory, but only 2.0 GiB are free. Buy some.",
    ]

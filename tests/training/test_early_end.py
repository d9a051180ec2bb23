"""Why a training ended before its last step."""

import re

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader

from finetune.training.early_end import find_early_end

from ..still import Still


class Scripted(Still):
    """Three steps an epoch, and no progress on the validation rows."""

    def validation_step(self, batch):
        self.log("val/accuracy", 0.25)


class Asks(Callback):
    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = True


def patient(**options):
    return [EarlyStopping("val/accuracy", mode="max", **options)]


NO_BETTER = r"Monitored metric val/accuracy did not improve in the last 1 records\. Best score: 0\.250"


@pytest.mark.parametrize(
    ("callbacks", "options", "expected"),
    [
        ([], {}, None),
        (patient(patience=9), {}, None),
        (patient(patience=1), {}, rf"It ended early, after step 6 of 9: {NO_BETTER}\."),
        (
            patient(stopping_threshold=0.1),
            {},
            r"step 3 of 9: Stopping threshold reached: val/accuracy = 0\.25 > 0\.1\.",
        ),
        ([Asks()], {}, r"step 1 of 9: a callback has asked for it\."),
        ([], {"max_time": {"microseconds": 1}}, r"step \d of 9: trainer\.max_time was over\."),
        ([], {"max_steps": 2}, None),
    ],
)
def test_what_ended_a_training_is_named(build_trainer, callbacks, options, expected):
    trainer = build_trainer(max_epochs=3, callbacks=callbacks, num_sanity_val_steps=0, **options)
    loader = DataLoader(torch.zeros(3))
    trainer.fit(Scripted(), loader, loader)
    found = find_early_end(trainer)
    assert (found is None) if expected is None else re.search(expected, found.message)

"""Timing of steps: what it leaves as it was, and what it concludes."""

import copy

import pytest
import torch

from finetune.core.types import Batch
from finetune.model.lora import TowerLora
from finetune.training.task import AlignTask
from finetune.training.timing import HOPELESS, Way, leave_out_hopeless, time_ways

PLAIN, LAST, HALF = Way(), Way(channels_last=True), Way("bf16-mixed", True)


@pytest.fixture(scope="module")
def batch() -> Batch:
    ids = torch.arange(4)
    return Batch(
        pixel_values=torch.randn(4, 3, 64, 64),
        input_ids=torch.randint(1, 60, (4, 5)),
        attention_mask=torch.ones(4, 5, dtype=torch.long),
        rows=ids,
        image_ids=ids,
        caption_ids=ids,
        label_ids=ids,
        weights=torch.ones(4),
    )


def test_weights_statistics_gradients_and_random_numbers_stay_as_they_were(tiny, batch):
    task = AlignTask(tiny, image_lora=TowerLora(rank=2, dropout=0.5, train_statistics=True))
    before, drawn = copy.deepcopy(task.state_dict()), torch.get_rng_state()
    timing = time_ways(task, batch, [PLAIN, LAST, HALF], lambda _: 60.0)
    assert timing is not None
    assert timing.seconds[PLAIN] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in task.parameters())
    assert task.towers.channels_last is None


def test_what_takes_too_long_is_not_timed(tiny, batch):
    asked = []

    def allow(seconds: float) -> float:
        asked.append(seconds)
        return seconds / 2

    assert time_ways(AlignTask(tiny, text_lora=None), batch, [PLAIN, LAST], allow) is None
    assert len(asked) == 1


def test_a_way_far_behind_is_left_out_and_the_first_never():
    taken = {PLAIN: [2.0 * HOPELESS], LAST: [1.0], HALF: [1.1 * HOPELESS]}
    assert leave_out_hopeless(taken).keys() == {PLAIN, LAST}

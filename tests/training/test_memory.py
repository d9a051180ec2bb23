"""Bytes are counted as tensors come and go."""

import psutil
import torch

from finetune.training.memory import PeakBytes, free_bytes


def test_what_is_held_at_the_same_time_is_added_up_once():
    given = torch.ones(1000)
    meter = PeakBytes()
    with meter:
        first = given + 1  # 4,000 bytes
        first.view(10, 100)[2:]  # the same memory
        given.add_(first)
        del first
        second = given.double()  # 8,000 bytes
        torch.stack([second, second])  # 16,000 bytes beside them
        torch.cat([given, given])  # 8,000 bytes: less than there was before
    assert meter.peak == 24_000


def test_what_a_graph_keeps_is_held_until_backward():
    def peak(repeats: int) -> int:
        values, meter = torch.ones(1000, requires_grad=True), PeakBytes()
        with meter:
            found = values
            for _ in range(repeats):
                found = found.sigmoid()
            torch.autograd.grad(found.sum(), values)
        return meter.peak

    assert peak(9) - peak(5) == 4 * 4000


def test_free_memory_is_some_of_the_machines():
    assert 0 < free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total

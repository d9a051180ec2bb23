"""The order: a function of seed and epoch, whole, even, and continued from the number of delivered batches."""

import numpy as np
import pytest
from torch.utils.data import Dataset

from finetune.data.loading.loader import Collated, TrainBatchLoader
from finetune.data.loading.sampler import TrainBatches


class Keys(Dataset):
    """Gives back what it is asked for."""

    def __getitem__(self, key):
        return key


def collate(keys) -> Collated:
    return Collated(list(keys), [])


def loader(workers: int = 0, length: int = 40, size: int = 6) -> TrainBatchLoader:
    batches = TrainBatches(length, size, 3)
    return TrainBatchLoader(Keys(), list, batch_sampler=batches, num_workers=workers, collate_fn=collate)


@pytest.mark.parametrize(("length", "size"), [(1, 4), (4, 4), (5, 4), (40, 6), (65, 64), (130, 64)])
def test_every_row_once_an_epoch_in_batches_of_even_size(length, size):
    batches = TrainBatches(length, size, 0)
    found = list(batches)
    assert len(found) == len(batches) == int(np.ceil(length / size))
    assert sorted(row for batch in found for row, _ in batch) == list(range(length))
    sizes = {len(batch) for batch in found}
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        batches = TrainBatches(40, 6, seed)
        batches.set_epoch(epoch)
        return [row for batch in batches for row, _ in batch]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_restored_loader_delivers_the_rest_of_the_epoch_and_then_whole_epochs(workers, stop):
    def epochs(source, first, last):
        for epoch in range(first, last):
            source.batch_sampler.set_epoch(epoch)
            yield from source

    expected = list(epochs(loader(), 0, 3))
    interrupted = loader(workers)
    stream = epochs(interrupted, 0, 3)
    seen = [next(stream) for _ in range(7 + stop)]
    state = interrupted.state_dict()
    restored = loader(workers)
    restored.load_state_dict(state)
    first = 1 if stop < 7 else 2
    seen += list(epochs(restored, first, 3))
    assert seen == expected


def test_an_epoch_that_was_cut_short_does_not_shorten_the_next():
    source = loader()
    next(iter(source))
    source.batch_sampler.set_epoch(1)
    assert sum(len(batch) for batch in source) == 40

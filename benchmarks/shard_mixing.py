"""How well an order by blocks of shards mixes rows, beside the full shuffle, and how often it fetches a shard.

    python benchmarks/shard_mixing.py

The table is sorted by class, the worst case: each class fills neighbouring shards. Printed are, of an epoch's batches,
- shards: the mean number of different shards in a batch;
- classes: 2 to the mean entropy of a batch's classes, the number of equally frequent classes that it corresponds to;
- distance: how far a row's places in two epochs lie apart, as a share of the epoch (1/3 where nothing is remembered);
- together: of two rows in one batch, how often they are in one batch of the next epoch too, as a multiple of chance;
- fetches: transfers of each shard, with room for 32 shards, those used longest ago going first.
"""

import argparse
from collections import OrderedDict

import numpy as np

from finetune.data.loading.permutation import KeyedPermutation
from finetune.data.loading.shard_order import BlockPermutation, Shards
from finetune.data.table.cells import Integers

ROOM = 32


def order_rows(shards: Shards, mixed: int, epoch: int) -> Integers:
    """Returns the rows of an epoch, in blocks of at most so many shards; of one shuffle where that is all of them."""
    positions = np.arange(shards.starts[-1])
    if mixed >= len(shards):
        return KeyedPermutation(len(positions), [0, epoch])[positions]
    return BlockPermutation(shards.in_blocks(mixed, [0, epoch]), [0, epoch])[positions]


def count_kinds(batches: Integers) -> float:
    """Returns the mean number of different values in a row of an array."""
    return float((np.diff(np.sort(batches, axis=1), axis=1) > 0).sum(axis=1).mean() + 1)


def count_classes(batches: Integers, classes: int) -> float:
    """Returns 2 to the mean entropy of the classes of a row."""
    entropies = []
    for batch in batches:
        shares = np.bincount(batch, minlength=classes) / len(batch)
        shares = shares[shares > 0]
        entropies.append(-(shares * np.log2(shares)).sum())
    return float(2 ** np.mean(entropies))


def count_fetches(batches: Integers, shards: int) -> float:
    """Returns how often each shard is fetched if the shards used last are kept, as many as there is room for."""
    kept, fetches = OrderedDict[int, None](), 0
    for shard in batches.ravel().tolist():
        fetches += shard not in kept
        kept[shard] = None
        kept.move_to_end(shard)
        if len(kept) > ROOM:
            kept.popitem(last=False)
    return fetches / shards


def compare_epochs(first: Integers, second: Integers, size: int) -> tuple[float, float]:
    """Returns the mean distance of a row's places, and how often neighbours in a batch meet again, beside chance."""
    place = np.empty_like(second)
    place[second] = np.arange(len(second))
    distance = float(np.abs(place[first] - np.arange(len(first))).mean() / len(first))
    batches = np.sort((place[first] // size).reshape(-1, size), axis=1)
    runs = [np.unique(batch, return_counts=True)[1] for batch in batches]
    meetings = sum(float((run * (run - 1)).sum()) for run in runs) / (len(batches) * size * (size - 1))
    return distance, meetings * (len(first) - 1) / (size - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=256, help="shards (%(default)s)")
    parser.add_argument("--rows", type=int, default=4096, help="rows of a shard (%(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="rows of a batch, a divisor of all rows (%(default)s)")
    parser.add_argument("--classes", type=int, default=1000, help="classes (%(default)s)")
    options = parser.parse_args()
    total = options.shards * options.rows
    shards = Shards(("",) * options.shards, np.arange(options.shards + 1) * options.rows)
    print(f"{'shards mixed':<14}{'shards':>8}{'classes':>9}{'distance':>10}{'together':>10}{'fetches':>9}")
    for mixed in (1, 4, 16, 64, options.shards):
        first, second = (order_rows(shards, mixed, epoch) for epoch in (0, 1))
        batches = first.reshape(-1, options.batch)
        kinds = count_kinds(batches // options.rows)
        classes = count_classes(batches * options.classes // total, options.classes)
        distance, together = compare_epochs(first, second, options.batch)
        fetches = count_fetches(batches // options.rows, options.shards)
        name = "all" if mixed == options.shards else str(mixed)
        print(f"{name:<14}{kinds:>8.1f}{classes:>9.1f}{distance:>10.3f}{together:>10.2f}{fetches:>9.1f}", flush=True)


if __name__ == "__main__":
    main()

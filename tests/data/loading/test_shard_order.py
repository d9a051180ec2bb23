"""An order by shards: a function of seed and epoch that mixes the rows of a block of shards at a time."""

import tracemalloc
from collections import Counter
from itertools import chain, permutations

import numpy as np
import pytest
from scipy.stats import chisquare

from finetune.data.loading.choices import RowChoices
from finetune.data.loading.sampler import WHOLE, Part, TrainBatches
from finetune.data.loading.shard_order import BlockPermutation, Shards


def shards_of(*sizes: int) -> Shards:
    files = [f"{number}.tar" for number in range(len(sizes))]
    file_ids = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return Shards.of_rows(files, file_ids, RowChoices.of_each(np.arange(sum(sizes))))


def order_of(shards: Shards, mixed: int, key: list[int]) -> np.ndarray:
    return BlockPermutation(shards.in_blocks(mixed, key), key)[np.arange(shards.starts[-1])]


@pytest.mark.parametrize("sizes", [(7,), (1, 1), (5, 3, 9, 1, 1, 4, 30), (100,) * 23, tuple(range(1, 41))])
@pytest.mark.parametrize("mixed", [1, 2, 4, 100])
def test_each_row_comes_once_and_each_shard_in_one_block(sizes: tuple[int, ...], mixed: int) -> None:
    shards = shards_of(*sizes)
    found, blocks = order_of(shards, mixed, [3, 1]), shards.in_blocks(mixed, [3, 1])
    assert np.array_equal(np.sort(found), np.arange(sum(sizes)))
    shard, seen, at, counts = np.repeat(np.arange(len(sizes)), sizes)[found], set[int](), 0, list[int]()
    for block in range(len(blocks)):
        members = {int(place.removesuffix(".tar")) for place in blocks.places(block)}
        stop = at + sum(sizes[member] for member in members)
        assert {*shard[at:stop].tolist()} == members
        assert not members & seen
        assert (blocks.find(found[at:stop]) == block).all()
        seen |= members
        counts.append(len(members))
        at = stop
    assert at == sum(sizes)
    assert max(counts) <= mixed
    assert max(counts) - min(counts) <= 1


def test_shards_are_found_in_long_columns_and_may_lack_rows() -> None:
    ids = np.repeat([0, 2, 3], [1_048_577, 1_048_575, 5]).astype(np.int32)
    rows = np.arange(len(ids))
    found = Shards.of_rows(["a", "b", "c", "d"], ids, RowChoices.of_each(rows))
    assert found.places == ("a", "c", "d")
    assert found.starts.tolist() == [0, 1_048_577, 2_097_152, 2_097_157]
    found = Shards.of_rows(
        ["a", "b", "c", "d"], ids, RowChoices.of_items(rows[-8:], np.array([1, 2, 1, 3, 3, 4, 4, 4]))
    )
    assert (found.places, found.starts.tolist()) == (("c", "d"), [0, 2, 4])  # items begin at rows 0, 1, 3, 5 of these


def test_orders_of_a_block_and_of_shards_are_as_frequent_as_chance_has_it() -> None:
    for shards, mixed in ((shards_of(2, 2), 2), (shards_of(1, 1, 1, 1), 1)):
        found = Counter(tuple(order_of(shards, mixed, [seed, 7]).tolist()) for seed in range(960))
        assert chisquare([found[order] for order in permutations(range(4))]).pvalue > 1e-4


def test_epochs_and_blocks_have_nothing_to_do_with_each_other() -> None:
    shards = shards_of(*[1000] * 8)
    first, second = (order_of(shards, 4, [5, epoch]) for epoch in (0, 1))
    blocks = [shards.in_blocks(4, [5, epoch]).order.tolist() for epoch in (0, 1)]
    assert blocks[0] != blocks[1]
    assert (first == second).sum() < 15  # 1 is expected
    inside = [np.argsort(first[start : start + 4000]) for start in (0, 4000)]
    assert abs(np.corrcoef(*inside)[0, 1]) < 4 / np.sqrt(4000)


def test_what_stands_somewhere_does_not_depend_on_what_else_is_asked() -> None:
    order = BlockPermutation(shards_of(*[997] * 50).in_blocks(4, [0, 0]), [0, 0])
    positions = np.array([[49_849, 0], [3988, 3987]])
    together = order[positions]
    assert together.shape == (2, 2)
    assert [order[np.array([at])].tolist() for at in positions.ravel()] == together.reshape(-1, 1).tolist()


def test_memory_does_not_depend_on_rows() -> None:
    starts = np.arange(1001) * 1_000_000  # a thousand million rows
    batches = TrainBatches(10**9, 64, seed=0, shards=Shards(("a.tar",) * 1000, starts), mixed=16)
    tracemalloc.start()
    rows = [row for row, _ in next(iter(batches))]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(np.unique(np.array(rows) // 1_000_000)) > 8


def test_batches_resume_and_are_shared_as_ever() -> None:
    def batches(part: Part = WHOLE, delivered: int = 0) -> list[list[tuple[int, int]]]:
        made = TrainBatches(530, 32, seed=4, part=part, shards=shards_of(*[53] * 10), mixed=3)
        made.set_epoch(2)
        made.delivered = delivered
        return [*made]

    whole = batches()
    assert sorted(row for batch in whole for row, _ in batch) == [*range(530)]
    assert batches(delivered=7) == whole[7:]
    parts = [batches(Part(number, 3), delivered=4) for number in range(3)]
    assert [[*chain(*each)] for each in zip(*parts, strict=True)] == whole[4:]


def test_a_draw_keeps_its_rows_and_is_arranged_by_blocks() -> None:
    shards = shards_of(*[20] * 12)

    def draw(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).integers(0, 240, 240)

    made = TrainBatches(240, 240, seed=1, draw=draw, shards=shards, mixed=3)
    ((rows, epochs),) = (zip(*batch, strict=True) for batch in made)
    drawn, found = draw(1, 0), np.array(rows)
    blocks = shards.in_blocks(3, [1, 0])
    expected = [drawn[np.isin(drawn // 20, blocks.order[3 * block : 3 * block + 3])] for block in range(4)]
    assert np.array_equal(found, np.concatenate(expected))
    assert len({*zip(rows, epochs, strict=True)}) == 240  # what comes again is augmented anew

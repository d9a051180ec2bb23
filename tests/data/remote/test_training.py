"""Training and evaluation on shards of real servers, with less room than the shards take."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch

from finetune.core.errors import RecipeError, TableError
from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.fetch_ahead import fetch_ahead
from finetune.data.loading.sampler import Part
from finetune.data.loading.sampling import ClassBalanced
from finetune.data.loading.shard_order import Shards
from finetune.data.remote.store import LIMIT, open_store
from finetune.data.remote.transfer import Transfer
from finetune.data.table.splits import RandomSplit
from finetune.data.table.table import Table

from ..shards import sample, write_tar
from .servers import Cutter, Nginx, needs_nginx, run_cutter, run_s3

SHARDS, ROWS = 8, 4

pytestmark = pytest.mark.usefixtures("cache")

Build = Callable[..., ImageTextDataModule]


@pytest.fixture
def folder(served: tuple[Nginx, Path], tmp_path: Path) -> Iterator[Path]:
    """A folder of small shards, all of one size, that nginx serves."""
    folder = served[1] / f"training-{tmp_path.name}"
    folder.mkdir()
    for shard in range(SHARDS):
        write_tar(folder / f"{shard}.tar", *(sample(shard * ROWS + row) for row in range(ROWS)))
    size = max(path.stat().st_size for path in folder.iterdir())
    for path in folder.iterdir():
        os.truncate(path, size)  # zeros are a tar's end
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def url(folder: Path, served: tuple[Nginx, Path]) -> str:
    """The URL of its shards, without the ending."""
    return f"{served[0].url}/{folder.name}/*"


@pytest.fixture
def build(tiny: str, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Opens rows of all shards as a new process would, with nothing fetched, and room for two blocks of two."""

    def build(url: str, room: float = 4.2, **options: object) -> ImageTextDataModule:
        monkeypatch.delenv(LIMIT, raising=False)
        open_store().transfer = Transfer(pause=0.001)
        table = Table(f"{url}.tar", label="species", split=RandomSplit(val=0.0, test=0.0))
        data = ImageTextDataModule(table, tiny, cache=None, **{"mix_shards": 2, "batch_size": 4, **options})
        assert len(data.rows) == SHARDS * ROWS
        size = max(open_store().known(file).size or 0 for file in data.rows.files)
        shutil.rmtree(open_store().folder, ignore_errors=True)
        monkeypatch.setenv(LIMIT, str(int(room * size)))
        open_store().transfer = Transfer(pause=0.001)
        return data

    return build


def fetched(nginx: Nginx, folder: Path, since: int = 0) -> Counter[str]:
    """How often each shard was asked for."""
    asked = [line.split()[1] for line in nginx.requests()[since:] if line.startswith("GET") and ".tar" in line]
    return Counter(path.rpartition("/")[2] for path in asked if folder.name in path)


def held() -> set[str]:
    """The shards that lie in the cache whole."""
    return {path.name.rpartition("-")[2] for path in open_store().folder.glob("*.tar")}


def taken() -> float:
    """How many shards the cache holds, those included that are being fetched."""
    sizes = [path.stat().st_size for path in open_store().folder.iterdir()]
    return sum(sizes) / max(sizes)


def assert_equal(some: list[Batch], others: list[Batch]) -> None:
    for one, two in zip(some, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def rows_of(batches: list[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


@needs_nginx
@pytest.mark.parametrize(
    ("workers", "sampling"),
    [(0, None), (2, None), (0, ClassBalanced()), pytest.param(2, ClassBalanced(), marks=pytest.mark.slow)],
)
def test_an_epoch_fetches_each_shard_once(
    url: str, folder: Path, served: tuple[Nginx, Path], build: Build, workers: int, sampling: ClassBalanced | None
) -> None:
    data = build(url, num_workers=workers, sampling=sampling, batch_size=1)
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        since, before = len(served[0].requests()), held()
        rows = torch.cat([batch.rows for batch in loader])
        counts = fetched(served[0], folder, since)
        assert {*counts.values()} == {1}
        assert {*counts} >= {f"{shard}.tar" for shard in range(SHARDS)} - before
        assert sampling is not None or sorted(rows.tolist()) == [*range(SHARDS * ROWS)]
        assert taken() <= 5.2  # a thread may look at a shard while another makes room


@needs_nginx
def test_batches_depend_on_neither_cache_nor_workers_nor_the_speed_of_a_server(
    url: str, served: tuple[Nginx, Path], build: Build
) -> None:
    expected = [*build(url).train_dataloader()]
    assert_equal(expected, [*build(url, room=99, num_workers=2).train_dataloader()])
    slow = url.replace(served[0].url, f"{served[0].url}/slow").replace("*", "{0..7}")
    assert_equal(expected, [*build(slow).train_dataloader()])
    other = [*build(url, mix_shards=4, room=99).train_dataloader()]
    assert rows_of(expected) != rows_of(other)
    assert sorted(chain(*rows_of(other))) == [*range(SHARDS * ROWS)]


@needs_nginx
def test_shards_on_the_disk_are_mixed_all_together(url: str, folder: Path, build: Build, tiny: str) -> None:
    table = Table(str(folder / "*.tar"), label="species", split=RandomSplit(val=0.0, test=0.0))
    local = ImageTextDataModule(table, tiny, batch_size=4, cache=None, mix_shards=2)
    assert local.train_dataloader().batch_sampler.shards is None
    here, there = [*local.train_dataloader()], [*build(url).train_dataloader()]
    shards = [[len({row // ROWS for row in rows}) for rows in rows_of(batches)] for batches in (here, there)]
    assert max(shards[0]) > 2 >= max(shards[1])


@needs_nginx
@pytest.mark.parametrize("stop", [1, 3, 7])
@pytest.mark.parametrize("count", [1, 3])
def test_a_training_that_was_stopped_goes_on_with_the_same_batches(
    url: str, folder: Path, served: tuple[Nginx, Path], build: Build, stop: int, count: int
) -> None:
    def open_epoch() -> ImageTextDataModule:
        loader = build(url).train_dataloader()
        loader.batch_sampler.set_epoch(1)
        return loader

    expected = [*open_epoch()]
    stopped = open_epoch()
    batches = iter(stopped)
    begun = [next(batches) for _ in range(stop)]
    state = stopped.state_dict()
    del batches
    parts = []
    for number in range(count):
        since = len(served[0].requests())
        resumed = open_epoch()
        resumed.load_state_dict(state)
        resumed.batch_sampler.part = Part(number, count)
        parts.append(rows_of([*resumed]))
        assert len(fetched(served[0], folder, since)) <= SHARDS - stop + stop % 2 + 1  # none of those that are done
    assert rows_of(begun) + [[*chain(*rows)] for rows in zip(*parts, strict=True)] == rows_of(expected)


@needs_nginx
def test_processes_of_a_machine_fetch_each_shard_once(
    url: str, folder: Path, served: tuple[Nginx, Path], build: Build, tmp_path: Path
) -> None:
    loader = build(url, room=4.2).train_dataloader()
    since, children = len(served[0].requests()), []
    for number in range(3):
        if (child := os.fork()) == 0:
            try:
                torch.set_num_threads(1)
                loader.batch_sampler.part = Part(number, 3)
                rows = []
                for step, batch in enumerate(loader):
                    rows += batch.rows.tolist()
                    (tmp_path / f"{number}-{step}").touch()
                    while any(not (tmp_path / f"{other}-{step}").exists() for other in range(3)):
                        time.sleep(0.001)  # as a step waits for all
                (tmp_path / f"rows-{number}").write_text(json.dumps(rows))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    rows = chain(*(json.loads((tmp_path / f"rows-{number}").read_text()) for number in range(3)))
    assert sorted(rows) == [*range(SHARDS * ROWS)]
    counts = fetched(served[0], folder, since)
    assert counts == {f"{shard}.tar": 1 for shard in range(SHARDS)}
    assert taken() <= 5.2


@needs_nginx
def test_evaluation_fetches_each_shard_once(url: str, folder: Path, served: tuple[Nginx, Path], build: Build) -> None:
    data = build(url, room=2.1)
    since = len(served[0].requests())
    rows = torch.cat([batch.rows for batch in data.loader("train", batch_size=3)])
    assert rows.tolist() == [*range(SHARDS * ROWS)]
    assert {*fetched(served[0], folder, since).values()} == {1}


def wait_for(names: Iterable[str]) -> set[str]:
    """Waits until some shards are there, and a little longer; returns all that are."""
    end = time.monotonic() + 20
    while not {*names} <= held() and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.05)
    return held()


@needs_nginx
def test_the_next_block_is_fetched_and_no_further(url: str, build: Build) -> None:
    data = build(url, room=99)
    shards = Shards.of_rows(data.rows.files, data.rows.file_ids, data.dataset("train").choices)
    blocks = shards.in_blocks(2, [0, 0])
    firsts = [[(int(shards.starts[shard]), 0)] for shard in blocks.order]
    batches = fetch_ahead([[], *firsts[2:]], blocks, behind=0)  # a start in the middle: block 1
    next(batches)
    assert not held()
    next(batches)
    names = [[place.rpartition("/")[2] for place in blocks.places(block)] for block in range(4)]
    assert wait_for(names[1] + names[2]) == {*names[1], *names[2]}
    next(batches), next(batches)
    assert wait_for(names[3]) == {*names[1], *names[2], *names[3]}


@needs_nginx
def test_shards_in_use_stay_and_others_wait_for_room(url: str, build: Build) -> None:
    data = build(url, room=4.2)
    shards = Shards.of_rows(data.rows.files, data.rows.file_ids, data.dataset("train").choices)
    blocks = shards.in_blocks(2, [0, 0])
    names = [[place.rpartition("/")[2] for place in blocks.places(block)] for block in range(4)]
    firsts = [[(int(shards.starts[shard]), 0)] for shard in blocks.order]
    batches = fetch_ahead(firsts, blocks, behind=2)
    expected = {*names[0], *names[1]}
    for _ in range(2):
        next(batches)
    assert wait_for(expected) == expected
    for _ in range(2):  # block 1, while workers read block 0 still: neither makes room for block 2
        next(batches)
        assert wait_for(expected) == expected
    for place in blocks.places(3):  # what is read meanwhile goes first
        open_store().fetch(place)
    assert expected <= held()
    next(batches)
    expected = {*names[1], *names[2]}
    assert expected <= wait_for(expected)
    batches.close()
    for place in (*blocks.places(0), *blocks.places(1)):
        open_store().fetch(place)
    assert taken() <= 4.2


@needs_nginx
def test_too_little_room_for_two_blocks_is_refused(url: str, build: Build) -> None:
    data = build(url, mix_shards=3)  # 8 shards are 3 blocks, of 3 at most
    with pytest.raises(
        RecipeError, match=r"^Expected room for .* \(3, by .*, but got .* Lower data\.mix_shards, or raise"
    ):
        data.train_dataloader()
    data = build(url, mix_shards=100)
    with pytest.raises(RecipeError, match=r"Expected room for .* \(8, by"):
        data.train_dataloader()
    data = build(url, mix_shards=1, room=1.2)
    with pytest.raises(
        RecipeError, match=rf"\(1, by .*\. Raise \${LIMIT}, or put \$ALIGN_FINETUNE_CACHE on a larger disk"
    ):
        data.train_dataloader()
    build(url, mix_shards=100, room=8.1).train_dataloader()
    with pytest.raises(ValueError, match="Expected mix_shards to be at least 1, but got 0"):
        build(url, mix_shards=0)


@needs_nginx
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_shard_that_is_cut_short_ends_the_training_where_its_turn_comes(
    url: str, folder: Path, build: Build, workers: int
) -> None:
    data = build(url, num_workers=workers, on_bad_image="skip")
    loader = data.train_dataloader()
    blocks = loader.batch_sampler.shards.in_blocks(2, [0, 0])
    place = blocks.places(2)[0]
    broken = place.rpartition("/")[2]
    size = (folder / broken).stat().st_size
    os.truncate(folder / broken, 2000)
    begun, stop = (
        [],
        rf"Expected {place} to .*, but got .*2,000 bytes|Expected {place} .* of {size:,} bytes",
    )
    with pytest.raises(TableError, match=stop):
        begun.extend(batch.rows for batch in loader)
    assert len(begun) >= 4 - 2 * workers * 2


def test_transfers_that_are_cut_off_go_on(folder: Path, build: Build) -> None:
    with run_cutter(Cutter((folder / "0.tar").read_bytes())) as cutter:
        url = f"{cutter.url}/{{0..7}}"
        expected = [*build(url).train_dataloader()]
        data = build(url)
        cutter.cuts, cutter.after = 9, 5000
        assert_equal(expected, [*data.train_dataloader()])
        assert cutter.cuts == 0
        data = build(url)
        cutter.cuts = 10**6
        with pytest.raises(TableError, match=r"\.tar to be fetched whole, but got .* bytes\. Tried 5 times"):
            list(data.train_dataloader())


@pytest.mark.slow
def test_s3(folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_s3("trained", folder, monkeypatch):
        expected = rows_of([*build("s3://trained/set/*").train_dataloader()])
        loader = build("s3://trained/set/*", num_workers=2).train_dataloader()
        batches = iter(loader)
        begun = [next(batches) for _ in range(3)]
        state = loader.state_dict()
        del batches, loader
        resumed = build("s3://trained/set/*").train_dataloader()
        resumed.load_state_dict(state)
        assert rows_of([*begun, *resumed]) == expected

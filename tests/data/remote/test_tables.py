"""Tables and shards on real servers: the same rows and pictures as on the local disk."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from finetune.commands.cli import main
from finetune.core.errors import TableError
from finetune.data.checks.copies import find_copies
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.prepare.images import open_image
from finetune.data.prepare.members import Member
from finetune.data.remote.store import open_store
from finetune.data.table.faults import TableFaultsError
from finetune.data.table.rows import Rows
from finetune.data.table.splits import RandomSplit
from finetune.data.table.table import Table

from ..shards import sample, write_tar
from .servers import Cutter, Nginx, needs_nginx, run_cutter, run_s3

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def remote(served: tuple[Nginx, Path], shards: Path) -> Iterator[tuple[str, Path, Nginx]]:
    """The URL of a folder with three shards on nginx, the folder, and the server."""
    nginx, root = served
    link = root / f"tables-{shards.name}"
    shutil.copytree(shards, link, ignore=shutil.ignore_patterns("cache"))
    yield f"{nginx.url}/{link.name}", link, nginx
    shutil.rmtree(link)


def start_again() -> None:
    """Forgets what this process knows of servers, as another process would not know it."""
    transfer = open_store().transfer
    open_store.__globals__["_open_store"].cache_clear()
    open_store().transfer = transfer


def gets(nginx: Nginx, ending: str) -> int:
    return len([line for line in nginx.requests() if line.startswith("GET") and line.split()[1].endswith(ending)])


def assert_equal(one: Rows, two: Rows) -> None:
    for name in ("captions", "label_ids", "image_ids", "splits", "drawn", "file_ids", "numbers"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert [one.name(row) for row in range(len(one))] == [two.name(row) for row in range(len(two))]


@needs_nginx
@pytest.mark.parametrize("settings", [{"caption": "txt"}, {"label": "species", "filter": "width > 5 and score > 0.1"}])
def test_shards_on_a_server_are_those_of_the_disk(remote: tuple[str, Path, Nginx], settings: dict[str, str]) -> None:
    url, folder, _ = remote
    local, found = Table(str(folder / "*.tar"), **settings).read(), Table(f"{url}/*.tar", **settings).read()
    assert_equal(local, found)
    assert found.files == tuple(f"{url}/0000{shard}.tar" for shard in range(3))
    assert found.place(3).startswith(f"{url}/00000.tar:0000")
    for here, there in zip(local.images[::4], found.images[::4], strict=True):
        assert np.array_equal(open_image(here), open_image(there))


@needs_nginx
def test_the_second_start_reads_neither_headers_nor_shards(remote: tuple[str, Path, Nginx], cache: Path) -> None:
    url, _, nginx = remote
    first = Table(f"{url}/*.tar", caption="caption", split="split").read()
    assert gets(nginx, f"{url.rpartition('/')[2]}/00001.tar") == 1
    shutil.rmtree(cache / "remote")
    start_again()
    before = gets(nginx, ".tar")
    assert_equal(first, Table(f"{url}/*.tar", caption="caption", split="split").read())
    assert gets(nginx, ".tar") == before
    open_image(first.images[0])
    assert gets(nginx, ".tar") == before + 1


@needs_nginx
def test_a_shard_that_was_written_again_is_read_again(remote: tuple[str, Path, Nginx]) -> None:
    url, folder, _ = remote
    Table(f"{url}/*.tar", caption="txt").read()
    write_tar(folder / "00002.tar", *(sample(number) for number in range(20, 23)))
    rows = Table(f"{url}/*.tar", caption="txt").read()
    assert len(rows) == 23
    assert np.array_equal(
        open_image(rows.images[22]), open_image(Table(str(folder / "*.tar"), caption="txt").read().images[22])
    )


@needs_nginx
def test_all_that_is_wrong_with_shards_is_told_at_once(remote: tuple[str, Path, Nginx]) -> None:
    url, folder, _ = remote
    content = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(content[:20_000])
    (folder / "00001.tar").write_bytes(b"no tar" * 500)
    (folder / "00004.tar").write_bytes(content)
    with pytest.raises(TableFaultsError) as error:
        Table(f"{url}/{{00000..00002}}.tar", caption="txt").read()
    places = [(fault.file, fault.rule) for fault in error.value.faults]
    assert places == [(f"{url}/0000{shard}.tar", "a whole tar, not compressed") for shard in (0, 1)]
    with pytest.raises(
        TableFaultsError, match=r"00003\.tar: Expected it to be there, but got 'HTTP status 404'\. Put it back"
    ):
        Table(f"{url}/{{00002..00004}}.tar", caption="txt").read()


@needs_nginx
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.jsonl", "t.parquet"])
def test_tables_of_each_format(
    remote: tuple[str, Path, Nginx], folder: Path, name: str, save: Callable[[Path], None]
) -> None:
    url, served, _ = remote
    save(served / name)
    shutil.copy(served / name, folder / name)
    options = {"caption": "caption", "split": "split", "filter": "score > 1"}
    assert_equal(Table(f"{url}/{name}", images=folder, **options).read(), Table(str(folder / name), **options).read())
    with pytest.raises(
        TableFaultsError, match=rf"{name}.*: Expected an image on this machine, as the table is on another"
    ):
        Table(f"{url}/{name}", **options).read()
    with pytest.raises(TableFaultsError, match=rf"^{url}/{name}.*: Expected a column 'capton'"):
        Table(f"{url}/{name}", caption="capton", images=folder).read()


@pytest.fixture
def save() -> Callable[[Path], None]:
    def save(path: Path) -> None:
        import pandas as pd

        frame = pd.DataFrame(
            {
                "image": [f"{letter}.png" for letter in "abcdef"],
                "caption": [f"the letter {letter}" for letter in "abcdef"],
                "split": ["train", "train", "train", "train", "val", "test"],
                "score": range(6),
            }
        )
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        elif path.suffix == ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")

    return save


@needs_nginx
def test_a_local_table_reaches_no_server(remote: tuple[str, Path, Nginx], folder: Path) -> None:
    """What a stranger's table names is looked for on the disk alone, even where images may lie anywhere."""
    url, served, nginx = remote
    address = Table(str(served / "*.tar"), caption="txt").read().images[0].replace(str(served), url)
    assert Member.parse(address) is not None
    before = len(nginx.requests())
    for value in (address, f"{url}/00000.tar", f"{url}/a.png", "s3://bucket/a.png", "hf://datasets/a/b.png"):
        (folder / "t.csv").write_text(f"image,caption\n{value},a cat\n")
        for outside in (False, True):
            with pytest.raises(
                TableFaultsError, match=r"Expected the path of an image on this machine, .* Download it"
            ):
                Table(str(folder / "t.csv"), caption="caption", outside=outside).read()
    write_tar(folder / "evil.tar", {"a.jpg": b"", "a.json": f'{{"image": "{address}", "caption": "x"}}'.encode()})
    rows = Table(str(folder / "evil.tar"), caption="caption").read(required=())
    assert rows.images[0].startswith(str(folder / "evil.tar"))
    assert len(nginx.requests()) == before


@needs_nginx
def test_a_remote_table_names_no_other_server(remote: tuple[str, Path, Nginx], folder: Path) -> None:
    url, served, nginx = remote
    address = Table(f"{url}/*.tar", caption="txt").read().images[0]
    (served / "t.csv").write_text(f"image,caption\n{address},a cat\n")
    before = gets(nginx, ".tar")
    with pytest.raises(TableFaultsError, match="Expected the path of an image on this machine"):
        Table(f"{url}/t.csv", caption="caption", images=folder, outside=True).read()
    assert gets(nginx, ".tar") == before


@needs_nginx
def test_splits_of_their_own_and_copies(remote: tuple[str, Path, Nginx]) -> None:
    url, folder, nginx = remote
    shutil.copy(folder / "00001.tar", folder / "copy.tar")
    split = {"val": f"{url}/00001.tar", "test": f"{url}/copy.tar"}
    rows = Table(f"{url}/00000.tar", caption="txt", split=RandomSplit(**split)).read()
    assert [len(rows.indices(name)) for name in ("train", "val", "test")] == [10, 10, 10]
    before = gets(nginx, ".tar")
    shutil.rmtree(open_store().folder)
    assert find_copies(rows) == []  # pictures are not fetched to be compared
    assert gets(nginx, ".tar") == before
    with pytest.raises(TableFaultsError, match="a file of one split"):
        Table(f"{url}/*0.tar", caption="txt", split=RandomSplit(val=f"{url}/00000.tar")).read()


@needs_nginx
@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_goes_stops_the_training(
    remote: tuple[str, Path, Nginx], on_bad_image: str, workers: int, tiny: str
) -> None:
    url, folder, _ = remote
    table = Table(f"{url}/*.tar", caption="txt", split="split")
    data = ImageTextDataModule(table, tiny, batch_size=8, cache=None, on_bad_image=on_bad_image, num_workers=workers)
    assert len(data.rows) == 25
    (folder / "00001.tar").unlink()
    shutil.rmtree(open_store().folder)
    with pytest.raises(
        TableError, match=rf"Expected {url}/00001\.tar to be fetched whole, but got .*404.* Put it back"
    ):
        list(data.train_dataloader())


def test_a_cut_transfer_ends_in_a_fault_of_the_table(shards: Path) -> None:
    with run_cutter(Cutter((shards / "00000.tar").read_bytes(), cuts=99, after=9_000)) as cutter:
        with pytest.raises(TableFaultsError, match=r"a\.tar: Expected it to be fetched whole, but got '.* after 0 of"):
            Table(f"{cutter.url}/a.tar", caption="txt").read()
        cutter.cuts = 3
        start_again()
        assert len(Table(f"{cutter.url}/a.tar", caption="txt").read(required=())) == 10


@pytest.mark.slow
def test_s3(shards: Path, save: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    save(shards / "t.parquet")
    for letter in "abcdef":
        (shards / f"{letter}.png").write_bytes(b"")
    with run_s3("photos", shards, monkeypatch):
        local = Table(str(shards / "*.tar"), caption="txt").read()
        found = Table("s3://photos/set/*.tar", caption="txt").read()
        assert_equal(local, found)
        assert found.place(0) == "s3://photos/set/00000.tar:000000000"
        assert np.array_equal(open_image(local.images[24]), open_image(found.images[24]))
        options = {"caption": "caption", "split": "split", "images": shards}
        rows = Table("s3://photos/set/t.parquet", **options).read()
        assert_equal(Table(str(shards / "t.parquet"), **options).read(), rows)
        for gone in ("s3://photos/set/gone.tar", "s3://nowhere/gone.tar"):
            with pytest.raises(TableFaultsError, match=rf"{gone}: Expected it to be there, but got '.*'\. Put it back"):
                Table(gone, caption="txt").read()
        with pytest.raises(
            TableFaultsError, match=r"s3://photos/set/\*\.csv: Expected it to match files, but got 'none'"
        ):
            Table("s3://photos/set/*.csv", caption="txt").read()


def test_no_credentials_on_the_screen_or_in_files(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("https://me:hush@127.0.0.1/t.csv", "https://127.0.0.1/t.csv?sig=hush"):
        for command in ("check", "fit"):
            words = [command, "--config", "retrieval_lora", "--model.checkpoint", tiny, "--data.table.path", place]
            assert main(words) == 2
            said = "".join(capsys.readouterr())
            assert "hush" not in said
            assert "to hold no user, password, or signature, but got some (not shown)" in said
    assert not any(b"hush" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_local_tar_is_indexed_once_it_is_settled(shards: Path, cache: Path, count_opens) -> None:
    table = Table(str(shards / "*.tar"), caption="caption", split="split")
    first = table.read()  # just written: its date cannot tell another content from this one yet
    assert not (cache / "shards").exists()
    for path in shards.glob("*.tar"):
        os.utime(path, (time.time() - 10, time.time() - 10))
    assert_equal(first, table.read())
    assert len([*(cache / "shards").iterdir()]) == 3
    opened = count_opens(shards / "00001.tar")
    assert_equal(first, table.read())
    assert opened() == 0
    write_tar(shards / "00001.tar", *(sample(number) for number in range(10, 15)))
    os.utime(shards / "00001.tar", (time.time() - 10, time.time() - 10))
    assert len(table.read()) == 20
    for path in (cache / "shards").iterdir():
        path.write_bytes(path.read_bytes()[:100])  # what a disk has lost
    assert len(table.read()) == 20


def test_an_index_keeps_short_texts_alone(shards: Path, cache: Path) -> None:
    samples = [sample(number) for number in range(6)]
    samples[0]["000000000.txt"] = b"long " * 20_000
    samples[1]["000000001.txt"] = b"caf\xe9"
    samples[2]["000000002.npy"] = bytes(range(256)) * 40
    path = write_tar(shards / "odd.tar", *samples)
    os.utime(path, (time.time() - 10, time.time() - 10))
    found = [Table(str(path), caption="txt").inspect() for _ in range(3)]
    assert found[0].faults == found[1].faults == found[2].faults
    assert [fault.row for fault in found[0].faults] == ["000000001"]
    assert found[2].rows is not None
    assert len(found[2].rows.captions[0]) == 99_999
    (index,) = (cache / "shards").iterdir()
    assert index.stat().st_size < 20_000

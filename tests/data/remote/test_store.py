"""The folder of fetched files: bounded, shared by processes, and never without what is in use."""

import fcntl
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from finetune.core.errors import RecipeError
from finetune.data.remote.locks import remove_unused
from finetune.data.remote.store import LIMIT, Store, open_store
from finetune.data.remote.transfer import RemoteError, Transfer

from .servers import Cutter, Nginx, needs_nginx, run_cutter

SIZE = 100_000


@pytest.fixture
def shards(served: tuple[Nginx, Path], request: pytest.FixtureRequest) -> tuple[str, list[bytes]]:
    """Six files on nginx, their URL with a number left open, and their contents."""
    nginx, root = served
    folder = root / request.node.name
    folder.mkdir()
    contents = [np.random.default_rng(number).bytes(SIZE) for number in range(6)]
    for number, content in enumerate(contents):
        (folder / f"{number}.tar").write_bytes(content)
    return f"{nginx.url}/{folder.name}/{{}}.tar", contents


def names(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in folder.iterdir())


@needs_nginx
def test_a_file_is_fetched_once(shards: tuple[str, list[bytes]], served: tuple[Nginx, Path], tmp_path: Path) -> None:
    url, contents = shards
    before = len(served[0].requests())
    for _ in range(2):  # the second store is that of another process
        store = Store(tmp_path / "store")
        assert store.read(url.format(3), 500, 70) == contents[3][500:570]
        assert store.read(url.format(3), SIZE - 10, 70) == contents[3][-10:]
        with store.open(url.format(3)) as path:
            assert path.read_bytes() == contents[3]
    asked = [line for line in served[0].requests()[before:] if line.startswith("GET")]
    assert [line.partition(" ")[2] for line in asked] == [f"/{url.format(3).split('/', 3)[3]} 206"]
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


@needs_nginx
def test_what_was_used_longest_ago_makes_room(shards: tuple[str, list[bytes]], tmp_path: Path) -> None:
    url, contents = shards
    store = Store(tmp_path / "store", limit=3 * SIZE + 10)
    for number in (0, 1, 2, 0, 3):
        with store.open(url.format(number)) as path:
            assert path.read_bytes() == contents[number]
        time.sleep(0.01)  # so that their dates differ
    assert names(store.folder) == ["0.tar", "2.tar", "3.tar"]
    with pytest.raises(RemoteError, match=r"to fit into what fetched files may take \(10 bytes .* got 100,000 bytes\."):
        Store(tmp_path / "small", limit=10).fetch(url.format(0))
    assert names(tmp_path / "small") == []


@needs_nginx
def test_what_is_in_use_stays(shards: tuple[str, list[bytes]], tmp_path: Path) -> None:
    url, _ = shards
    store = Store(tmp_path / "store", limit=2 * SIZE)
    reader = "import sys, fcntl; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); print(flush=True); input()"
    with store.open(url.format(0)) as path:
        command = [sys.executable, "-c", reader, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # another process's use
        assert other.stdout is not None
        other.stdout.readline()
        with store.open(url.format(1)):
            for number in (2, 3):
                store.fetch(url.format(number))
            assert names(store.folder) == ["0.tar", "1.tar", "3.tar"]  # more than the limit, as two are in use
        other.communicate(b"\n")
    store.fetch(url.format(4))
    kept = names(store.folder)  # of 1 and 3, both used a moment ago, either: the clock of files is coarse
    assert len(kept) == 2
    assert "4.tar" in kept
    assert "0.tar" not in kept


@needs_nginx
def test_a_file_that_was_removed_is_fetched_again(shards: tuple[str, list[bytes]], tmp_path: Path) -> None:
    url, contents = shards
    store = Store(tmp_path / "store")
    store.fetch(url.format(0))
    (path,) = store.folder.iterdir()
    path.unlink()
    assert store.read(url.format(0), 0, SIZE) == contents[0]
    other = Store(tmp_path / "store")
    (path,) = store.folder.iterdir()
    os.truncate(path, 7)  # what a disk has lost
    assert other.read(url.format(0), 0, SIZE) == contents[0]


@needs_nginx
def test_many_at_once_fetch_each_file_once(
    shards: tuple[str, list[bytes]], served: tuple[Nginx, Path], tmp_path: Path
) -> None:
    url, contents = shards
    slow = url.replace(served[0].url, f"{served[0].url}/slow")  # 100 ms each
    before, wrong = len(served[0].requests()), []

    def read(number: int) -> None:
        store = Store(tmp_path / "store")  # of a process of its own: locks are those of open files
        order = [(at + number) % 6 for at in range(6)]
        wrong.extend(at for at in order if store.read(slow.format(at), 0, SIZE) != contents[at])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len([line for line in served[0].requests()[before:] if line.startswith("GET")]) == 6
    assert names(tmp_path / "store") == [f"{number}.tar" for number in range(6)]


@needs_nginx
def test_what_was_fetched_is_in_use_at_once(
    shards: tuple[str, list[bytes]], served: tuple[Nginx, Path], tmp_path: Path
) -> None:
    """No file is removed after it was fetched and before it is read, however often others look for room."""
    folder, is_over = tmp_path / "store", threading.Event()

    def make_room() -> None:
        while not is_over.is_set():
            for path in folder.glob("*.tar"):
                remove_unused(path)

    before, opened = len(served[0].requests()), 60
    remover = threading.Thread(target=make_room)
    remover.start()
    store = Store(folder)
    for number in range(opened):
        assert store.read(shards[0].format(number % 6), 0, 9) == shards[1][number % 6][:9]
    is_over.set()
    remover.join()
    fetched = [line for line in served[0].requests()[before:] if line.startswith("GET")]
    assert len(fetched) <= opened


@needs_nginx
def test_who_waits_for_a_fetch_does_not_wait_for_those_who_read(
    shards: tuple[str, list[bytes]], served: tuple[Nginx, Path], tmp_path: Path
) -> None:
    url, contents = shards
    slow = url.replace(served[0].url, f"{served[0].url}/slow").format(0)
    found = queue.SimpleQueue[bytes]()
    thread = threading.Thread(target=lambda: found.put(Store(tmp_path / "store").read(slow, 0, SIZE)), daemon=True)
    with open_store_slowly(tmp_path / "store", slow, thread):
        assert found.get(timeout=10) == contents[0]


@contextmanager
def open_store_slowly(folder: Path, url: str, meanwhile: threading.Thread) -> Iterator[None]:
    """Fetches a file that another thread waits for, and keeps it in use."""
    starter = threading.Timer(0.03, meanwhile.start)
    starter.start()
    with Store(folder).open(url):
        assert meanwhile.ident is not None, "the transfer was over before anyone waited"
        yield


def test_a_failed_fetch_leaves_nothing(tmp_path: Path, quick: Transfer) -> None:
    store = Store(tmp_path / "store", transfer=quick)
    with run_cutter(Cutter(bytes(SIZE), cuts=99, after=10)) as cutter:
        for _ in range(3):  # each row of a shard would ask
            with pytest.raises(RemoteError, match="to be fetched whole"):
                store.read(f"{cutter.url}/a.tar", 0, 10)
    assert len(cutter.asked) == quick.tries
    assert names(store.folder) == []


def test_what_a_killed_process_began_is_removed(tmp_path: Path, quick: Transfer) -> None:
    store = Store(tmp_path / "store", limit=2 * SIZE, transfer=quick)
    store.folder.mkdir()
    (store.folder / "0-old.tar.part").write_bytes(bytes(SIZE))
    busy = store.folder / "1-new.tar.part"
    busy.write_bytes(bytes(SIZE // 2))
    with run_cutter(Cutter(bytes(SIZE))) as cutter, busy.open("ab") as fetched:
        fcntl.flock(fetched, fcntl.LOCK_EX)
        store.fetch(f"{cutter.url}/a.tar")
    assert names(store.folder) == ["a.tar", "new.tar.part"]


@needs_nginx
def test_a_fork_keeps_no_lock(shards: tuple[str, list[bytes]], served: tuple[Nginx, Path], tmp_path: Path) -> None:
    """A process forked while another thread fetches has the file open too, and must not keep its lock."""
    url, contents = shards
    slow = url.replace(served[0].url, f"{served[0].url}/slow")
    store = Store(tmp_path / "store")
    thread = threading.Thread(target=store.fetch, args=(slow.format(0),))
    thread.start()
    while not [*tmp_path.glob("store/*.part")]:
        time.sleep(0.001)
    if (child := os.fork()) == 0:
        time.sleep(20)
        os._exit(0)
    try:
        thread.join()
        assert Store(tmp_path / "store").read(slow.format(0), 0, SIZE) == contents[0]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_the_limit_is_that_of_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (open_store().folder, open_store().limit) == (cache / "remote", None)
    for text, limit in (("2.5 GB", 2_500_000_000), ("70m", 70_000_000), ("1000", 1000)):
        monkeypatch.setenv(LIMIT, text)
        assert open_store().limit == limit
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(
        RecipeError, match=r"Expected \$ALIGN_FINETUNE_REMOTE_LIMIT to be a size such as 200GB, but got 'much'"
    ):
        open_store()

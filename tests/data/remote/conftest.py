"""A folder of shards on nginx, and a cache of each test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.data.remote import store
from finetune.data.remote.store import Store
from finetune.data.remote.transfer import Transfer

from .servers import Nginx, run_nginx


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nginx, Path]]:
    """nginx, and the folder that it serves, in which each test has a folder of its own."""
    folder = tmp_path_factory.mktemp("nginx")
    root = folder / "root"
    root.mkdir()
    with run_nginx(root, folder / "state") as nginx:
        yield nginx, root


@pytest.fixture
def quick() -> Transfer:
    """Asks as often as usual, with pauses too short to wait for."""
    return Transfer(pause=0.001)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: Transfer) -> Path:
    """A cache of its own for all that reads tables and pictures here."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(folder))
    store._open_store.cache_clear()
    own: Store = store.open_store()
    own.transfer = quick
    return folder

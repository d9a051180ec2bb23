"""Where the folder lies that the runs of a machine share."""

from pathlib import Path

import pytest

from finetune.core.cache import cache_folder


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ALIGN_FINETUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "align-finetune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "align-finetune"
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"

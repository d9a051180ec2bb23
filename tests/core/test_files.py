"""Files and folders that are whole or absent, and fingerprints."""

import hashlib
import json
import os
import stat

import pytest
import torch

from finetune.core.files import (
    fingerprint_file,
    fingerprint_tensors,
    read_json,
    require_own,
    write_folder,
    write_json,
    write_text,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_whole_with_ordinary_modes(tmp_path):
    target = tmp_path / "deep" / "folder"
    mask = os.umask(0o022)
    try:
        with write_folder(target) as staging:
            (staging / "file").write_text("x")
            (staging / "file").chmod(0o600)
            assert not target.exists()
    finally:
        os.umask(mask)
    assert (target / "file").read_text() == "x"
    assert stat.S_IMODE((target / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert names(target.parent) == ["folder"]


def test_failure_leaves_nothing_or_the_former_folder(tmp_path):
    target = tmp_path / "folder"
    with pytest.raises(RuntimeError), write_folder(target) as staging:
        (staging / "file").touch()
        raise RuntimeError
    assert not names(tmp_path)
    target.mkdir()
    (target / "former").touch()
    with pytest.raises(RuntimeError), write_folder(target, overwrite=True):
        raise RuntimeError
    assert names(tmp_path) == ["folder"]
    assert names(target) == ["former"]


def test_existing_folder_is_replaced_only_when_asked(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "former").touch()
    with pytest.raises(FileExistsError, match="Remove it or pass --overwrite"), write_folder(target):
        pass
    with write_folder(target, overwrite=True) as staging:
        (staging / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_a_command_replaces_only_what_it_wrote(tmp_path):
    target = tmp_path / "folder"
    require_own(target, lambda _: False)
    target.mkdir()
    require_own(target, lambda _: False)
    (target / "table.csv").touch()
    require_own(target, lambda found: found == {"table.csv"})
    message = f"Expected {target} to be absent, empty or written by this command, but it holds something else"
    with pytest.raises(FileExistsError, match=message):
        require_own(target, lambda found: found == {"table.csv", "images"})
    with pytest.raises(FileExistsError, match="Name another folder with --output"):
        require_own(target / "table.csv", lambda _: True)


def test_text_and_json_are_replaced_at_once(tmp_path):
    path = tmp_path / "a" / "file.json"
    write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_json(path, {"ä": [1.5]})
    assert read_json(path) == json.loads(path.read_text(encoding="utf-8")) == {"ä": [1.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == {"ä": [1.5]}
    assert names(path.parent) == ["file.json"]


def test_fingerprint_of_a_file_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert fingerprint_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_fingerprint_of_tensors_is_sha256_of_what_they_are():
    tensors = {"b": torch.ones(2, 2, dtype=torch.float16), "a": torch.arange(3.0), "t": torch.tensor(0.5)}
    dtypes = {torch.float16: "F16", torch.float32: "F32"}
    held = [(name, dtypes[it.dtype], it.shape, memoryview(it.numpy()).cast("B")) for name, it in tensors.items()]
    lines = [f"{name} {dtypes[tensors[name].dtype]} {[*tensors[name].shape]}\n".encode() for name in ("a", "b", "t")]
    content = b"".join(line + tensors[name].numpy().tobytes() for line, name in zip(lines, "abt", strict=True))
    assert fingerprint_tensors(held) == hashlib.sha256(content).hexdigest()

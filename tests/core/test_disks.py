"""Real disks that are full, read-only, or not the one that `$TMPDIR` is on."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from finetune.commands.cli import main
from finetune.core.door import run_command
from finetune.core.files import refuse_existing, write_bytes, write_file, write_folder
from finetune.export.artifacts import verify

ROOM = 256 * 1024
FILES = 16
MEMORY = Path("/dev/shm")


def mount(*words: object) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own, with room for little and few."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", f"size={ROOM},nr_inodes={FILES}", "tmpfs", folder):
        pytest.skip("no right to mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


class Case(NamedTuple):
    """A write.

    Attributes:
        name: What is written.
        write: Writes it, with so many bytes.
    """

    name: str
    write: Callable[[Path, int], None]


def write_stream(target: Path, size: int) -> None:
    with write_file(target) as file:
        torch.save(torch.zeros(size // 4), file)


def write_weights(target: Path, size: int) -> None:
    with write_folder(target, overwrite=True) as folder:
        save_file({"weight": torch.zeros(size // 4)}, folder / "model.safetensors")


def write_rows(target: Path, size: int) -> None:
    with write_folder(target, overwrite=True) as folder, (folder / "table.csv").open("wb") as file:
        file.write(bytes(size))


CASES = (
    Case("file", lambda target, size: write_bytes(target, bytes(size))),
    Case("stream", write_stream),
    Case("weights", write_weights),
    Case("rows", write_rows),
)
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(command: Callable[[], None], capsys) -> str:
    assert run_command(command) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    return found


@each_case
def test_a_full_disk_is_named_and_what_was_there_before_still_is(case, disk, capsys):
    target = disk / case.name
    case.write(target, 100)
    before = content(disk)
    line = refuse(lambda: case.write(target, 2 * ROOM), capsys)
    assert line.startswith(f"error: Expected room to write {target}, but got: No space left on device. Free some")
    assert content(disk) == before
    assert list(disk.iterdir()) == [target]
    case.write(target, ROOM // 3)
    assert sum(map(len, content(disk).values())) >= ROOM // 3


@each_case
def test_a_disk_with_too_many_files_is_named_and_what_was_there_before_still_is(case, disk, capsys):
    target = disk / case.name
    case.write(target, 100)
    for number in range(FILES - len(list(disk.rglob("*"))) - 1):
        (disk / str(number)).touch()
    before = content(disk)
    line = refuse(lambda: case.write(target, 100), capsys)
    assert f"but got: {os.strerror(errno.ENOSPC)}. Free some space there" in line
    assert str(disk) in line
    assert content(disk) == before


@each_case
def test_a_read_only_disk_is_named_and_what_was_there_before_still_is(case, disk, capsys):
    target = disk / case.name
    case.write(target, 100)
    before = content(disk)
    assert mount("-o", "remount,ro", disk)
    line = refuse(lambda: case.write(target, 200), capsys)
    assert line == (
        f"error: Expected {disk} to be accessible, but got: Read-only file system. Change its permissions, or name "
        "another place.\n"
    )
    assert content(disk) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_mount_is_refused_before_anything_is_written(disk, overwrite):
    (disk / "mine").touch()
    message = f"Expected {disk} to be replaceable, but a disk is mounted there. Name a folder in it."
    with pytest.raises(FileExistsError, match=message):
        refuse_existing(disk, overwrite)
    with pytest.raises(FileExistsError, match=message), write_folder(disk, overwrite):
        pytest.fail("the block was entered")
    assert [path.name for path in disk.iterdir()] == ["mine"]


def test_a_folder_of_an_image_is_refused_and_stays(disk):
    """Of a container's image, whose layers are those of an overlay."""
    lower, upper, work, seen = (disk / name for name in ("lower", "upper", "work", "seen"))
    for folder in (lower / "data", upper, work, seen):
        folder.mkdir(parents=True)
    (lower / "data" / "former").touch()
    if not mount("-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", seen):
        pytest.skip("no overlays")
    try:
        message = "seen/data to be a folder that another can replace, but it is a mount or part of a container's image."
        with pytest.raises(FileExistsError, match=message):
            write_weights(seen / "data", 100)
        assert content(seen) == {"data/former": b""}
        write_weights(seen / "own", 100)
        write_weights(seen / "own", 200)
        assert set(content(seen)) == {"data/former", "own/model.safetensors"}
    finally:
        subprocess.run(["umount", seen], check=True)


def test_a_command_that_fills_the_disk_ends_with_one_line(disk, capsys):
    capsys.readouterr()
    assert main(["prepare", "digits", "--output", str(disk / "digits")]) == 2
    line = f"error: Expected room to write {disk}/digits, but got: No space left on device. Free some space there, or"
    assert capsys.readouterr().err.startswith(line)
    assert list(disk.iterdir()) == []


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Iterator[Path]:
    """`$TMPDIR` on another disk."""
    if not MEMORY.is_dir() or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other disk")
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        use_tmpdir(monkeypatch, Path(name))
        yield Path(name)


def use_tmpdir(monkeypatch, folder: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)


@each_case
def test_a_write_goes_past_tmpdir(case, elsewhere, tmp_path):
    before = elsewhere.stat().st_mtime_ns
    case.write(tmp_path / case.name, 100)
    assert (tmp_path / case.name).exists()
    assert elsewhere.stat().st_mtime_ns == before  # no name came or went


@each_case
def test_a_write_needs_no_tmpdir(case, tmp_path, monkeypatch):
    use_tmpdir(monkeypatch, tmp_path / "absent")
    case.write(tmp_path / case.name, 100)
    assert [path.name for path in tmp_path.iterdir()] == [case.name]


def test_a_command_goes_past_tmpdir(elsewhere, tmp_path, monkeypatch):
    use_tmpdir(monkeypatch, tmp_path)
    before = tmp_path.stat().st_mtime_ns
    words = [sys.executable, "-m", "finetune", "prepare", "digits", "--output", elsewhere / "digits"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((elsewhere / "digits").rglob("*.png"))) == 1797
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["another disk", "absent"])
def test_an_export_works_wherever_tmpdir_is(kind, elsewhere, two_towers, tmp_path, monkeypatch):
    if kind == "absent":
        use_tmpdir(monkeypatch, tmp_path / "absent")
    assert main(["export", str(two_towers.path), "--output", str(tmp_path / "exported")]) == 0
    verify(tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert list(elsewhere.iterdir()) == []

"""Parts are embedded once, by whoever comes, and the whole is that of an undisturbed process."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.core.errors import RecipeError, TableError
from finetune.inference.checkpoint import find_checkpoint
from finetune.inference.claims import claim
from finetune.inference.embed_parts import PartFiles
from finetune.inference.embedder import ImageEmbedder, Storage
from finetune.inference.list_parts import list_images
from finetune.inference.outputs import open_output
from finetune.inference.vector_files import FORMATS
from finetune.inference.vector_folder import VectorFolder, read_vectors
from finetune.inference.write_vectors import Written, share_machine, write_vectors

from ..data.shards import sample, write_tar

Write = Callable[..., Written]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten pictures of noise, one of them damaged."""
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(10):
        Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def embedder(tiny) -> ImageEmbedder:
    return ImageEmbedder(*find_checkpoint(tiny), torch.device("cpu"))


@pytest.fixture
def write(embedder, photos) -> Write:
    """Embeds pictures in parts of three rows, as the command does."""

    def run(place: Path, overwrite: bool = False, kind: str | None = None, named=(str(photos),), by=embedder):
        return write_vectors(by, list_images(named, rows=3).parts, named, open_output(place, overwrite, kind))

    return run


def expect(embedder, photos) -> np.ndarray:
    paths = [str(photos / f"{number}.png") for number in range(10) if number != 4]
    return embedder.embed(paths, lambda _: None).vectors


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_holds_all_parts(write, embedder, photos, tmp_path, kind):
    place = tmp_path / f"vectors{kind.suffix}"
    facts, tally = write(place)
    assert (tally.parts, tally.rows, tally.found) == (4, 9, 0)
    found = read_vectors(place)
    assert found.facts == facts
    assert found.ids == [f"{number}.png" for number in range(10) if number != 4]
    assert found.values == [str(photos / name) for name in found.ids]
    assert found.facts.skipped == ((str(photos / "4.png"), "its content is of none of these formats"),)
    assert found.facts.source == (str(photos),)
    np.testing.assert_allclose(found.vectors, expect(embedder, photos), atol=1e-6)
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"photos", "vectors"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_keeps_a_file_of_each_part(write, embedder, photos, tmp_path, kind):
    place = tmp_path / "vectors"
    write(place, kind=kind.suffix.removeprefix("."))
    files = [kind(place / f"photos-0000{number}{kind.suffix}") for number in range(4)]
    assert sorted(place.iterdir()) == sorted([place / "index.json", *(path for file in files for path in file.files)])
    assert [file.read_facts().rows for file in files] == [3, 2, 3, 1]
    np.testing.assert_allclose(read_vectors(place).vectors, expect(embedder, photos), atol=1e-6)


def test_what_is_whole_is_not_made_again(write, tmp_path):
    for place in (tmp_path / "vectors.parquet", tmp_path / "vectors"):
        write(place)
        before = place.stat().st_mtime_ns
        facts, tally = write(place)
        assert (tally.parts, tally.found) == (0, 4)
        assert facts.rows == 9
        assert place.stat().st_mtime_ns == before


def test_only_parts_that_changed_are_made_again(write, photos, tmp_path):
    place = tmp_path / "vectors"
    write(place)
    Image.new("RGB", (9, 9), "red").save(photos / "4.png")
    Image.new("RGB", (9, 9), "red").save(photos / "a.png")
    (place / "photos-00000.parquet").unlink()
    (place / "photos-00002.parquet").write_bytes(b"PAR1, and no more")
    facts, tally = write(place)
    assert (tally.parts, tally.found, facts.rows) == (4, 0, 11)
    assert write(place).tally.found == 4
    Image.new("RGB", (9, 9), "red").save(photos / "9.png")
    facts, tally = write(place)
    assert (tally.parts, tally.found, facts.rows) == (1, 3, 11)


def test_a_file_of_something_else_is_replaced_only_when_told_to(write, photos, tmp_path):
    place = tmp_path / "vectors.npy"
    write(place)
    Image.new("RGB", (9, 9), "red").save(photos / "4.png")
    with pytest.raises(FileExistsError, match="Remove it or pass --overwrite"):
        write(place)
    assert read_vectors(place).facts.rows == 9
    assert write(place, overwrite=True).facts.rows == 10
    assert read_vectors(place).facts.rows == 10


def test_another_model_starts_anew(write, tmp_path, tiny):
    place = tmp_path / "vectors"
    write(place)
    raw = ImageEmbedder(*find_checkpoint(tiny), torch.device("cpu"), Storage(normalised=False))
    with pytest.raises(FileExistsError, match="got normalised True there and False here"):
        write(place, by=raw)
    assert write(place, overwrite=True, by=raw).tally.parts == 4
    assert not read_vectors(place).facts.space.normalised


def test_parts_of_a_stopped_file_that_changed_since_are_made_again(write, embedder, photos, tmp_path):
    """As a killed process leaves them: two parts, one of which is of another picture, and a file half written."""
    place, parts = tmp_path / "vectors.parquet", tmp_path / "vectors.parquet.parts"
    listed = list_images([str(photos)], rows=3).parts
    files = PartFiles(parts, FORMATS[0], embedder, [str(photos)])
    VectorFolder(parts).begin(embedder.space, [], [], overwrite=True)
    for part in listed[:2]:
        files.write(part, part.read(), lambda _: None)
    (parts / ".photos-00002.parquet.a1b2c3d4").write_bytes(b"half")
    (parts / ".photos-00002.claim").touch()
    Image.new("RGB", (9, 9), "red").save(photos / "0.png")
    facts, tally = write(place)
    assert (tally.parts, tally.found, facts.rows) == (3, 1, 9)
    np.testing.assert_allclose(read_vectors(place).vectors, expect(embedder, photos), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "vectors.parquet"]


def test_a_part_that_another_process_holds_is_waited_for(write, embedder, photos, tmp_path):
    """It is done here once the other has let go, as it does when it dies."""
    place, done = tmp_path / "vectors", []
    place.mkdir()
    with claim(place / ".photos-00001.claim") as held:
        assert held is not None
        thread = threading.Thread(target=lambda: done.append(write(place)))
        thread.start()
        while not (place / "photos-00003.parquet").exists():
            thread.join(0.01)
        thread.join(0.2)
        assert thread.is_alive()
        assert not (place / "photos-00001.parquet").exists()
    thread.join(60)
    assert done[0].tally.parts == 4
    np.testing.assert_allclose(read_vectors(place).vectors, expect(embedder, photos), atol=1e-6)


def test_a_shard_that_is_broken_stops_only_itself(write, tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", *(sample(10 * number + at) for at in range(2)))
    broken = tmp_path / "1.tar"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:1000])
    place, named = tmp_path / "vectors", (str(tmp_path / "*.tar"),)
    with pytest.raises(TableError, match=r"1\.tar: Expected a whole tar.* 1 part of what is embedded cannot be read"):
        write(place, named=named)
    assert sorted(path.name for path in place.iterdir()) == ["0.parquet", "2.parquet", "index.json"]
    broken.write_bytes(whole)
    facts, tally = write(place, named=named)
    assert (tally.parts, tally.found, facts.rows) == (1, 2, 6)
    assert read_vectors(place).ids[2:4] == ["000010000", "000010001"]


def test_where_nothing_can_be_read_there_is_no_output(write, photos, tmp_path):
    for number in range(10):
        (photos / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(TableError, match=r"but 10 rows were left out, the first as .*0\.png is: its content is of"):
        write(tmp_path / "vectors.parquet")
    assert list(tmp_path.iterdir()) == [photos]


def test_outputs_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"to end in one of \.parquet, \.npy, \.safetensors, or to name a folder"):
        open_output(tmp_path / "vectors.parqet")
    with pytest.raises(RecipeError, match="Expected --format for a folder only"):
        open_output(tmp_path / "vectors.npy", kind="npy")
    with pytest.raises(RecipeError, match=r"in a folder that exists, but got .*absent/vectors\.npy\. Make "):
        open_output(tmp_path / "absent" / "vectors.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(RecipeError, match=r"folder\.npy\. Name a file in it"):
        open_output(tmp_path / "folder.npy")


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0))
    try:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
        monkeypatch.setenv("WORLD_SIZE", str(cores + 1))
        assert share_machine("cpu") == torch.device("cpu")
        assert torch.get_num_threads() == 1
        monkeypatch.delenv("WORLD_SIZE")
        torch.set_num_threads(threads)
        share_machine("cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(RecipeError, match="Expected --device to be one of this machine, but got 'abacus'"):
        share_machine("abacus")

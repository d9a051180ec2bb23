"""Vectors come back from every format as they were written, and each format is read by others' readers too."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from finetune.core.errors import FileError
from finetune.inference import vector_files
from finetune.inference.vector_files import FORMATS, KEY, NumpyFile, ParquetFile, SafetensorsFile
from finetune.inference.vector_folder import VectorFolder, read_vectors
from finetune.inference.vectors import FORMAT, VERSION, Facts, Piece, Skipped, Space

IDS = ["1.png", 'a, "b"\n\r.png', "Käse/ 🧀.png", "=1+1", "", "NA", "7"]
VALUES = [f"/images/{name}" for name in IDS]


def space(tower: str = "image", dtype: str = "float32") -> Space:
    return Space("align-mini", "ab" * 32, {"size": [96, 96], "black": [-1.0] * 3}, tower, "cd" * 32, True, 5, dtype)


def facts(rows: int = 7, **settings: str) -> Facts:
    return Facts(space(**settings), ("photos", "more.csv"), rows, "cd" * 32, (Skipped("x.png", "an empty file"),))


def pieces(dtype: str = "float32") -> tuple[np.ndarray, Iterator[Piece]]:
    vectors = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)
    cuts = ((0, 3), (3, 3), (3, 7))
    return vectors, (Piece(IDS[start:end], VALUES[start:end], vectors[start:end]) for start, end in cuts)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_is_read(kind, dtype, tmp_path, monkeypatch):
    """Also where a file is read in several pieces."""
    vectors, parts = pieces(dtype)
    file = kind(tmp_path / f"vectors{kind.suffix}")
    file.write(facts(dtype=dtype), parts)
    assert sorted(tmp_path.iterdir()) == sorted(file.files)
    for rows in (vector_files.ROWS, 2):
        monkeypatch.setattr(vector_files, "ROWS", rows)
        found = read_vectors(str(file.place))
        assert found.facts == facts(dtype=dtype)
        assert (found.ids, found.values) == (IDS, VALUES)
        assert found.vectors.dtype == vectors.dtype
        np.testing.assert_array_equal(found.vectors, vectors)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_rows_are_a_file_too(kind, tmp_path):
    file = kind(tmp_path / f"vectors{kind.suffix}")
    file.write(facts(rows=0), [])
    found = read_vectors(file.place)
    assert found.vectors.shape == (0, 5)
    assert found.facts == facts(rows=0)


def test_others_read_parquet(tmp_path):
    vectors, parts = pieces()
    ParquetFile(tmp_path / "a.parquet").write(facts(tower="text"), parts)
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert list(frame.columns) == ["id", "text", "vector"]
    assert frame["id"].tolist() == IDS
    np.testing.assert_array_equal(np.stack(frame["vector"].tolist()), vectors)
    told = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[KEY.encode()])
    assert (told["format"], told["version"], told["fingerprint"]) == (FORMAT, VERSION, "ab" * 32)


def test_others_read_numpy(tmp_path):
    vectors, parts = pieces("float16")
    NumpyFile(tmp_path / "a.npy").write(facts(dtype="float16"), parts)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), vectors)
    frame = pd.read_json(tmp_path / "a.npy.jsonl", lines=True, dtype=False)
    assert frame["id"].tolist() == IDS
    assert frame["path"].tolist() == VALUES
    assert json.loads((tmp_path / "a.npy.json").read_text())["normalised"] is True


def test_others_read_safetensors(tmp_path):
    vectors, parts = pieces("float16")
    SafetensorsFile(tmp_path / "a.safetensors").write(facts(dtype="float16"), parts)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        np.testing.assert_array_equal(file.get_tensor("vectors").numpy(), vectors)
        offsets, content = file.get_tensor("path.offsets").tolist(), file.get_tensor("path.bytes").numpy().tobytes()
        assert [content[start:end].decode() for start, end in pairwise(offsets)] == VALUES
        assert json.loads(file.metadata()[KEY])["rows"] == 7


@pytest.mark.parametrize("kind", FORMATS)
def test_a_write_that_fails_leaves_no_file(kind, tmp_path):
    def broken() -> Iterator[Piece]:
        yield next(pieces()[1])
        raise RuntimeError("no more")

    file = kind(tmp_path / f"vectors{kind.suffix}")
    with pytest.raises(RuntimeError, match="no more"):
        file.write(facts(), broken())
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_of_vectors_is_refused(tmp_path):
    pd.DataFrame({"id": [1]}).to_parquet(tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"a\.parquet to be vectors as `finetune embed` writes them, but got: no facts"):
        read_vectors(tmp_path / "a.parquet")
    with pytest.raises(FileNotFoundError, match=r"a\.npy\.json"):
        read_vectors(tmp_path / "a.npy")
    with pytest.raises(FileError, match=r"a\.safetensors to be vectors"):
        read_vectors(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet"):
        read_vectors(tmp_path / "absent.parquet")
    with pytest.raises(FileError, match=r"a\.csv to be a \.parquet, \.npy or \.safetensors file"):
        read_vectors(tmp_path / "a.csv")
    with pytest.raises(FileError, match="folder to be a file or folder that `finetune embed` wrote"):
        read_vectors(tmp_path / "folder")


def test_another_version_is_refused():
    told = json.loads(facts().as_json())
    with pytest.raises(ValueError, match="version 3, where this toolkit reads version 2"):
        Facts.of_json(json.dumps(told | {"version": 3}))
    del told["tower"]
    with pytest.raises(ValueError, match=r"incomplete facts .*'tower'"):
        Facts.of_json(json.dumps(told))


def write_folder(place: Path, names: tuple[str, ...] = ("a", "b"), **settings: str) -> list[ParquetFile]:
    """A folder with the same seven rows in each file."""
    files = [ParquetFile(place / f"{name}.parquet") for name in names]
    VectorFolder(place).begin(space(**settings), ["photos"], files, overwrite=True)
    for file in files:
        file.write(facts(**settings), pieces()[1])
    VectorFolder(place).end(facts(rows=7 * len(files), **settings), files)
    return files


def test_a_folder_is_read_as_one(tmp_path):
    write_folder(tmp_path / "folder")
    found = read_vectors(tmp_path / "folder")
    assert found.ids == IDS * 2
    np.testing.assert_array_equal(found.vectors, np.concatenate([pieces()[0]] * 2))


def test_an_unfinished_folder_is_not_read(tmp_path):
    files = write_folder(tmp_path / "folder")
    VectorFolder(tmp_path / "folder").begin(space(), ["photos"], files, overwrite=False)
    with pytest.raises(FileError, match="some are still to be made. Run `finetune embed` again with the same words"):
        read_vectors(tmp_path / "folder")


def test_a_folder_of_something_else_is_kept(tmp_path):
    folder = VectorFolder(tmp_path / "folder")
    files = write_folder(folder.place)
    with pytest.raises(FileExistsError, match="got tower 'image' there and 'text' here. Name another folder, or pass"):
        folder.begin(space(tower="text"), ["photos"], files, overwrite=False)
    with pytest.raises(FileExistsError, match=r"got b\.parquet, which is of something else\. Name another folder"):
        folder.begin(space(), ["photos"], files[:1], overwrite=False)
    assert read_vectors(folder.place).ids == IDS * 2
    folder.begin(space(), ["photos"], files[:1], overwrite=True)
    assert files[1].place.exists()  # until there is another index
    folder.end(facts(), files[:1])
    assert sorted(path.name for path in folder.place.iterdir()) == ["a.parquet", "index.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    with pytest.raises(FileExistsError, match="to be absent, empty or written by this command"):
        VectorFolder(tmp_path / "mine").begin(space(), ["photos"], files, overwrite=True)

"""Rows of large tables, kept in a mapped file: equal to those that were read, and never taken for others."""

import multiprocessing
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.data.checks import limits, many_texts
from finetune.data.table import cells, disk_scratch, kept, stored, text_files
from finetune.data.table.faults import TableFaultsError
from finetune.data.table.kept import IMAGES, ROWS
from finetune.data.table.label_sets import LabelSets
from finetune.data.table.mapped import MappedArray, MappedStrings
from finetune.data.table.rows import Rows
from finetune.data.table.splits import SPLITS, RandomSplit
from finetune.data.table.table import CaptionList, Table

from ..shards import sample, write_tar
from ..tables import to_json_lines

COUNT = 60


@pytest.fixture(autouse=True)
def keep_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps small tables too, in a folder of the test's own."""
    monkeypatch.setattr(kept, "KEPT_FROM", 0)
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    (tmp_path / "images").mkdir()
    for number in range(20):
        (tmp_path / "images" / f"{number}.png").write_bytes(bytes([number]))
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "image": [f"images/{number % 20}.png" for number in range(COUNT)],
            "id": [str(number // 2) for number in range(COUNT)],
            "caption": [f"a {number % 7} 🐈\n" for number in range(COUNT)],
            "other": ["" if number % 3 else f"other {number}" for number in range(COUNT)],
            "list": [f'["one {number}", "two"]' for number in range(COUNT)],
            "label": generator.choice(["cat", "dog", "10", "9"], COUNT),
            "labels": generator.choice(["cat|dog", "dog", "", "cow|cat|dog"], COUNT),
            "split": [SPLITS[max(0, number % 6 - 3)] for number in range(COUNT)],
            "weight": generator.choice(["0.5", "1", "2"], COUNT),
            "score": [str(number) for number in range(COUNT)],
        }
    )


@pytest.fixture
def path(frame: pd.DataFrame, tmp_path: Path) -> Path:
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def places() -> list[Path]:
    return sorted(Path(os.environ["ALIGN_FINETUNE_CACHE"]).glob("tables/*"))


def read(table: Table) -> Rows:
    """The rows as the first start reads them, before they are kept."""
    rows = table._read().rows
    assert rows is not None
    return rows


def check_equal(one: Rows, other: Rows) -> None:
    for field in fields(Rows):
        if field.name not in ("kept", "order", "label_sets"):
            before, after = getattr(one, field.name), getattr(other, field.name)
            assert type(before) is type(after) or isinstance(after, MappedArray | MappedStrings)
            assert np.array_equal(before, np.asarray(after)) if hasattr(before, "dtype") else before == after
            assert getattr(before, "dtype", None) == getattr(after, "dtype", None)
    assert _pack(one.label_sets) == _pack(other.label_sets)
    for split in SPLITS:
        assert one.indices(split).tolist() == other.indices(split).tolist()
        assert one.count_images(split) == other.count_images(split)
        assert one.count_labels(split).tolist() == other.count_labels(split).tolist()
    for before, after in zip(one.group("train"), other.group("train"), strict=True):
        assert (before is None and after is None) or np.array_equal(before, after)
    assert [one.place(row) for row in range(len(one))] == [other.place(row) for row in range(len(other))]
    assert one.names(3, 9) == other.names(3, 9) == [other.name(row) for row in range(3, 9)]
    assert [one.labels_of(row).tolist() for row in range(9)] == [other.labels_of(row).tolist() for row in range(9)]
    assert all(np.array_equal(*pair) for pair in zip(one.labelled(), other.labelled(), strict=True))


def _pack(sets: LabelSets | None) -> object:
    return sets and (sets.label_ids.tolist(), sets.starts.tolist(), sets.separator)


@pytest.mark.parametrize(
    "settings",
    [
        {"caption": "caption"},
        {"caption": "caption", "image_id": "id"},
        {"caption": ("caption", "other")},
        {"caption": CaptionList("list"), "split": "split"},
        {"caption": "caption", "label": "label", "weight": "weight"},
        {"label": "label", "split": "split"},
        {"label": "labels", "label_separator": "|", "image_id": "image"},
        {"label": "label", "names": "names.csv", "split": RandomSplit(val=0.3, test=0.2, seed=1)},
        {"caption": "caption", "filter": "score > 10 and label != 'dog'"},
        {"caption": "caption", "limit_rows": 12},
        {"caption": "caption", "split": RandomSplit(val="t.csv.val", test=0.2)},
    ],
    ids=str,
)
def test_what_is_opened_is_what_was_read(
    path: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    Path("names.csv").write_text("cat,Cat\ndog,Dog\n10,Ten\n9,Nine\n")
    shutil.copy(path, "t.csv.val")
    table = Table("t.csv", **settings)  # type: ignore[arg-type]
    expected = read(table)
    for rows in (table.read(required=()), table.read(required=()), table.inspect().rows):
        assert rows is not None
        assert rows.kept is not None
        check_equal(expected, rows)
    assert len(places()) == 1


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets few rows, and few bytes, be read at a time."""
    for module in (cells, disk_scratch, stored, many_texts, limits):
        monkeypatch.setattr(module, "PART", 7)
    monkeypatch.setattr(cells, "CHUNK", 5)
    monkeypatch.setattr(text_files, "PIECE", 64)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize(
    "settings",
    [
        {"caption": ("caption", "other"), "image_id": "id", "split": "split", "weight": "weight"},
        {"caption": CaptionList("list"), "label": "label", "filter": "score > 10 and label != 'dog'"},
        {"label": "labels", "label_separator": "|", "limit_rows": 40},
    ],
    ids=str,
)
def test_parts_do_not_show(
    frame: pd.DataFrame, tmp_path: Path, name: str, settings: dict[str, object], request: pytest.FixtureRequest
) -> None:
    """The rows, and what is wrong with them, however few are read at a time."""
    frame.loc[len(frame)] = {**frame.loc[3], "caption": 'in\r\ntwo lines, "quoted"', "score": "70"}
    wrong = frame.copy()
    for at, column in enumerate(["image", "caption", "other", "list", "label", "labels", "split", "weight", "score"]):
        wrong.loc[at * 5 : at * 5 + 1, column] = ["x", ""]
    tables = []
    for at, rows in enumerate((frame, wrong)):
        path = tmp_path / f"{at}{name}"
        if name == "t.jsonl":
            to_json_lines(rows, path)
        else:
            rows.to_parquet(path) if name == "t.parquet" else rows.to_csv(path, index=False)
        tables.append(Table(str(path), **settings))  # type: ignore[arg-type]
    expected, faulty = read(tables[0]), tables[1].inspect()
    assert faulty.faults
    request.getfixturevalue("small_parts")
    check_equal(expected, read(tables[0]))
    check_equal(expected, tables[0].read(required=()))
    again = tables[1].inspect()
    assert again.faults == faulty.faults
    assert (again.rows is None) == (faulty.rows is None)
    if faulty.rows is not None and again.rows is not None:
        check_equal(faulty.rows, again.rows)
        assert pickle.loads(pickle.dumps(again.rows)).captions.tolist() == faulty.rows.captions.tolist()
    assert not [*tmp_path.glob("cache/tables/*/reading")]


@pytest.mark.usefixtures("small_parts")
def test_a_large_table_is_not_held_in_memory(path: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "PIECE", 100_000)
    texts = [f"{row} " + "long caption " * 1000 for row in range(len(frame))]
    pd.concat([frame.assign(caption=texts)] * 10).to_csv(path, index=False)
    assert path.stat().st_size > 7e6
    tracemalloc.start()
    rows = Table(str(path), caption="caption", split="split").read()
    assert tracemalloc.get_traced_memory()[1] < 3e6
    tracemalloc.stop()
    assert rows.captions[-1] == texts[-1].strip()


@pytest.mark.parametrize("name", ["t.tsv", "t.csv.gz", "t.jsonl", "t.parquet", "*.tar"])
def test_every_format_is_kept(frame: pd.DataFrame, tmp_path: Path, name: str) -> None:
    write: dict[str, Callable[[Path], object]] = {
        "t.tsv": lambda path: frame.to_csv(path, sep="\t", index=False),
        "t.csv.gz": lambda path: frame.to_csv(path, index=False),
        "t.jsonl": lambda path: to_json_lines(frame, path),
        "t.parquet": lambda path: frame.to_parquet(path),
        "*.tar": lambda path: write_tar(path.with_name("0.tar"), *map(sample, range(10))),
    }
    write[name](tmp_path / name)
    table = Table(str(tmp_path / name), caption="txt" if name == "*.tar" else "caption")
    expected = read(table)
    table.read(required=())
    rows = table.read(required=())
    assert rows.kept is not None
    check_equal(expected, rows)


def test_a_second_start_reads_no_row_and_a_change_of_anything_reads_all(path: Path) -> None:
    table = Table(str(path), caption="caption", split="split")
    first = table.read()
    assert table.read().captions._place == first.captions._place  # type: ignore[attr-defined]
    assert len(places()) == 1
    Table(str(path), caption="other", split="split").inspect()  # has faults: nothing is kept
    assert len([*path.parent.glob(f"cache/tables/*/{ROWS}")]) == 1
    Table(str(path), caption="caption", weight="weight", split="split").read()
    assert len([*path.parent.glob(f"cache/tables/*/{ROWS}")]) == 2
    path.write_text(path.read_text().replace("a 3", "a 4"))
    assert "a 3 🐈" not in table.read().captions.tolist()
    assert len([*path.parent.glob(f"cache/tables/*/{ROWS}")]) == 3


@pytest.mark.parametrize("damage", ["half", "one byte", "foreign", "no seal", "no images"])
def test_a_damaged_file_is_written_anew(path: Path, damage: str) -> None:
    table = Table(str(path), caption="caption", split="split")
    expected = read(table)
    table.read()
    file = places()[0] / ROWS
    content = file.read_bytes()
    changed = {
        "half": content[: len(content) // 2],
        "one byte": content.replace(b"a 3", b"a 4", 1),
        "foreign": b"not Arrow",
    }
    file.write_bytes(changed.get(damage, content))
    if damage == "no seal":
        file.with_name(f"{ROWS}.sha256").unlink()
    if damage == "no images":
        file.with_name(IMAGES).write_text("{")
    check_equal(expected, table.read())
    assert file.read_bytes() == content


def test_images_that_are_gone_are_found_and_other_folders_do_not_matter(path: Path) -> None:
    table = Table(str(path), caption="caption", split="split")
    table.read()
    file = places()[0] / ROWS
    written = file.stat().st_mtime_ns
    (path.parent / "images" / "runs").mkdir()
    table.read()
    assert file.stat().st_mtime_ns == written
    (path.parent / "images" / "3.png").unlink()
    with pytest.raises(TableFaultsError, match=r"t\.csv:5:image: Expected an image file"):
        table.read()
    (path.parent / "images" / "3.png").write_bytes(b"new")
    check_equal(read(table), table.read())


def test_another_process_opens_the_file_and_receives_no_rows(path: Path) -> None:
    table = Table(str(path), caption="caption", label="label", image_id="id")
    rows = table.read(required=())
    pickled = pickle.dumps(rows)
    check_equal(rows, pickle.loads(pickled))
    assert b"one 3" not in pickled
    assert "🐈".encode() not in pickled
    moved = rows.with_splits(np.full(len(rows), 2, dtype=np.int8))
    assert pickle.loads(pickle.dumps(moved)).indices("test").tolist() == [*range(COUNT)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_describe, rows).result() == _describe(rows)


def _describe(rows: Rows) -> list[object]:
    return [rows.captions[5], rows.images[-1], int(rows.splits[7]), rows.indices("train").tolist(), str(rows.kept)]


def test_processes_that_start_together_read_the_table_once(path: Path) -> None:
    table = Table(str(path), caption="caption", split="split")
    with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
        found = [*pool.map(_read_in_process, [table] * 3)]
    assert sorted(is_writer for is_writer, _ in found) == [False, False, True]
    assert all(captions == read(table).captions.tolist() for _, captions in found)


def _read_in_process(table: Table) -> tuple[bool, list[str]]:
    written: list[Rows] = []
    keep = kept.KeptTable.keep

    def note(self: kept.KeptTable, rows: Rows) -> Rows:
        written.append(rows)
        return keep(self, rows)

    kept.KeptTable.keep = note  # type: ignore[method-assign]
    return (captions := table.read().captions.tolist()) is None or bool(written), captions


def test_where_nothing_can_be_written_the_table_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    table = Table(str(path), caption="caption", split="split")
    with pytest.warns(UserWarning, match=r"are not kept in .*Set ALIGN_FINETUNE_CACHE to another folder"):
        rows = table.read()
    assert rows.kept is None
    check_equal(read(table), rows)


def test_small_tables_and_frames_are_not_kept(path: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT_FROM", path.stat().st_size + 1)
    assert Table(str(path), caption="caption", split="split").read().kept is None
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(kept, "KEPT_FROM", 0)
    assert Table(frame, caption="caption", split="split").read().kept is None
    assert places() == []


def test_texts_are_read_as_from_an_array(path: Path) -> None:
    table = Table(str(path), caption="caption", split="split")
    expected, texts = read(table).captions, table.read().captions
    assert isinstance(texts, MappedStrings)
    assert [*texts] == texts.tolist() == expected.tolist()
    for rows in (slice(3, 50, 7), [4, 2, -1], np.array([9, 9]), np.arange(COUNT) % 2 == 0, np.array([], dtype=int)):
        assert texts[rows].tolist() == expected[rows].tolist()
    assert texts[np.int64(5)] == expected[5]
    with pytest.raises(IndexError):
        texts[COUNT]
    assert np.array_equal(np.unique(texts), np.unique(expected))

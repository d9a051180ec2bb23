"""`limit_rows`: few rows that stand for the whole table."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.core.errors import RecipeError
from finetune.data.table.limit import choose_rows
from finetune.data.table.row_images import hash_keys
from finetune.data.table.rows import Rows
from finetune.data.table.table import RandomSplit, Table

LIMITS = (2, 3, 20, 30, 40, 60)


def read(folder: Path, labels: list[str], splits: list[str] | RandomSplit, limit: int | None, **settings: str) -> Rows:
    names = [f"{row}.png" for row in range(len(labels))]
    for name in names:
        (folder / name).touch()
    columns = {"image": names, "label": labels}
    if isinstance(splits, list):
        columns["split"] = splits
    pd.DataFrame(columns).to_csv(folder / "t.csv", index=False)
    split = splits if isinstance(splits, RandomSplit) else "split"
    return Table(str(folder / "t.csv"), label="label", split=split, limit_rows=limit, **settings).read()


ORDERS = {
    "in turn": [*["train"] * 8, "val", "test"] * 40,
    "in blocks": [*["train"] * 320, *["val"] * 40, *["test"] * 40],
    "val and test first": [*["test", "val"] * 40, *["train"] * 320],
}


@pytest.mark.parametrize("order", ORDERS)
def test_every_split_has_its_share_however_its_rows_lie(tmp_path: Path, order: str) -> None:
    for limit in LIMITS:
        rows = read(tmp_path, ["cat"] * 400, ORDERS[order], limit)
        counts = [len(rows.indices(split)) for split in ("train", "val", "test")]
        assert sum(counts) == limit
        assert counts[0] >= 1
        assert counts[2] >= 1
        if limit >= 20:
            assert counts == pytest.approx([0.8 * limit, 0.1 * limit, 0.1 * limit], abs=1)


@pytest.mark.parametrize("labels", [["a", "b", "c", "d"] * 100, [*"abcd" * 50, *"a" * 200], sorted("abcd" * 100)])
def test_every_class_has_its_share_however_its_rows_lie(tmp_path: Path, labels: list[str]) -> None:
    splits = np.random.default_rng(0).permutation(ORDERS["in blocks"]).tolist()
    for limit in LIMITS[2:]:
        rows = read(tmp_path, labels, splits, limit)
        train = Counter(rows.captions[rows.indices("train")].tolist())
        assert train == pytest.approx({name: labels.count(name) / 400 * 0.8 * limit for name in "abcd"}, abs=2.5)
        assert min(train.values()) >= 1
        held = {name for split in ("val", "test") for name in rows.captions[rows.indices(split)].tolist()}
        assert held <= set(train)


def test_what_is_tested_is_trained_where_not_all_classes_fit() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        labels, hashes = random.integers(0, 100, 1_000), random.integers(0, 2**64, 1_000, dtype=np.uint64)
        splits = RandomSplit(0.1, 0.2).draw(hashes, labels).splits
        for limit in (10, 30, 90):
            kept = choose_rows(limit, hashes, splits, labels)
            trained, tested = (set(labels[kept][splits[kept] == split].tolist()) for split in (0, 2))
            assert len(trained | tested) >= 0.6 * limit
            assert tested <= trained


def test_a_higher_limit_keeps_the_rows_of_a_lower_one(tmp_path: Path) -> None:
    labels = [*"ab" * 150, *"c" * 95, *"defgh"]
    before: set[str] = set()
    for limit in (2, 5, 20, 40, 100, 399):
        rows = read(tmp_path, labels, RandomSplit(0.1, 0.1), limit)
        names = set(rows.images.tolist())
        assert len(rows) == len(names) == limit
        assert before < names
        before = names


@pytest.mark.parametrize("settings", [{}, {"image_id": "image"}, {"label_separator": "|"}])
def test_a_limit_moves_no_image_to_another_split(tmp_path: Path, settings: dict[str, str]) -> None:
    """Not even those that the draw moved for a class or an empty split."""
    random = np.random.default_rng(0)
    moved = 0
    for seed in range(5):
        labels = random.choice(["a", "b", "c|a", *map(str, range(12))], 60).tolist()
        split = RandomSplit(0.02, 0.3, seed)
        whole = read(tmp_path, labels, split, None, **settings)
        splits = dict(zip(whole.images.tolist(), whole.splits.tolist(), strict=True))
        moved += int((whole.splits != whole.drawn).sum())
        for limit in (3, 10, 30, 59):
            rows = read(tmp_path, labels, split, limit, **settings)
            assert {image: splits[image] for image in rows.images.tolist()} == dict(
                zip(rows.images.tolist(), rows.splits.tolist(), strict=True)
            )
    assert moved >= 5


def test_the_captions_of_an_image_stay_together() -> None:
    hashes = np.repeat(hash_keys(map(str, range(40)), 40, 0), 5)
    kept = choose_rows(20, hashes, np.zeros(200, dtype=np.int8), np.full(200, -1))
    assert Counter((kept // 5).tolist()) == dict.fromkeys((kept // 5).tolist(), 5)


def test_faults_beyond_the_limit_do_not_count(tmp_path: Path) -> None:
    labels = ["cat", "dog"] * 100
    kept = {Path(image).name for image in read(tmp_path, labels, ORDERS["in turn"][:200], 10).images.tolist()}
    for name in {f"{row}.png" for row in range(200)} - kept:
        (tmp_path / name).unlink()
    table = Table(str(tmp_path / "t.csv"), label="label", split="split", limit_rows=10)
    assert len(table.read()) == 10


def test_limit_below_one() -> None:
    with pytest.raises(RecipeError, match=r"Expected data\.table\.limit_rows to be at least 1, but got 0"):
        Table("t.csv", caption="caption", limit_rows=0)

"""What has changed of a table since a run saw it, and which of its images the run saw."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.data.checks.seen import SeenTable, write_seen
from finetune.data.table.table import RandomSplit, Rows, Table

from ..shards import sample, write_tar

COLUMNS = ["image", "caption", "split"]
SPLITS = ["train", "val", "test"]


def read(folder: Path, records: list[tuple[str, str, str]], name: str = "t.csv", images: Path | None = None) -> Rows:
    for image, _, _ in records:
        path = (images or folder) / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    pd.DataFrame(records, columns=COLUMNS).to_csv(folder / name, index=False)
    return Table(
        str(folder / name), caption="caption", split="split", images=images and str(images), outside=True
    ).read(required=())


def changes(seen: SeenTable, rows: Rows) -> list[str]:
    return list(seen.compare(rows).changes)


def test_what_is_kept_is_a_parquet_file_that_says_what_it_is(tmp_path: Path) -> None:
    rows = read(tmp_path, [("b/1.png", "one", "train"), ("a.png", "two", "test"), ("a.png", "one", "test")])
    write_seen(rows, tmp_path / "table.parquet")
    found = pd.read_parquet(tmp_path / "table.parquet")
    assert found["image"].tolist() == ["b/1.png", "a.png", "a.png"]
    assert found["split"].tolist() == ["train", "test", "test"]
    assert found["text"][0] == found["text"][2] != found["text"][1]
    seen = SeenTable.read(tmp_path / "table.parquet")
    assert seen.folder == str(tmp_path)
    assert changes(seen, rows) == []
    assert seen.compare(rows).former.tolist() == [0, 2, 2]


def test_every_kind_of_change_is_told(tmp_path: Path) -> None:
    before = [(f"{at}.png", f"text {at}", SPLITS[at % 3]) for at in range(12)]
    seen = SeenTable.of(read(tmp_path, before))
    after = [*before[:2], *before[3:], *((f"new/{at}.png", "text", "train") for at in range(4))]
    after[4] = (after[4][0], "another", after[4][2])  # 5.png
    after[5] = (*after[5][:2], "test")  # 6.png
    after[6] = (after[6][0], "another", "train")  # 7.png
    assert changes(seen, read(tmp_path, after)) == [
        "4 rows added: 'new/0.png', 'new/1.png', 'new/2.png' and 1 more",
        "1 row removed: '2.png'",
        "2 rows with another text or label: '5.png', '7.png'",
        "1 row moved from train to test: '6.png'",
        "1 row moved from val to train: '7.png'",
    ]
    assert changes(seen, read(tmp_path, before[::-1])) == []


def test_changes_of_random_tables(tmp_path: Path) -> None:
    """Against counts by plain Python, with several rows an image."""
    random = np.random.default_rng(0)
    for _ in range(60):
        pool = [(f"{image}.png", f"{text}", SPLITS[int(random.integers(3))]) for image in range(6) for text in range(3)]
        of_image = {image: split for image, _, split in pool}
        pool = [(image, text, of_image[image]) for image, text, _ in pool]
        before = [pool[at] for at in random.choice(18, 9, replace=False).tolist()]
        move = {
            image: SPLITS[int(random.integers(3))] if random.random() < 0.3 else of for image, of in of_image.items()
        }
        after = [(*pool[at][:2], move[pool[at][0]]) for at in random.choice(18, random.integers(1, 12)).tolist()]
        found = SeenTable.of(read(tmp_path, before)).compare(read(tmp_path, after))
        had, has = Counter(row[:2] for row in before), Counter(row[:2] for row in after)
        expected = Counter[str]()
        for image, former in of_image.items():
            kept, gone, new = (
                sum(number for (name, _), number in rows.items() if name == image)
                for rows in (had & has, had - has, has - had)
            )
            relabelled = min(gone, new)
            expected["added"] += new - relabelled
            expected["removed"] += gone - relabelled
            expected["with"] += relabelled
            if former != move[image]:
                expected[f"{former} to {move[image]}"] += kept + relabelled
        told = Counter[str]()
        for line in found.changes:
            number, what = line.partition(":")[0].split(maxsplit=1)
            key = what.split("from ")[1] if "moved from" in what else what.split()[1]
            told[key] += int(number)
        assert told == +expected
        known = {image: SPLITS.index(split) for image, _, split in before}
        assert found.former.tolist() == [known.get(image, -1) for image, _, _ in after]


RECORDS = [("a.png", "one", "train"), ("b/c.png", "two", "val"), ("d.png", "three", "test")]


@pytest.mark.parametrize("way", ["absolute paths", "a link to the folder", "links to the files", "moved", "copied"])
def test_images_are_the_same_wherever_they_are_found(tmp_path: Path, way: str) -> None:
    """The same file under any name, or the same name in another folder."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    seen = SeenTable.of(read(tmp_path / "one", RECORDS))
    records, images, new = list(RECORDS), None, tmp_path / "two"
    if way == "absolute paths":
        records = [(str(tmp_path / "one" / image), text, split) for image, text, split in RECORDS]
    elif way == "a link to the folder":
        (tmp_path / "two" / "link").symlink_to(tmp_path / "one")
        records = [(f"link/{image}", text, split) for image, text, split in RECORDS]
    elif way == "links to the files":
        for at, (image, _, _) in enumerate(RECORDS):
            (tmp_path / "two" / f"{at}.png").symlink_to(tmp_path / "one" / image)
        records = [(f"{at}.png", text, split) for at, (_, text, split) in enumerate(RECORDS)]
    elif way == "moved":
        shutil.rmtree(tmp_path / "one")
    else:
        images = tmp_path / "three"
    found = seen.compare(read(new, records, images=images))
    assert found.former.tolist() == [0, 1, 2]
    assert found.changes == ()


def test_the_same_file_counts_for_more_than_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    seen = SeenTable.of(read(tmp_path / "one", [("a.png", "x", "train"), ("b.png", "x", "test")]))
    (tmp_path / "two" / "b.png").symlink_to(tmp_path / "one" / "a.png")
    rows = read(tmp_path / "two", [("b.png", "x", "test"), ("c.png", "x", "test")])
    assert seen.compare(rows).former.tolist() == [0, -1]


def test_the_folders_of_several_splits_may_hold_the_same_names(tmp_path: Path) -> None:
    def table(place: Path) -> Table:
        for split in SPLITS:
            (place / split).mkdir(parents=True, exist_ok=True)
            (place / split / "1.png").touch()
            (place / split / "t.csv").write_text("image,caption\n1.png,x\n")
        split = RandomSplit(*(str(place / name / "t.csv") for name in ("val", "test")))
        return Table(str(place / "train" / "t.csv"), caption="caption", split=split)

    seen = SeenTable.of(table(tmp_path / "here").read())
    shutil.rmtree(tmp_path / "here")
    found = seen.compare(table(tmp_path / "there").read())
    assert found.former.tolist() == [0, 1, 2]
    assert found.changes == ()


def test_members_of_shards_are_known_by_shard_and_key(tmp_path: Path) -> None:
    for folder, more in (("one", ""), ("two", "y" * 900)):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", *(sample(number, more=more) for number in range(6)))
    tables = [
        Table(str(tmp_path / name / "*.tar"), caption="txt", split=RandomSplit(0.2, 0.2)) for name in ("one", "two")
    ]
    before, after = (table.read() for table in tables)
    assert before.images.tolist() != after.images.tolist()
    found = SeenTable.of(before).compare(after)
    assert (found.changes, found.former.tolist()) == ((), before.splits.tolist())


def test_corrected_labels_of_other_rows_are_no_change_of_a_row(tmp_path: Path) -> None:
    """The rarest of several labels, by which images are drawn, depends on other rows; a row's text does not."""

    def table(labels: list[str]) -> Rows:
        for at in range(len(labels)):
            (tmp_path / f"{at}.png").touch()
        frame = pd.DataFrame({"image": [f"{at}.png" for at in range(len(labels))], "labels": labels, "split": "train"})
        frame.to_csv(tmp_path / "t.csv", index=False)
        return Table(str(tmp_path / "t.csv"), label="labels", label_separator="|", split="split").read(required=())

    seen = SeenTable.of(table(["a|b", "a", "a", "b", "", "a"]))
    assert changes(seen, table(["b|a", "a", "b", "b", "", "a"])) == ["1 row with another text or label: '2.png'"]
    assert changes(seen, table(["a|b", "a", "a", "b", "c", "a"])) == ["1 row with another text or label: '4.png'"]

"""One row of each image drawn in each epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.loading.choices import RowChoices
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table


def test_choices_against_a_plain_grouping() -> None:
    generator = np.random.default_rng(0)
    items, rows = generator.integers(0, 40, 200), np.sort(generator.choice(1_000, 200, replace=False))
    choices = RowChoices.of_items(rows, items)
    groups: dict[int, list[int]] = {}
    for row, item in zip(rows.tolist(), items.tolist(), strict=True):
        groups.setdefault(item, []).append(row)
    assert len(choices) == len(groups)
    for position, members in enumerate(groups.values()):  # in the order of first rows
        drawn = Counter(choices.draw(position, epoch, seed=3) for epoch in range(200))
        assert set(drawn) == set(members)
        assert min(drawn.values()) > 200 / len(members) / 4
        assert choices.draw(position, 7, seed=3) == choices.draw(position, 7, seed=3)


def test_rows_of_one_item_each_keep_their_order() -> None:
    rows = np.array([3, 5, 9])
    for choices in (RowChoices.of_each(rows), RowChoices.of_items(rows, np.array([8, 2, 4]))):
        assert [choices.draw(position, 5, 0) for position in range(len(choices))] == [3, 5, 9]


def test_no_rows() -> None:
    assert len(RowChoices.of_items(np.array([], dtype=np.int64), np.array([], dtype=np.int64))) == 0


def test_training_sees_one_caption_an_epoch_and_evaluation_all(colour_table: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(colour_table, dtype=str)
    frame["image"] = [str(colour_table.parent / name) for name in frame["image"]]
    frame["other"] = "one " + frame["label"]
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    data = ImageTextDataModule(
        Table(str(path), caption=("caption", "other"), split="split", outside=True), "align-mini", image_size=32
    )
    images = {split: int((frame["split"] == split).sum()) for split in ("train", "val", "test")}
    assert len(data.dataset("train", training=True)) == images["train"]
    assert len(data.dataset("test")) == 2 * images["test"]
    loader = data.train_dataloader()
    seen: dict[int, set[int]] = {}
    for epoch in range(8):
        loader.batch_sampler.set_epoch(epoch)
        batches = list(loader)
        ids = [image for batch in batches for image in batch.image_ids.tolist()]
        assert len(ids) == len(set(ids)) == images["train"]
        for batch in batches:
            for image, row in zip(batch.image_ids.tolist(), batch.rows.tolist(), strict=True):
                seen.setdefault(image, set()).add(row)
    assert sum(len(rows) == 2 for rows in seen.values()) > len(seen) * 0.9

"""Rows drawn by class or by weight: the shares they should have, and the same ones after a stop."""

from itertools import chain

import albumentations
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from finetune.core.errors import RecipeError, TableError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.loader import Collated, TrainBatchLoader
from finetune.data.loading.sampler import REPEAT, Part, TrainBatches
from finetune.data.loading.sampling import ClassBalanced, WeightedRows
from finetune.data.table.table import Table
from finetune.pipeline.recipe import read_recipe

SIZES = (1, 2, 7, 40, 150)
LABELS = np.random.default_rng(0).permutation(np.repeat([3, 1, 0, 4, 2], SIZES))
ONES = np.ones(len(LABELS))


def weights(seed: int = 1, rows: int = 500) -> np.ndarray:
    drawn = np.random.default_rng(seed).exponential(size=rows).astype(np.float32)
    drawn[::10] = 0
    return drawn


# ---- by class


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
def test_classes_are_drawn_in_proportion_to_a_power_of_their_size(power):
    order = ClassBalanced(power).order(LABELS, ONES, seed=0, epoch=2)
    assert len(order) == len(LABELS)
    sizes = np.bincount(LABELS)
    expected = len(LABELS) * sizes**power / (sizes**power).sum()
    assert np.abs(np.bincount(LABELS[order]) - expected).max() < 1


def test_power_1_takes_each_row_once_in_another_order_each_epoch():
    orders = [ClassBalanced(1.0).order(LABELS, ONES, seed=0, epoch=epoch) for epoch in range(2)]
    assert all(np.array_equal(np.sort(order), np.arange(len(LABELS))) for order in orders)
    assert not np.array_equal(*orders)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_no_row_comes_again_before_its_class_is_used_up_epochs_included(power):
    seen = np.concatenate([ClassBalanced(power).order(LABELS, ONES, seed=7, epoch=epoch) for epoch in range(9)])
    times = np.bincount(seen, minlength=len(LABELS))
    for label in range(5):
        assert np.ptp(times[label == LABELS]) <= 1
    assert times[LABELS == 2].min() >= 1  # an epoch sees 40 of its 150 rows


def test_rows_without_any_label_are_a_class_of_their_own():
    labels = np.repeat([-1, 0, 1], [3, 30, 60])
    order = ClassBalanced().order(labels, np.ones(93), seed=0, epoch=1)
    assert np.unique_counts(labels[order]).counts.tolist() == [31, 31, 31]
    assert np.bincount(order)[:3].min() >= 10


def test_classes_are_spread_over_the_batches():
    labels = np.repeat([0, 1], [10, 4990])
    order = ClassBalanced().order(labels, np.ones(5000), seed=0, epoch=0)
    shares = labels[order].reshape(50, 100).mean(axis=1)
    assert np.abs(shares - 0.5).max() < 0.25  # 5 standard deviations of 100 draws


# ---- by weight


def test_each_row_comes_as_often_as_its_weight_says_rounded_down_or_up():
    drawn = weights()
    order = WeightedRows().order(LABELS, drawn, seed=3, epoch=1)
    expected = len(drawn) * drawn.astype(np.float64) / drawn.sum(dtype=np.float64)
    times = np.bincount(order, minlength=len(drawn))
    assert times.sum() == len(drawn)
    assert ((times == np.floor(expected)) | (times == np.ceil(expected))).all()


def test_shares_over_many_epochs_are_the_weights():
    drawn = weights(rows=60)
    epochs = 4000
    times = sum(np.bincount(WeightedRows().order(LABELS, drawn, 0, epoch), minlength=60) for epoch in range(epochs))
    expected = 60 * drawn.astype(np.float64) / drawn.sum(dtype=np.float64)
    # The number of times in an epoch is one of two neighbours: a standard deviation of at most 1/2.
    assert np.abs(times / epochs - expected).max() < 5 * 0.5 / np.sqrt(epochs)
    assert times[drawn == 0].sum() == 0


def test_rows_of_equal_weight_come_equally_often():
    drawn = np.repeat([1.0, 3.0], [300, 100])
    times = np.bincount(WeightedRows().order(LABELS, drawn, seed=0, epoch=0), minlength=400)
    assert set(times[:300]) == {0, 1}
    assert set(times[300:]) == {2}


def test_weights_of_0_alone_are_refused():
    with pytest.raises(
        TableError, match="a training row to have a weight above 0 with WeightedRows, but got 0 in all 3"
    ):
        WeightedRows().order(LABELS, np.zeros(3), 0, 0)


# ---- order and resuming


@pytest.mark.parametrize("sampling", [ClassBalanced(), ClassBalanced(0.5), WeightedRows()])
def test_order_depends_on_seed_and_epoch_alone(sampling):
    def order(seed, epoch):
        return sampling.order(LABELS, weights(rows=len(LABELS)), seed, epoch).tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


class Keys(Dataset):
    """Gives back what it is asked for."""

    def __getitem__(self, key):
        return key


def collate(keys) -> Collated:
    return Collated(list(keys), [])


@pytest.mark.parametrize(
    ("sampling", "workers"),
    [
        (ClassBalanced(), 0),
        (WeightedRows(), 0),
        (ClassBalanced(), 2),
        pytest.param(WeightedRows(), 2, marks=pytest.mark.slow),
    ],
)
def test_stopping_after_any_batch_and_going_on_gives_the_same_rows(sampling, workers):
    def loader(workers=0):
        def draw(seed, epoch):
            return sampling.order(LABELS, weights(rows=len(LABELS)), seed, epoch)

        batches = TrainBatches(len(LABELS), 60, 5, draw)  # 4 batches an epoch
        return TrainBatchLoader(Keys(), list, batch_sampler=batches, num_workers=workers, collate_fn=collate)

    def epochs(source, first):
        for epoch in range(first, 3):
            source.batch_sampler.set_epoch(epoch)
            yield from source

    expected = list(epochs(loader(), 0))
    assert len(expected) == 12
    for stop in (1, 3, 4, 6):
        interrupted, restored = loader(workers), loader(workers)
        stream = epochs(interrupted, 0)
        seen = [next(stream) for _ in range(stop)]
        restored.load_state_dict(interrupted.state_dict())
        assert seen + list(epochs(restored, stop // 4)) == expected


# ---- in the data module


@pytest.fixture
def uneven(colour_table, tmp_path):
    """Training rows of 6 red images, one of them twice, 3 green and 1 blue, with the weights 0, 1, 2, ..."""
    lines = colour_table.read_text().splitlines()
    rows = [line for line in lines[1:] if ",train," in line]
    few = [*rows[0::3], rows[0], *rows[1:9:3], rows[2]]
    few += [line for line in lines[1:] if ",test," in line]
    path = tmp_path / "uneven.csv"
    weighted = [f"{line},{at % 12}" for at, line in enumerate(few)]
    path.write_text("\n".join([f"{lines[0]},weight", *weighted]) + "\n")
    return path, colour_table.parent


def module(uneven, sampling, **options) -> ImageTextDataModule:
    path, images = uneven
    settings = {"label": "label", "split": "split", "weight": "weight", "images": str(images)}
    table = Table(str(path), **settings | options.pop("table", {}))
    return ImageTextDataModule(table, "align-mini", image_size=64, batch_size=4, sampling=sampling, **options)


def test_data_module_draws_classes_in_balance_and_augments_a_row_anew_each_time(uneven):
    turned = [albumentations.Affine(rotate=(-30, 30), p=1.0)]
    data = module(uneven, ClassBalanced(), augmentations=turned)
    batches = list(data.train_dataloader())
    labels = torch.cat([batch.label_ids for batch in batches])
    assert sorted(labels.bincount().tolist()) == [3, 4, 4]
    rows = torch.cat([batch.rows for batch in batches])
    pixels = torch.cat([batch.pixel_values for batch in batches])
    blue = pixels[labels == data.rows.classes.index("blue")]
    assert len(rows[labels == data.rows.classes.index("blue")].unique()) == 1
    assert len({image.numpy().tobytes() for image in blue}) == len(blue) >= 3
    dataset = data.train_dataloader().dataset
    position = dataset.choices.rows.tolist().index(int(rows[labels == data.rows.classes.index("blue")][0]))
    again = [dataset[position, REPEAT * time].pixel_values for time in range(len(blue))]
    assert all(torch.equal(*pair) for pair in zip(again, blue, strict=True))


def test_weights_that_rows_are_drawn_by_do_not_count_in_the_loss_too(uneven):
    data = module(uneven, WeightedRows())
    batches = list(data.train_dataloader())
    assert torch.cat([batch.weights for batch in batches]).unique().tolist() == [1.0]
    rows = torch.cat([batch.rows for batch in batches]).numpy()
    training = data.rows.indices("train")
    expected = 11 * data.rows.weights[training] / data.rows.weights[training].sum()
    assert np.abs(np.bincount(rows, minlength=len(data.rows))[training] - expected).max() < 1
    test = next(iter(data.test_dataloader()))
    assert test.weights.tolist() == data.rows.weights[test.rows].tolist()
    kept = torch.cat([batch.weights for batch in module(uneven, ClassBalanced()).train_dataloader()])
    assert len(kept.unique()) > 1


def test_of_an_image_with_several_rows_the_mean_weight_counts(uneven):
    data = module(uneven, WeightedRows(), table={"image_id": "image"})
    dataset = data.train_dataloader().dataset
    training = data.rows.indices("train")
    items = [training[data.rows.items[training] == item] for item in dict.fromkeys(data.rows.items[training].tolist())]
    assert sorted(map(len, items)) == [1] * 9 + [2]
    assert dataset.choices.weights(data.rows.weights) == pytest.approx([data.rows.weights[it].mean() for it in items])
    assert dataset.choices.labels(data.rows.label_ids).tolist() == [data.rows.label_ids[it][0] for it in items]


def test_tables_without_the_column_are_refused(uneven):
    with pytest.raises(RecipeError, match="data.table.label to name a column with ClassBalanced, but got none"):
        module(uneven, ClassBalanced(), table={"label": None, "caption": "caption"})
    with pytest.raises(RecipeError, match="data.table.weight to name a column with WeightedRows, but got none"):
        module(uneven, WeightedRows(), table={"weight": None})
    with pytest.raises(RecipeError, match="data.sampling.power to be from 0 to 1, but got 1.5"):
        ClassBalanced(1.5)


def test_recipe_names_the_sampling(uneven, tmp_path):
    path, images = uneven
    recipe = tmp_path / "balanced.yaml"
    recipe.write_text(
        "model:\n  checkpoint: align-mini\n"
        f"data:\n  table:\n    path: {path}\n    images: {images}\n    label: label\n    split: split\n"
        "  sampling:\n    class_path: finetune.ClassBalanced\n    init_args:\n      power: 0.5\n"
    )
    assert read_recipe(recipe).build_data().sampling.power == 0.5
    drawn = read_recipe(recipe, ["--data.sampling", "WeightedRows", "--data.table.weight", "weight"]).build_data()
    assert isinstance(drawn.sampling, WeightedRows)
    with pytest.raises(RecipeError, match="'data.sampling.powr'. Did you mean 'power'"):
        read_recipe(recipe, ["--data.sampling.powr", "0.5"])
    with pytest.raises(RecipeError, match="data.table.weight to name a column"):
        read_recipe(recipe, ["--data.sampling", "finetune.WeightedRows"]).build_data()


# ---- on several processes


@pytest.mark.parametrize(
    "sampling",
    [None, ClassBalanced(), ClassBalanced(0.5), WeightedRows()],
    ids=["each row once", "balanced", "half balanced", "weighted"],
)
@pytest.mark.parametrize("delivered", [0, 5])
def test_processes_share_the_batches_of_one(sampling, delivered):
    """Rows and how often each came before, at any number of processes, and from a batch that another number reached."""
    drawn = weights(rows=len(LABELS))

    def batches(part: Part, epoch: int) -> list[list[tuple[int, int]]]:
        draw = None if sampling is None else lambda seed, epoch: sampling.order(LABELS, drawn, seed, epoch)
        found = TrainBatches(len(LABELS), 13, 4, draw, part)
        found.set_epoch(epoch)
        found.delivered = delivered
        return [*found]

    for epoch in range(2):
        whole = batches(Part(0, 1), epoch)
        for count in (2, 3):
            parts = [batches(Part(number, count), epoch) for number in range(count)]
            assert [[*chain(*batch)] for batch in zip(*parts, strict=True)] == whole
            assert all(max(map(len, batch)) - min(map(len, batch)) <= 1 for batch in zip(*parts, strict=True))
    assert whole != batches(Part(0, 1), epoch=0)

"""How many workers a measured loading time asks for, and what `auto` means until somebody measures."""

import multiprocessing

import pytest
from torch.utils.data import DataLoader

from finetune.core.cores import count_cores
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.loader import peek
from finetune.data.loading.workers import count_workers, suggest_workers, time_loading
from finetune.data.table.table import Table


def module(colour_table, tiny, **options) -> ImageTextDataModule:
    table = Table(str(colour_table), label="label", split="split")
    return ImageTextDataModule(table, tiny, batch_size=8, **options)


@pytest.mark.parametrize(
    ("loading", "step", "cores", "expected"),
    [
        (0.029, 1.0, 8, 0),  # a few percent of the step
        (0.031, 1.0, 8, 1),
        (0.9, 1.0, 8, 2),  # 0.9 of a core, with a margin
        (4.0, 1.0, 8, 5),
        (40.0, 1.0, 8, 7),  # a core is left for the step
        (40.0, 1.0, 2, 1),
        (40.0, 1.0, 1, 0),
        (0.1, 0.0, 4, 3),
    ],
)
def test_there_are_as_many_workers_as_loading_needs(loading, step, cores, expected):
    assert count_workers(loading, step, cores) == expected


class WithLoaderOfItsOwn(ImageTextDataModule):
    def train_dataloader(self):
        dataset = self.dataset("train", training=True)
        rows = [[(0, 0), (1, 0)], [(2, 0), (3, 0)]]
        return DataLoader(dataset, batch_sampler=rows, collate_fn=dataset.collate)


def test_a_loader_of_another_kind_is_timed_too(colour_table, tiny):
    data = WithLoaderOfItsOwn(Table(str(colour_table), label="label", split="split"), tiny)
    assert [len(found.batch.rows) for found in peek(data.train_dataloader())] == [2, 2]
    assert time_loading(data) > 0


def test_measuring_leaves_the_data_module_as_it_was(colour_table, tiny):
    data, others = module(colour_table, tiny), multiprocessing.active_children()
    before = [batch.rows.tolist() for batch in data.train_dataloader()]
    assert time_loading(data, at_most=0.0) > 0
    assert suggest_workers(data, step=1e9, cores=8) == 0
    assert suggest_workers(data, step=1e-9, cores=3) == 2
    assert suggest_workers(data, step=1e-9) == count_cores() - 1
    assert [batch.rows.tolist() for batch in data.train_dataloader()] == before
    assert set(multiprocessing.active_children()) <= set(others)


def test_unreadable_images_are_left_to_the_loader(tmp_path, tiny):
    lines = ["image,label,split", *(f"{row}.png,{'ab'[row % 2]},train" for row in range(4))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    for row in range(4):
        (tmp_path / f"{row}.png").write_bytes(b"no image")
    data = ImageTextDataModule(Table(str(tmp_path / "t.csv"), label="label", split="split"), tiny, batch_size=2)
    assert time_loading(data) > 0
    assert data.skipped == ()


def test_auto_takes_a_few_workers_until_a_number_is_set(colour_table, tiny):
    kept = Table(str(colour_table), caption="caption", split="split")
    data = module(colour_table, tiny, num_workers="auto", retention=[kept])
    loaders = (data.train_dataloader, data.val_dataloader, next(iter(data.retention.values())).test_dataloader)
    assert [build().num_workers for build in loaders] == [min(4, count_cores() - 1)] * 3
    data.set_workers(2)
    assert [build().num_workers for build in loaders] == [2, 2, 2]
    assert data.num_workers == "auto"


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_workers_stay_from_one_epoch_to_the_next(colour_table, tiny, loader):
    others = {worker.pid for worker in multiprocessing.active_children()}  # of loaders that nobody has collected yet
    again, seen = getattr(module(colour_table, tiny, num_workers=1), loader)(), []
    for _ in range(2):
        assert list(again)
        seen.append({worker.pid for worker in multiprocessing.active_children()} - others)
    assert len(seen[0]) == 1
    assert seen[0] == seen[1]

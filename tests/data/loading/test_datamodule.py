"""Loaders: the checkpoint's own pixels and words, the same whatever the number of workers."""

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image

from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.model.pixels import PixelScale

from ...pixels import scaled


def module(path, *, label="label", caption=None, **options) -> ImageTextDataModule:
    return ImageTextDataModule(
        Table(str(path), label=label, caption=caption, split="split"), "align-mini", image_size=64, **options
    )


def batches_equal(one, two) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


def test_evaluation_batch_equals_the_processor_on_its_rows(colour_table):
    data = module(colour_table, templates=("a photo of a {}.",))
    batch = next(iter(data.test_dataloader()))
    rows = batch.rows.tolist()
    images = [Image.open(data.rows.images[row]).convert("RGB") for row in rows]
    texts = [f"a photo of a {data.rows.classes[data.rows.label_ids[row]]}." for row in rows]
    expected = data.processor(images=images, text=texts, padding="longest", truncation=True, return_tensors="pt")
    assert batch.pixel_values.dtype == torch.uint8
    assert torch.equal(scaled(batch.pixel_values, data.processor.image_processor), expected["pixel_values"])
    assert torch.equal(PixelScale(Base.open("align-mini").levels)(batch.pixel_values), expected["pixel_values"])
    assert torch.equal(batch.input_ids, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"])
    assert batch.label_ids.tolist() == data.rows.label_ids[rows].tolist()


def test_training_batches_are_the_same_with_0_2_and_3_workers(colour_table):
    def epoch(workers):
        data = module(
            colour_table,
            batch_size=5,
            num_workers=workers,
            templates=("a {}.", "one {}"),
            augmentations=[albumentations.Affine(rotate=(-30, 30), p=1.0)],
        )
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(2)
        return list(loader)

    first = epoch(0)
    assert batches_equal(first, epoch(2))
    assert batches_equal(first, epoch(3))


def test_augmentation_and_template_change_with_the_epoch(colour_table):
    data = module(
        colour_table,
        templates=("a {}.", "one {} thing of many words"),
        augmentations=[albumentations.Affine(rotate=(-30, 30), p=1.0)],
    )
    dataset = data.train_dataloader().dataset
    assert not torch.equal(dataset[0, 0].pixel_values, dataset[0, 1].pixel_values)
    assert torch.equal(dataset[0, 0].pixel_values, dataset[0, 0].pixel_values)
    assert len({tuple(dataset[0, epoch].input_ids) for epoch in range(8)}) == 2
    plain = data.test_dataloader().dataset
    assert torch.equal(plain[0, 0].pixel_values, plain[0, 5].pixel_values)


def test_caption_tables_train_on_captions_and_have_no_classes(colour_table):
    data = module(colour_table, label=None, caption="caption")
    assert data.class_prompts is None
    batch = next(iter(data.val_dataloader()))
    text = data.processor.tokenizer.decode(batch.input_ids[0], skip_special_tokens=True)
    assert text == data.rows.captions[int(batch.rows[0])]
    assert batch.label_ids.unique().tolist() == [-1]


def test_class_prompts_name_every_class_in_every_template(colour_table):
    prompts = module(colour_table, templates=("a {}.", "one {}")).class_prompts
    assert prompts.names == ("blue", "green", "red")
    assert prompts.label_ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(prompts.input_ids) == 6


def test_rows_at_given_positions_are_loaded_as_those_of_a_split(colour_table):
    data = module(colour_table)
    assert batches_equal(data.loader(data.rows.indices("val")), data.val_dataloader())
    assert data.rows.indices("test").tolist() != data.rows.indices("val").tolist()
    chosen = np.flatnonzero(data.rows.splits >= 0)[1::5]
    assert torch.cat([batch.rows for batch in data.loader(chosen)]).tolist() == chosen.tolist()


def test_held_back_rows_are_not_training_rows(colour_table):
    data = module(colour_table)
    held = data.held_back(4)
    assert len(held.rows) == 4
    assert not set(held.rows.tolist()) & set(data.rows.indices("train").tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size to be at least 1, but got 0"),
        ({"num_workers": -1}, "num_workers to be at least 0"),
        ({"templates": ("a photo",)}, "template to hold {} once"),
        ({"templates": ()}, "templates"),
    ],
)
def test_arguments_out_of_range_are_refused(colour_table, options, message):
    with pytest.raises((ValueError, RecipeError), match=message):
        module(colour_table, **options)


def test_equal_captions_are_one_in_evaluation_unless_each_row_counts_for_itself(colour_table):
    merged, apart = (
        module(colour_table, label=None, caption="label", merge_equal_captions=merge) for merge in (True, False)
    )
    for batch in merged.test_dataloader():
        assert batch.caption_ids.tolist() == merged.rows.caption_ids[batch.rows].tolist()
    for batch in apart.test_dataloader():
        assert batch.caption_ids.tolist() == batch.rows.tolist()
    for batch in apart.train_dataloader():  # equal captions stay positives of each other
        assert batch.caption_ids.tolist() == apart.rows.caption_ids[batch.rows].tolist()


def test_measuring_takes_no_more_rows_at_a_time_than_usual_however_large_a_training_batch_is(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    lines = ["image,caption,split", "black.png,a square,train", *(f"black.png,square {row},val" for row in range(70))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    table = Table(str(tmp_path / "table.csv"), caption="caption", split="split")
    data = ImageTextDataModule(table, "align-mini", image_size=32, batch_size=100)
    assert [len(batch.rows) for batch in data.loader("val")] == [64, 6]
    assert [len(batch.rows) for batch in data.val_dataloader()] == [70]  # the loss is that of training

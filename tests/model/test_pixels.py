"""Pixels that travel as bytes give what the processor's floats give, to the bit."""

import pytest
import torch

from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.model.pixels import PixelScale, read_levels
from finetune.model.towers import AlignTowers
from finetune.training.task import AlignTask

from ..data.processors import PROCESSORS, align_base
from ..pixels import scaled


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_level_of_every_channel_is_the_processors(name, images):
    assert len(images[:, 0].unique()) == 256
    found, expected = PixelScale(read_levels(PROCESSORS[name]))(images), scaled(images, PROCESSORS[name])
    assert found.dtype == torch.float32
    assert found.equal(expected)


@pytest.mark.parametrize("grad", [False, True])
def test_features_of_bytes_are_those_of_the_processors_floats(tiny, images, grad):
    base = Base.open(tiny)
    towers = AlignTowers.of(base)
    floats = scaled(images, base.processor(64).image_processor)
    with torch.set_grad_enabled(grad):
        assert towers.image_features(images).equal(towers.image_features(floats))


def test_an_image_of_several_rows_is_computed_once_as_bytes_too(tiny, images):
    base = Base.open(tiny)
    towers, seen = AlignTowers.of(base), []
    towers.align.vision_model.register_forward_hook(lambda *of: seen.append(len(of[2][0])))
    with torch.no_grad():
        towers.image_features(images[[0, 0, 1, 2, 2]])
    assert seen == [3]


def test_the_table_moves_with_the_towers_and_is_no_part_of_their_state(tiny, images):
    base = Base.open(tiny)
    with_table, without = AlignTowers.of(base), AlignTowers(base.load())
    assert with_table.state_dict().keys() == without.state_dict().keys()
    doubled = with_table.double().scale_pixels(images)
    assert doubled.equal(scaled(images, base.processor(64).image_processor).double())
    assert with_table.to("meta").scale_pixels(images.to("meta")).shape == images.shape


def test_bytes_without_a_table_are_refused(tiny, images):
    with pytest.raises(ValueError, match=r"pixel_values to be floats, but got torch\.uint8.* levels=base\.levels"):
        AlignTowers(Base.open(tiny).load()).image_features(images)


def test_a_data_module_that_scales_otherwise_is_refused(build_trainer, tiny, colour_table):
    data = ImageTextDataModule(Table(str(colour_table), label="label", split="split"), tiny, batch_size=8)
    data.processor.image_processor = align_base()
    with pytest.raises(RecipeError, match="images as the task's checkpoint does, but got a processor that scales"):
        build_trainer(max_steps=1).fit(AlignTask(tiny, None, None), data)

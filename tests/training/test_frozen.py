"""What is frozen is computed once a fit, and trains as if it were computed each time."""

from collections import Counter
from functools import partial

import pytest
import torch
from lightning import seed_everything
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import SGD
from transformers.models.align.modeling_align import AlignTextModel, AlignVisionModel

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.lora import TowerLora
from finetune.training.classification_task import ClassificationTask
from finetune.training.head_first import HeadFirst
from finetune.training.task import AlignTask

SMALL, EPOCHS = TowerLora(rank=2), 3


@pytest.fixture
def computed():
    """How many rows each tower computed."""
    rows: Counter[type] = Counter()

    def note(module, _, output) -> None:
        if isinstance(module, AlignTextModel | AlignVisionModel):
            rows[AlignTextModel if isinstance(module, AlignTextModel) else AlignVisionModel] += len(output[0])

    hook = register_module_forward_hook(note)
    yield rows
    hook.remove()


@pytest.fixture
def captions(colour_table, tiny) -> ImageTextDataModule:
    return ImageTextDataModule(Table(str(colour_table), caption="caption", split="split"), tiny, batch_size=8)


def forget(self, stage: str) -> None:
    """Trains as a task that keeps nothing does."""
    setup = super(type(self), self).setup
    setup(stage)
    self.towers.keep_features(False)


def fit(kind, build_trainer, tiny, data, callbacks=(), **options) -> dict[str, torch.Tensor]:
    """Trains, and returns what was logged last, and what was trained."""
    seed_everything(0, verbose=False)
    task = kind(tiny, optimizer=partial(SGD, lr=0.01), **options)
    trainer = build_trainer(max_epochs=EPOCHS, callbacks=[*callbacks])
    trainer.fit(task, data)
    assert task.towers._kept_features is None
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    return {**trainer.callback_metrics, **trained}


def rows_of(data, *splits: str) -> int:
    return sum(len(data.rows.indices(split)) for split in splits)


@pytest.mark.parametrize("frozen", [AlignVisionModel, AlignTextModel])
def test_a_frozen_tower_computes_each_input_once(build_trainer, tiny, captions, computed, frozen):
    loras = {"image_lora": SMALL, "text_lora": SMALL}
    loras["image_lora" if frozen is AlignVisionModel else "text_lora"] = None
    found = fit(AlignTask, build_trainer, tiny, captions, **loras)
    assert computed[frozen] == rows_of(captions, "train", "val")
    once = dict(computed)
    plain = fit(type("Plain", (AlignTask,), {"setup": forget}), build_trainer, tiny, captions, **loras)
    assert computed[frozen] > 3 * once[frozen]
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


def test_a_linear_probe_computes_each_image_once(build_trainer, tiny, labels, computed):
    found = fit(ClassificationTask, build_trainer, tiny, labels, image_lora=None)
    assert computed[AlignVisionModel] == rows_of(labels, "train", "val")
    plain = fit(type("Plain", (ClassificationTask,), {"setup": forget}), build_trainer, tiny, labels, image_lora=None)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


def test_head_first_computes_each_image_once_until_all_is_trained(build_trainer, tiny, labels, computed):
    fit(ClassificationTask, build_trainer, tiny, labels, [HeadFirst(EPOCHS)], image_lora=SMALL, head_start=None)
    start = rows_of(labels, "train")  # shown to the head's start before adapters are frozen
    sanity = rows_of(labels, "val")  # and validated before training starts
    assert computed[AlignVisionModel] == start + sanity + rows_of(labels, "train", "val")

"""The task in Lightning's own hands: a Trainer, checkpoints, loaders without a data module."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.classifier_task import ClassifierTask
from finetune.export.classifier import build_classifier
from finetune.model.base import load_model
from finetune.model.head import Head
from finetune.model.lora import TowerLora
from finetune.objectives import Classification, Contrastive, FromProbe, Objective, Sigmoid
from finetune.training.task import AlignTask

SMALL = TowerLora(rank=2)


def classify(tiny: str) -> AlignTask:
    return AlignTask(tiny, SMALL, None, objective=Classification(head_start=FromProbe()))


def contrast(tiny: str, objective: Objective | None = None, **settings: object) -> AlignTask:
    return AlignTask(tiny, SMALL, SMALL, objective=objective or Contrastive(), **settings)


def train(build_trainer, task: AlignTask, data: ImageTextDataModule, path: Path) -> Path:
    """The checkpoint of a short training, as Lightning saves it."""
    trainer = build_trainer(max_epochs=1)
    trainer.fit(task, data)
    trainer.save_checkpoint(path)
    return path


# ---- checkpoints


@pytest.mark.parametrize("way", ["ckpt_path", "load_from_checkpoint"])
def test_head_of_a_checkpoint_is_that_which_was_trained(tmp_path, build_trainer, tiny, labels, way):
    trained = classify(tiny)
    path = train(build_trainer, trained, labels, tmp_path / "last.ckpt")
    expected = build_trainer().test(trained, labels, verbose=False)
    assert expected != build_trainer().test(classify(tiny), labels, verbose=False)
    if way == "ckpt_path":
        again = classify(tiny)
        found = build_trainer().test(again, labels, ckpt_path=path, verbose=False)
    else:
        settings = {"image_lora": SMALL, "text_lora": None, "objective": Classification()}
        again = AlignTask.load_from_checkpoint(path, checkpoint=tiny, **settings)
        found = build_trainer().test(again, labels, verbose=False)
    assert found == expected
    tensors = again.state_dict()
    assert {"objective.weight", "objective.bias", "objective.start_weight", "objective.start_bias"} <= tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in trained.state_dict().items())
    assert not torch.equal(tensors["objective.weight"], tensors["objective.start_weight"])


def test_training_goes_on_from_the_head_of_a_checkpoint(tmp_path, build_trainer, tiny, labels):
    path = train(build_trainer, classify(tiny), labels, tmp_path / "last.ckpt")
    whole, resumed = classify(tiny), classify(tiny)
    build_trainer(max_epochs=2).fit(whole, labels)
    build_trainer(max_epochs=2).fit(resumed, labels, ckpt_path=path)
    assert resumed.head.weight.shape == whole.head.weight.shape
    assert torch.equal(resumed.head.start_weight, whole.head.start_weight)


def test_weights_without_a_place_are_refused(tmp_path, build_trainer, tiny, labels):
    head = train(build_trainer, classify(tiny), labels, tmp_path / "head.ckpt")
    with pytest.raises(CheckpointError, match=r"that have no place in it, the first of 4: objective\.bias\. Build"):
        build_trainer().test(contrast(tiny), labels, ckpt_path=head, verbose=False)
    sigmoid = train(build_trainer, contrast(tiny, Sigmoid()), labels, tmp_path / "sigmoid.ckpt")
    with pytest.raises(CheckpointError, match=r"that have no place in it, the first of 1: objective\.bias\. Build"):
        AlignTask.load_from_checkpoint(sigmoid, checkpoint=tiny, image_lora=SMALL, text_lora=SMALL)
    with pytest.raises(CheckpointError, match=r"the first of \d+: towers\..*lora_A.*\. Build the task"):
        AlignTask.load_from_checkpoint(sigmoid, checkpoint=tiny, image_lora=SMALL, text_lora=None, objective=Sigmoid())


def test_a_subclass_is_loaded_as_itself(tmp_path, build_trainer, tiny, labels):
    class Named(AlignTask):
        def __init__(self, name: str, checkpoint: str) -> None:
            super().__init__(checkpoint, SMALL, SMALL)
            self.name = name
            self.save_hyperparameters()

    trained = Named("one", tiny)
    path = train(build_trainer, trained, labels, tmp_path / "last.ckpt")
    assert Named.load_from_checkpoint(path).name == "one"
    again = Named.load_from_checkpoint(path, name="two", checkpoint=tiny)
    assert (type(again), again.name) == (Named, "two")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trained.state_dict().items())


# ---- loaders without a data module


def plain(loader: DataLoader) -> DataLoader:
    """A loader of torch's own with the batches of another in the same order."""
    return DataLoader(list(loader), batch_size=None)


def test_loaders_alone_train_and_measure_as_their_data_module_does(build_trainer, tiny, colour_table):
    table = Table(str(colour_table), caption="caption", split="split")
    data = ImageTextDataModule(table, tiny, batch_size=8)
    expected, found = contrast(tiny), contrast(tiny)
    expected.load_state_dict(found.state_dict())
    with_data, without = (build_trainer(max_steps=3) for _ in range(2))
    with_data.fit(expected, data)
    without.fit(found, plain(data.train_dataloader()), plain(data.val_dataloader()))
    metrics = {name: float(value) for name, value in with_data.callback_metrics.items()}
    assert "val/mean_R@K" in metrics
    assert {name: float(value) for name, value in without.callback_metrics.items()} == pytest.approx(metrics, rel=1e-4)
    rates = with_data.test(expected, data, verbose=False)
    assert without.test(expected, plain(data.test_dataloader()), verbose=False) == rates


def test_a_head_needs_the_names_of_its_classes(build_trainer, tiny, labels):
    batches = plain(labels.test_dataloader())
    message = r"data\.table\.label to name a column with Classification, but got loaders without a table\. Give the"
    with pytest.raises(RecipeError, match=message):
        build_trainer(max_steps=1).fit(classify(tiny), batches, batches)
    with pytest.raises(RecipeError, match=message):
        build_trainer().test(classify(tiny), batches, verbose=False)


def test_a_classifier_needs_the_names_of_its_classes(tmp_path, build_trainer, tiny, labels):
    weight, bias = torch.randn(3, 64), torch.zeros(3)
    build_classifier(load_model(tiny), Head(weight, bias, ("a", "b", "c"), weight, bias)).save_pretrained(tmp_path)
    with pytest.raises(TableError, match=r"the classifier's 3 classes, a, b, c, but got none\. Take a table with"):
        build_trainer().test(ClassifierTask(tmp_path), plain(labels.test_dataloader()), verbose=False)


# ---- the temperature


def test_a_temperature_that_is_not_trained_stays(build_trainer, tiny, labels):
    task = contrast(tiny, train_temperature=False, min_temperature=0.2)
    task.towers.temperature.data.fill_(0.05)
    build_trainer(max_steps=1).fit(task, labels)
    assert task.towers.temperature.item() == torch.tensor(0.05).item()

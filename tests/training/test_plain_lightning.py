"""The tasks in Lightning's own hands: a Trainer, checkpoints, subclasses, loaders without a data module."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from finetune.core.errors import CheckpointError, RecipeError
from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.model.lora import TowerLora
from finetune.objectives import Contrastive, Objective, Sigmoid
from finetune.training.classification_task import ClassificationTask
from finetune.training.head_start import FromProbe
from finetune.training.task import AlignTask

SMALL = TowerLora(rank=2)


def classify(tiny: str) -> ClassificationTask:
    return ClassificationTask(tiny, SMALL, head_start=FromProbe(views=2))


def contrast(tiny: str, objective: Objective | None = None, **settings: object) -> AlignTask:
    return AlignTask(tiny, SMALL, SMALL, objective=objective or Contrastive(), **settings)


def train(build_trainer, task: AlignTask, data: ImageTextDataModule, path: Path) -> Path:
    """The checkpoint of a short training, as Lightning saves it."""
    trainer = build_trainer(max_epochs=1)
    trainer.fit(task, data)
    trainer.save_checkpoint(path)
    return path


# ---- checkpoints


@pytest.mark.parametrize("way", ["load_from_checkpoint", pytest.param("ckpt_path", marks=pytest.mark.slow)])
def test_head_of_a_checkpoint_is_that_which_was_trained(tmp_path, build_trainer, tiny, labels, way):
    trained = classify(tiny)
    path = train(build_trainer, trained, labels, tmp_path / "last.ckpt")
    expected = build_trainer().test(trained, labels, verbose=False)
    assert expected != build_trainer().test(classify(tiny), labels, verbose=False)
    if way == "ckpt_path":
        again = classify(tiny)
        found = build_trainer().test(again, labels, ckpt_path=path, verbose=False)
    else:
        again = ClassificationTask.load_from_checkpoint(path, checkpoint=tiny, image_lora=SMALL)
        found = build_trainer().test(again, labels, verbose=False)
    assert found == expected
    assert (again.head.classes, again.head.is_multilabel) == (labels.rows.classes, False)
    tensors = again.state_dict()
    assert {"head.weight", "head.bias", "head.start_weight", "head.start_bias"} <= tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in trained.state_dict().items())
    assert not torch.equal(tensors["head.weight"], tensors["head.start_weight"])


def test_a_checkpoint_holds_the_trained_weights_and_the_names_of_classes(tmp_path, build_trainer, tiny, labels):
    task = classify(tiny)
    saved = torch.load(train(build_trainer, task, labels, tmp_path / "last.ckpt"), weights_only=True)
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert set(saved["state_dict"]) == trained | {"head.start_weight", "head.start_bias"}
    assert saved["head"] == {"classes": list(labels.rows.classes), "is_multilabel": False}
    head_alone = ClassificationTask(tiny, None)
    saved = torch.load(train(build_trainer, head_alone, labels, tmp_path / "head.ckpt"), weights_only=True)
    assert set(saved["state_dict"]) == {"head.weight", "head.bias", "head.start_weight", "head.start_bias"}


def test_training_goes_on_from_the_head_of_a_checkpoint(tmp_path, build_trainer, tiny, labels):
    path = train(build_trainer, classify(tiny), labels, tmp_path / "last.ckpt")
    whole, resumed = classify(tiny), classify(tiny)
    build_trainer(max_epochs=2).fit(whole, labels)
    build_trainer(max_epochs=2).fit(resumed, labels, ckpt_path=path)
    assert resumed.head.weight.shape == whole.head.weight.shape
    assert torch.equal(resumed.head.start_weight, whole.head.start_weight)


@pytest.mark.parametrize("build", [classify, pytest.param(contrast, marks=pytest.mark.slow)])
def test_resumed_training_ends_as_one_that_was_not_stopped(tmp_path, build_trainer, tiny, labels, build):
    """Stopped within the first epoch of three steps, and after it."""

    def build_task() -> AlignTask:
        seed_everything(0, verbose=False)
        return build(tiny)

    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    start, straight = build_task().state_dict(), build_task()
    build_trainer(max_epochs=2, callbacks=[saving], enable_checkpointing=True).fit(straight, labels)
    expected = straight.state_dict()
    assert any(not tensor.equal(expected[name]) for name, tensor in start.items() if "lora_B" in name)
    for step in (2, 4):
        resumed = build_task()
        build_trainer(max_epochs=2).fit(resumed, labels, ckpt_path=tmp_path / f"step={step}.ckpt")
        for name, tensor in resumed.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])


def test_weights_without_a_place_are_refused(tmp_path, build_trainer, tiny, labels):
    head = train(build_trainer, classify(tiny), labels, tmp_path / "head.ckpt")
    with pytest.raises(CheckpointError, match=r"that have no place in it, the first of 4: head\.bias\. Build"):
        build_trainer().test(contrast(tiny), labels, ckpt_path=head, verbose=False)
    sigmoid = train(build_trainer, contrast(tiny, Sigmoid()), labels, tmp_path / "sigmoid.ckpt")
    with pytest.raises(CheckpointError, match=r"that have no place in it, the first of 1: objective\.bias\. Build"):
        AlignTask.load_from_checkpoint(sigmoid, checkpoint=tiny, image_lora=SMALL, text_lora=SMALL)
    with pytest.raises(CheckpointError, match=r"the first of \d+: towers\..*lora_A.*\. Build the task"):
        AlignTask.load_from_checkpoint(sigmoid, checkpoint=tiny, image_lora=SMALL, text_lora=None, objective=Sigmoid())


# ---- warnings


class Frozen(LightningModule):
    """Somebody else's module, with a layer in evaluation mode by mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1).eval()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("build", [contrast, pytest.param(classify, marks=pytest.mark.slow)])
def test_layers_that_are_meant_to_be_in_evaluation_mode_are_not_warned_of(tiny, labels, build_trainer, build):
    task, options = build(tiny), {"max_steps": 1, "limit_val_batches": 0}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        build_trainer(**options).fit(task, labels)
        assert not [warning for warning in found if "eval mode" in str(warning.message)]
        assert sum(not module.training for module in task.modules()) > 50
        build_trainer(**options).fit(Frozen(), DataLoader(torch.ones(2, 1)))
        assert [warning for warning in found if "Found 1 module(s) in eval mode" in str(warning.message)]


# ---- subclasses


class Named(AlignTask):
    def __init__(self, name: str, checkpoint: str | Base) -> None:
        super().__init__(checkpoint, SMALL, SMALL)
        self.name = name
        self.save_hyperparameters()


class NamedClassification(ClassificationTask):
    def __init__(self, name: str, checkpoint: str | Base) -> None:
        super().__init__(checkpoint, SMALL)
        self.name = name
        self.save_hyperparameters()


@pytest.mark.parametrize("kind", [NamedClassification, pytest.param(Named, marks=pytest.mark.slow)])
def test_a_subclass_is_loaded_as_itself(tmp_path, build_trainer, tiny, labels, kind):
    trained = kind("one", tiny)
    path = train(build_trainer, trained, labels, tmp_path / "last.ckpt")
    assert kind.load_from_checkpoint(path).name == "one"
    again = kind.load_from_checkpoint(path, name="two", checkpoint=tiny)
    assert (type(again), again.name) == (kind, "two")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trained.state_dict().items())


class NamedData(ImageTextDataModule):
    def __init__(self, path: str, checkpoint: str | Base) -> None:
        super().__init__(Table(path, label="label", split="split"), checkpoint, batch_size=8)
        self.save_hyperparameters()


@pytest.mark.parametrize("kind", [Named, pytest.param(NamedClassification, marks=pytest.mark.slow)])
def test_a_base_is_saved_as_its_name(tmp_path, build_trainer, own_tiny, colour_table, kind, count_opens):
    """Neither the checkpoint nor the logged hyperparameters nor Lightning's copies of them hold its weights."""
    base = Base.open(own_tiny)
    opens = count_opens(base.folder / "model.safetensors")
    task, data = kind("one", base), NamedData(str(colour_table), base)
    trainer = build_trainer(max_steps=1, logger=CSVLogger(tmp_path))
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert task.hparams["checkpoint"] is task.hparams_initial["checkpoint"] is base
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"] == {"name": "one", "checkpoint": base.name}
    assert saved["datamodule_hyper_parameters"] == {"path": str(colour_table), "checkpoint": base.name}
    logged = Path(trainer.logger.log_dir, "hparams.yaml").read_text()
    assert base.name in logged
    assert len(logged) < 1000
    assert opens() == 1
    again = kind.load_from_checkpoint(tmp_path / "last.ckpt")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in task.state_dict().items())
    tested = build_trainer().test(again, data, verbose=False)
    assert tested == build_trainer().test(kind("two", base), data, ckpt_path=tmp_path / "last.ckpt", verbose=False)


class Scaled(ClassificationTask):
    """Scales features by a number of its own, and logs its own loss."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(checkpoint, SMALL)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        embeddings = self(batch)
        loss = self.loss(embeddings._replace(image_features=self.scale * embeddings.image_features), batch)
        self.log("train/scaled", loss, batch_size=len(batch.rows))
        return loss


def test_what_a_subclass_adds_is_trained_and_saved(tmp_path, build_trainer, tiny, labels):
    task = Scaled(tiny)
    trainer = build_trainer(max_epochs=1)
    trainer.fit(task, labels)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert task.scale.item() != 1
    assert "train/scaled" in trainer.callback_metrics
    rates = {id(p): group["initial_lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert rates[id(task.head.weight)] == 5 * rates[id(task.scale)]
    assert Scaled.load_from_checkpoint(tmp_path / "last.ckpt", checkpoint=tiny).scale.equal(task.scale)


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
    losses = with_data.validate(expected, data, verbose=False)
    assert without.validate(expected, plain(data.val_dataloader()), verbose=False) == losses


def test_a_head_needs_the_names_of_its_classes(build_trainer, tiny, labels):
    batches = plain(labels.test_dataloader())
    message = r"data\.table\.label to name a column with ClassificationTask, but got loaders without a table\. Give the"
    with pytest.raises(RecipeError, match=message):
        build_trainer(max_steps=1).fit(classify(tiny), batches, batches)
    for ask in (build_trainer().test, build_trainer().validate):
        with pytest.raises(RecipeError, match=message):
            ask(classify(tiny), batches, verbose=False)


@pytest.mark.parametrize("build", [classify, contrast])
def test_batches_are_embedded_with_loaders_alone(build_trainer, tiny, labels, build):
    """`predict` needs no names of classes."""
    task, batches = build(tiny), list(labels.test_dataloader())
    found = build_trainer().predict(task, plain(batches))
    with torch.no_grad():
        for embeddings, batch in zip(found, batches, strict=True):
            torch.testing.assert_close(embeddings.image_features, task.towers.image_features(batch.pixel_values))
            assert (embeddings.text_features is None) == (build is classify)


# ---- the temperature


def test_a_temperature_that_is_not_trained_stays(build_trainer, tiny, labels):
    task = contrast(tiny, train_temperature=False, min_temperature=0.2)
    task.towers.temperature.data.fill_(0.05)
    build_trainer(max_steps=1).fit(task, labels)
    assert task.towers.temperature.item() == torch.tensor(0.05).item()

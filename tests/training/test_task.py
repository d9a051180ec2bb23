"""The task: steps that train, what is logged, what is saved, how many steps there are."""

import copy
from typing import Any

import pytest
import torch
from torch.optim import SGD

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.inference.embed import embed_classes
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.retrieval import Retrieval
from finetune.model.base import Base
from finetune.model.lora import TowerLora
from finetune.objectives import Contrastive, Sigmoid
from finetune.training.preservation import TextPreservation
from finetune.training.schedules import total_steps
from finetune.training.task import AlignTask

SMALL = TowerLora(rank=2)


@pytest.fixture
def captions(colour_table, tiny) -> ImageTextDataModule:
    return ImageTextDataModule(Table(str(colour_table), caption="caption", split="split"), tiny, batch_size=8)


def base_tensors(task: AlignTask) -> dict[str, torch.Tensor]:
    """Copies of what must not change: everything but adapters and temperature."""
    return {
        name: tensor.clone()
        for name, tensor in task.towers.state_dict().items()
        if "lora_" not in name and not name.endswith("temperature")
    }


@pytest.mark.parametrize("kind", ["labels", "captions"])
def test_training_changes_adapters_and_temperature_and_nothing_else(build_trainer, tiny, kind, request):
    data = request.getfixturevalue(kind)
    task = AlignTask(tiny, SMALL, SMALL)
    base, before = base_tensors(task), copy.deepcopy(task.towers.state_dict())
    task.towers.train()
    trainer = build_trainer(max_epochs=2)
    trainer.fit(task, data)
    assert all(torch.equal(tensor, base[name]) for name, tensor in base_tensors(task).items())
    changed = {name for name, tensor in task.towers.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("vision_model" in name and "lora_B" in name for name in changed)
    assert any("text_model" in name and "lora_B" in name for name in changed)
    assert any(name.endswith("temperature") for name in changed)
    assert {"train/loss", "val/loss", "train/temperature"} <= set(trainer.callback_metrics)


def test_label_metrics_equal_a_loop_over_rows(build_trainer, tiny, labels):
    task = AlignTask(tiny, None, None)
    found = build_trainer().test(task, labels, verbose=False)[0]
    classes = embed_classes(task.towers, labels.class_prompts, task.device)
    metric = ClassAccuracy()
    with torch.no_grad():
        for batch in labels.test_dataloader():
            metric.update(task(batch).image_embeds @ classes.T, batch.label_ids)
    assert {name.removeprefix("test/"): value for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in metric.compute().items()}
    )


def test_caption_metrics_equal_one_update_with_all_rows(build_trainer, tiny, captions):
    task = AlignTask(tiny, None, None)
    found = build_trainer().test(task, captions, verbose=False)[0]
    metric = Retrieval()
    with torch.no_grad():
        for batch in captions.test_dataloader():
            embeddings = task(batch)
            metric.update(embeddings.image_embeds, embeddings.text_embeds, batch.image_ids, batch.caption_ids)
    expected = {f"test/{name}": float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(expected)
    assert "test/image_to_text/R@1" in found


def test_templates_are_averaged_on_the_sphere(tiny, colour_table):
    templates = ("a {}.", "one {} thing")
    table = Table(str(colour_table), label="label", split="split")
    data = ImageTextDataModule(table, tiny, templates=templates)
    task = AlignTask(tiny, None, None).eval()
    embeds = embed_classes(task.towers, data.class_prompts, task.device)
    for index, name in enumerate(data.rows.classes):
        parts = []
        for template in templates:
            inputs = data.processor(text=template.replace("{}", name), return_tensors="pt")
            with torch.no_grad():
                parts.append(task.towers.align.get_text_features(**inputs).pooler_output[0])
        mean = sum(part / part.norm() for part in parts)
        torch.testing.assert_close(embeds[index], mean / mean.norm(), atol=1e-5, rtol=0)


def test_steps_are_counted_from_lengths(build_trainer, labels):
    trainer = build_trainer(max_epochs=3, accumulate_grad_batches=2)
    trainer.datamodule = labels
    assert len(labels.rows.indices("train")) == 18
    assert total_steps(trainer) == 3 * 2
    trainer.limit_train_batches = 1
    assert total_steps(trainer) == 3
    assert total_steps(build_trainer(max_steps=5)) == 5


def test_checkpoint_holds_trained_weights_only_and_restores_them(tmp_path, build_trainer, tiny, labels):
    task = AlignTask(tiny, SMALL, SMALL, objective=Sigmoid())
    trainer = build_trainer(max_steps=2)
    trainer.fit(task, labels)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name for name, parameter in task.named_parameters() if parameter.requires_grad} == set(weights)
    again = AlignTask(tiny, SMALL, SMALL, objective=Sigmoid())
    assert not again.load_state_dict(weights, strict=False).unexpected_keys
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in task.state_dict().items())


class Unfrozen(AlignTask):
    """Trains a layer of the base by itself, and keeps what it was built with."""

    def __init__(self, margin: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.save_hyperparameters()
        self.towers.align.text_projection.requires_grad_(True)


def test_a_subclass_that_frees_a_layer_and_keeps_its_arguments_comes_back(tmp_path, build_trainer, tiny, labels):
    options = {"checkpoint": tiny, "image_lora": SMALL, "text_lora": None, "text_preservation": TextPreservation()}
    task = Unfrozen(0.3, **options)
    trainer = build_trainer(max_steps=2)
    trainer.fit(task, labels)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Unfrozen.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.hparams.margin == 0.3
    name = next(name for name in task.state_dict() if name.endswith("text_projection.weight"))
    assert not torch.equal(task.state_dict()[name], AlignTask(tiny, SMALL, None).state_dict()[name])
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in task.state_dict().items())


def test_objective_given_to_two_tasks_is_not_shared(tiny):
    objective = Sigmoid()
    first, second = (AlignTask(tiny, None, None, objective=objective) for _ in range(2))
    assert first.objective is not second.objective


def test_tasks_share_one_base(build_trainer, own_tiny, captions, count_opens):
    """The weights are read once, and training one task changes neither the other nor the base."""
    base = Base.open(own_tiny)
    opens = count_opens(base.folder / "model.safetensors")
    first, second = AlignTask(base, SMALL, SMALL), AlignTask(base, TowerLora(rank=2, whole=["all"]), None)
    assert opens() == 1
    before, weights = base_tensors(second), {name: tensor.clone() for name, tensor in base.tensors.items()}
    second_fit = build_trainer(max_steps=2)
    second_fit.fit(second, captions)
    build_trainer(max_steps=2).fit(first, captions)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in base_tensors(second).items())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.tensors.items())
    assert all(
        torch.equal(tensor, weights[name.replace("base_layer.", "").removeprefix("towers.model.base_model.model.")])
        for name, tensor in first.state_dict().items()
        if "lora_" not in name and not name.endswith("temperature")
    )
    assert opens() == 1


def test_a_temperature_alone_is_nothing_to_export(tiny):
    assert AlignTask(tiny, SMALL, None).trains
    assert AlignTask(tiny, None, SMALL).trains
    assert not AlignTask(tiny, None, None).trains


def test_temperature_stays_above_its_bound_in_training(build_trainer, tiny, labels):
    task = AlignTask(
        tiny, None, None, min_temperature=0.04, optimizer=lambda groups: SGD(groups, lr=1e6), objective=Contrastive()
    )
    build_trainer(max_steps=3).fit(task, labels)
    assert task.towers.temperature.item() >= torch.tensor(0.04).item()


class ByHand(AlignTask):
    """Steps the optimizer itself."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(self(batch), batch))
        optimizer.step()


def test_temperature_stays_above_its_bound_where_a_subclass_steps_by_hand(build_trainer, tiny, labels):
    task = ByHand(tiny, None, None, min_temperature=0.04, optimizer=lambda groups: SGD(groups, lr=1e6))
    build_trainer(max_steps=3).fit(task, labels)
    assert task.towers.temperature.item() >= torch.tensor(0.04).item()


def test_weights_rounded_by_precision_are_of_the_same_checkpoint(build_trainer, tiny, labels):
    task = AlignTask(tiny, None, None)
    trainer = build_trainer(precision="bf16-true")
    first, second = (trainer.test(task, labels, verbose=False) for _ in range(2))
    assert first == second


def test_several_processes_that_know_nothing_of_each_other_are_refused(build_trainer, tiny, labels):
    trainer = build_trainer(strategy="ddp_fork", devices=2)
    with pytest.raises(Exception, match="one device, or DataParallel as its strategy, but got DDPStrategy of 2 proc"):
        trainer.test(AlignTask(tiny, None, None), labels.test_dataloader())

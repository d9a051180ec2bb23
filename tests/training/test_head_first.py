"""A task with a head: how it starts, what is trained when, and what a checkpoint of either stage holds."""

from functools import partial

import pytest
import torch
from lightning import Callback, seed_everything
from torch.optim import SGD

from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.lora import TowerLora
from finetune.objectives import Classification, FromPrompts
from finetune.training.head_first import HeadFirst
from finetune.training.task import AlignTask


def build_task(tiny, image_lora=TowerLora(rank=2)) -> AlignTask:  # noqa: B008 (frozen)
    seed_everything(0, verbose=False)
    return AlignTask(tiny, image_lora, None, objective=Classification())


class Snapshots(Callback):
    """The trained weights after each step, and a checkpoint after the steps named."""

    def __init__(self, folder, *steps):
        self.folder, self.steps = folder, steps
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append({name: tensor.clone() for name, tensor in trained(pl_module).items()})
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def trained(task: AlignTask) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in task.state_dict().items() if "lora_" in name or "objective" in name}


def changed(before, after) -> set[str]:
    return {"head" if "objective" in name else "adapter" for name in before if not before[name].equal(after[name])}


@torch.no_grad()
def test_step_zero_ranks_as_the_base_does(build_trainer, tiny, labels):
    task, base = build_task(tiny), AlignTask(tiny, None, None)
    task.optimizer = partial(SGD, lr=0.0)
    batch = next(iter(labels.test_dataloader()))
    class_embeds = base.class_embeds(labels.class_prompts)
    zero_shot = base.class_scores(base(batch).image_features, class_embeds)
    assert task.class_scores(task(batch).image_features, class_embeds).equal(zero_shot)
    build_trainer(max_steps=1).fit(task, labels)
    assert task.head.is_started
    scores = task.class_scores(task(batch).image_features, class_embeds)
    assert scores.argsort(dim=1).equal(zero_shot.argsort(dim=1))
    assert scores.std().item() == pytest.approx(zero_shot.std().item(), rel=0.2)


def test_texts_are_not_embedded_in_training(build_trainer, tiny, labels):
    task = build_task(tiny)
    build_trainer(max_steps=1).fit(task, labels)
    assert task(next(iter(labels.train_dataloader()))).text_features.shape == (0, 64)
    assert not task.towers.temperature.requires_grad


def test_head_has_a_learning_rate_of_its_own(build_trainer, tiny, labels):
    task = build_task(tiny)
    task.optimizer = partial(SGD, lr=0.01)
    trainer = build_trainer(max_steps=1)
    trainer.fit(task, labels)
    groups = trainer.optimizers[0].param_groups
    found = {id(parameter): group["initial_lr"] for group in groups for parameter in group["params"]}
    assert {found[id(parameter)] for parameter in task.head.parameters()} == {0.01 * task.head.lr_scale}
    assert {found[id(p)] for p in task.towers.parameters() if p.requires_grad} == {0.01}


def test_linear_probe_changes_the_head_alone(tmp_path, build_trainer, tiny, labels):
    task = build_task(tiny, image_lora=None)
    before = {name: tensor.clone() for name, tensor in task.towers.state_dict().items()}
    snapshots = Snapshots(tmp_path)
    build_trainer(callbacks=[snapshots], max_steps=2).fit(task, labels)
    assert changed(*snapshots.weights) == {"head"}
    assert all(tensor.equal(before[name]) for name, tensor in task.towers.state_dict().items())


def test_adapters_wait_for_the_head(tmp_path, build_trainer, tiny, labels):
    """Three steps an epoch: two epochs of the head alone, then all."""
    task, snapshots = build_task(tiny), Snapshots(tmp_path)
    build_trainer(callbacks=[HeadFirst(2), snapshots], max_epochs=3).fit(task, labels)
    steps = snapshots.weights
    assert len(steps) == 9
    assert [changed(steps[i], steps[i + 1]) for i in range(5)] == [{"head"}] * 5
    assert [changed(steps[i], steps[i + 1]) for i in range(5, 8)] == [{"head", "adapter"}] * 3


def test_checkpoint_of_the_heads_stage_takes_the_adapters_back(tmp_path, build_trainer, tiny, labels):
    """The best weights may be those of the first stage; the adapters of the last must not stay with them."""
    task, snapshots = build_task(tiny), Snapshots(tmp_path, 3)
    build_trainer(callbacks=[HeadFirst(1), snapshots], max_epochs=2).fit(task, labels)
    assert changed(snapshots.weights[2], trained(task)) == {"head", "adapter"}
    weights = torch.load(tmp_path / "3.ckpt", weights_only=True)["state_dict"]
    assert not task.load_state_dict(weights, strict=False).unexpected_keys
    assert not changed(snapshots.weights[2], trained(task))


@pytest.mark.parametrize("step", [2, 3, 4])
def test_resumed_run_ends_as_one_that_was_not_stopped(tmp_path, build_trainer, tiny, labels, step):
    """Stopped in the head's stage, at its end, and after it."""
    straight, snapshots = build_task(tiny), Snapshots(tmp_path, step)
    build_trainer(callbacks=[HeadFirst(1), snapshots], max_epochs=2).fit(straight, labels)
    resumed, later = build_task(tiny), Snapshots(tmp_path)
    build_trainer(callbacks=[HeadFirst(1), later], max_epochs=2).fit(
        resumed, labels, ckpt_path=tmp_path / f"{step}.ckpt"
    )
    assert len(later.weights) == 6 - step
    for name, tensor in trained(straight).items():
        torch.testing.assert_close(trained(resumed)[name], tensor)


def test_refuses_what_has_no_head(build_trainer, tiny, labels):
    with pytest.raises(ValueError, match=r"Expected epochs to be at least 1, but got 0\. Remove HeadFirst"):
        HeadFirst(0)
    task = AlignTask(tiny, TowerLora(rank=2), None)
    with pytest.raises(RecipeError, match="with the objective Classification, which has a head, but got one without"):
        build_trainer(callbacks=[HeadFirst()], max_steps=1).fit(task, labels)


def test_head_needs_labels_and_no_text_adapters(build_trainer, tiny, colour_table):
    with pytest.raises(ValueError, match="Expected text_lora to be null with Classification, which reads no texts"):
        AlignTask(tiny, None, TowerLora(rank=2), objective=Classification())
    captions = ImageTextDataModule(Table(str(colour_table), caption="caption", split="split"), tiny, batch_size=8)
    with pytest.raises(RecipeError, match=r"Expected data\.table\.label to name a column with Classification"):
        build_trainer(max_steps=1).fit(build_task(tiny), captions)


class Noting(FromPrompts):
    """Keeps what it saw; wants every row twice."""

    views = 2

    def __call__(self, class_embeds, temperature, seen):
        self.seen = seen
        return super().__call__(class_embeds, temperature, seen)


@torch.no_grad()
def test_start_sees_the_rows_as_often_as_it_asks(build_trainer, tiny, labels):
    """What the untouched tower says of the training rows, pass after pass, in the order of training."""
    task, base, start = build_task(tiny), AlignTask(tiny, None, None), Noting(rows=10_000)
    task.objective.head_start = start
    build_trainer(max_steps=1).fit(task, labels)
    loader, expected = labels.train_dataloader(), []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        expected += [(base.towers.image_features(batch.pixel_values), batch.label_ids) for batch in loader]
    torch.testing.assert_close(start.seen.image_features, torch.cat([features for features, _ in expected]))
    assert start.seen.truth.equal(torch.cat([label_ids for _, label_ids in expected]))
    first, second = start.seen.truth.chunk(2)
    assert not first.equal(second)
    assert first.sort().values.equal(second.sort().values)

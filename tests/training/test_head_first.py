"""The head trains alone, then everything, and a checkpoint of either stage holds what it should."""

import pytest
import torch
from lightning import Callback, seed_everything

from finetune.core.errors import RecipeError
from finetune.model.lora import TowerLora
from finetune.training.classification_task import ClassificationTask
from finetune.training.head_first import HeadFirst
from finetune.training.task import AlignTask


def build_task(tiny) -> ClassificationTask:
    seed_everything(0, verbose=False)
    return ClassificationTask(tiny, TowerLora(rank=2))


class Snapshots(Callback):
    """The trained weights after each step, and a checkpoint after the steps named."""

    def __init__(self, folder, *steps):
        self.folder, self.steps = folder, steps
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append({name: tensor.clone() for name, tensor in trained(pl_module).items()})
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def trained(task: ClassificationTask) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in task.state_dict().items() if "lora_" in name or name.startswith("head.")}


def changed(before, after) -> set[str]:
    names = {name for name in before if not before[name].equal(after[name])}
    return {"head" if name.startswith("head.") else "adapter" for name in names}


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


@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 4))])
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


class Interrupted(Callback):
    """Stops a fit as Ctrl-C does."""

    def on_train_batch_end(self, *_):
        raise KeyboardInterrupt


def test_an_interrupted_fit_leaves_the_adapters_trainable(tmp_path, build_trainer, tiny, labels):
    """In a notebook the same task is fitted again."""
    task = build_task(tiny)
    needs = {name for name, parameter in task.towers.named_parameters() if parameter.requires_grad}
    with pytest.raises(SystemExit):
        build_trainer(callbacks=[HeadFirst(1), Interrupted()], max_epochs=2).fit(task, labels)
    assert needs == {name for name, parameter in task.towers.named_parameters() if parameter.requires_grad}
    snapshots = Snapshots(tmp_path)
    build_trainer(callbacks=[HeadFirst(1), snapshots], max_epochs=2).fit(task, labels)
    assert changed(snapshots.weights[0], snapshots.weights[2]) == {"head"}
    assert changed(snapshots.weights[2], snapshots.weights[5]) == {"head", "adapter"}


def test_refuses_what_has_no_head(build_trainer, tiny, labels):
    with pytest.raises(ValueError, match=r"Expected epochs to be at least 1, but got 0\. Remove HeadFirst"):
        HeadFirst(0)
    task = AlignTask(tiny, TowerLora(rank=2), None)
    with pytest.raises(RecipeError, match="with ClassificationTask, which has a head, but got AlignTask"):
        build_trainer(callbacks=[HeadFirst()], max_steps=1).fit(task, labels)

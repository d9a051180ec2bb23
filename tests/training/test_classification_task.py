"""A task with a head: how the head starts, what is trained, what answers, and which tables suit it."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import seed_everything
from torch.optim import SGD
from transformers import AlignModel

from finetune.core.errors import RecipeError, TableError
from finetune.core.types import Embeddings
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.inference.models import HeadOnTower, ZeroShot
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.average_precision import AveragePrecision
from finetune.model.head import LinearHead
from finetune.model.lora import TowerLora
from finetune.objectives import CrossEntropy
from finetune.training.classification_task import ClassificationTask
from finetune.training.head_start import FromProbe, FromPrompts
from finetune.training.task import AlignTask

from ..pixels import scaled

SMALL = TowerLora(rank=2)


def build_task(tiny, image_lora: TowerLora | None = SMALL, **settings: object) -> ClassificationTask:
    seed_everything(0, verbose=False)
    return ClassificationTask(tiny, image_lora, **settings)


@pytest.fixture
def several_labels(colour_table, tiny, tmp_path) -> ImageTextDataModule:
    """The colours, each beside whether its number is even; some images have no label."""
    table = pd.read_csv(colour_table)
    even = np.where(table.index % 2, "", "|even")
    table["labels"] = np.where(table.index % 5, table["label"] + even, "")
    path = tmp_path / "several.csv"
    table.to_csv(path, index=False)
    images = str(colour_table.parent)
    source = Table(str(path), label="labels", label_separator="|", split="split", images=images)
    return ImageTextDataModule(source, tiny, batch_size=8)


def other_classes(folder: Path, colour_table, tiny, names: dict[str, str]) -> ImageTextDataModule:
    """The colours under other names."""
    table = pd.read_csv(colour_table).replace({"label": names})
    path = folder / "other.csv"
    table.to_csv(path, index=False)
    return ImageTextDataModule(
        Table(str(path), label="label", split="split", images=str(colour_table.parent)), tiny, batch_size=8
    )


# ---- the start


@torch.no_grad()
def test_step_zero_ranks_as_the_base_does(build_trainer, tiny, labels):
    """Before a fit class prompts answer, and a head that was not trained yet ranks as they do."""
    task, base = build_task(tiny), AlignTask(tiny, None, None)
    task.optimizer = partial(SGD, lr=0.0)
    batch = next(iter(labels.test_dataloader()))
    zero_shot = base.model(labels.class_prompts)(batch).class_scores
    before = task.model(labels.class_prompts)
    assert isinstance(before, ZeroShot)
    assert before(batch).class_scores.equal(zero_shot)
    build_trainer(max_steps=1).fit(task, labels)
    after = task.model(labels.class_prompts)
    assert isinstance(after, HeadOnTower)
    scores = after(batch).class_scores
    assert scores.argsort(dim=1).equal(zero_shot.argsort(dim=1))
    assert scores.std().item() == pytest.approx(zero_shot.std().item(), rel=0.2)


class Noting(FromPrompts):
    """Keeps what it saw; wants every row twice."""

    views = 2

    def __call__(self, class_embeds, temperature, seen):
        self.seen = seen
        return super().__call__(class_embeds, temperature, seen)


@torch.no_grad()
def test_start_sees_the_rows_as_often_as_it_asks(build_trainer, tiny, labels):
    """What the untouched tower says of the training rows, pass after pass, in the order of training."""
    start = Noting(rows=10_000)
    task, base = build_task(tiny, head_start=start), AlignTask(tiny, None, None)
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


@pytest.mark.parametrize(
    ("rows", "seen"), [*(pytest.param(*few, marks=pytest.mark.slow) for few in ((1, 6), (6, 6))), (7, 12), (19, 24)]
)
def test_start_sees_batches_until_there_are_enough_rows(build_trainer, tiny, labels, rows, seen):
    """Three batches of six an epoch, and two epochs."""
    start = Noting(rows)
    build_trainer(max_steps=1).fit(build_task(tiny, head_start=start), labels)
    assert len(start.seen.truth) == len(start.seen.image_features) == len(start.seen.weights) == seen


def test_a_head_that_is_there_is_kept(build_trainer, tiny, labels):
    task = build_task(tiny)
    task.optimizer = partial(SGD, lr=0.0)
    head = task.head = LinearHead(torch.ones(3, 64), torch.ones(3), labels.kind.classes)
    build_trainer(max_steps=1).fit(task, labels)
    assert task.head is head
    assert head.weight.equal(torch.ones(3, 64))


def test_a_head_knows_its_classes_and_their_kind(build_trainer, tiny, labels, several_labels):
    for data, is_multilabel in ((labels, False), (several_labels, True)):
        task = build_task(tiny, head_start=FromProbe(views=1))
        build_trainer(max_steps=1).fit(task, data)
        assert task.head.classes == data.rows.classes
        assert task.head.is_multilabel == is_multilabel


# ---- the steps


def test_texts_are_not_embedded_in_training(build_trainer, tiny, labels):
    task = build_task(tiny)
    asked = []
    task.towers.align.text_model.register_forward_hook(lambda *of: asked.append(len(of[2][0])))
    build_trainer(max_steps=1, limit_val_batches=0).fit(task, labels)
    assert asked == [3]  # the class prompts, once, for the start of the head
    assert task(next(iter(labels.train_dataloader()))).text_features is None
    assert not task.towers.temperature.requires_grad
    assert asked == [3]


def test_loss_is_that_of_the_head_and_reaches_nothing_else(build_trainer, tiny, labels):
    task = build_task(tiny)
    build_trainer(max_steps=1).fit(task, labels)
    task.zero_grad()
    batch = next(iter(labels.train_dataloader()))
    embeddings = task(batch)
    loss = task.loss(embeddings, batch)
    logits = embeddings.image_features @ task.head.weight.T + task.head.bias
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, batch.label_ids))
    features = torch.randn_like(embeddings.image_features)
    filled = embeddings._replace(text_features=features)
    assert task.loss(filled, batch).equal(loss)  # texts need not be there, and are not read
    loss.backward()
    reached = {name for name, parameter in task.named_parameters() if parameter.grad is not None}
    assert {"head.weight", "head.bias"} < reached
    assert all("lora_" in name and "vision_model" in name for name in reached - {"head.weight", "head.bias"})
    assert task.towers.temperature.grad is None


def test_half_precision_is_computed_in_float32(build_trainer, tiny, labels):
    task = build_task(tiny, objective=CrossEntropy([0.5, 3.0, 1.0]))
    build_trainer(max_steps=1).fit(task, labels)
    batch = next(iter(labels.train_dataloader()))
    features = task(batch).image_features.bfloat16()
    half, exact = (Embeddings(part, None, task.towers.temperature) for part in (features, features.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(half, batch)
    assert loss.dtype == torch.float32
    assert loss.equal(task.loss(exact, batch))


def test_head_has_a_learning_rate_of_its_own(build_trainer, tiny, labels):
    task = build_task(tiny, head_lr_scale=3.0)
    task.optimizer = partial(SGD, lr=0.01)
    trainer = build_trainer(max_steps=1)
    trainer.fit(task, labels)
    groups = trainer.optimizers[0].param_groups
    found = {id(parameter): group["initial_lr"] for group in groups for parameter in group["params"]}
    assert {found[id(parameter)] for parameter in task.head.parameters()} == {0.01 * 3.0}
    assert {found[id(p)] for p in task.towers.parameters() if p.requires_grad} == {0.01}
    assert len(found) == sum(parameter.requires_grad for parameter in task.parameters())


def test_linear_probe_changes_the_head_alone(build_trainer, tiny, labels):
    task = build_task(tiny, image_lora=None)
    assert task.trains
    before = {name: tensor.clone() for name, tensor in task.towers.state_dict().items()}
    build_trainer(max_steps=2).fit(task, labels)
    assert all(tensor.equal(before[name]) for name, tensor in task.towers.state_dict().items())
    assert not task.head.weight.equal(task.head.start_weight)


# ---- what is measured


@pytest.mark.parametrize("data", ["labels", "several_labels"])
def test_metrics_are_those_of_the_heads_logits(build_trainer, tiny, data, request):
    """On the features of plain transformers, as the adapters are untrained."""
    data = request.getfixturevalue(data)
    task = build_task(tiny, head_start=FromProbe(views=1))
    task.optimizer = partial(SGD, lr=0.0)
    build_trainer(max_steps=1).fit(task, data)
    found = build_trainer().validate(task, data, verbose=False)[0]
    plain, metric, loss = AlignModel.from_pretrained(tiny).eval(), data.kind.metric(), 0.0
    assert isinstance(metric, AveragePrecision if data.kind.is_multilabel else ClassAccuracy)
    for batch in data.val_dataloader():
        with torch.no_grad():
            pixels = scaled(batch.pixel_values, data.processor.image_processor)
            features = plain.get_image_features(pixels).pooler_output
            logits = features @ task.head.weight.T + task.head.bias
        metric.update(logits, batch.truth)
        if data.kind.is_multilabel:
            rows = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.targets.float(), reduction="none")
            loss += float(rows.mean(dim=1).sum())
        else:
            loss += float(torch.nn.functional.cross_entropy(logits, batch.label_ids, reduction="sum"))
    expected = {f"val/{name}": float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(expected | {"val/loss": loss / len(data.rows.indices("val"))}, rel=1e-4)
    tested = build_trainer().test(task, data, verbose=False)[0]
    assert tested.keys() == {f"test/{name}" for name in metric.compute()}


def test_before_a_fit_class_prompts_are_measured(build_trainer, tiny, labels):
    found = build_trainer().test(build_task(tiny), labels, verbose=False)
    assert found == build_trainer().test(AlignTask(tiny, None, None), labels, verbose=False)


def test_a_loss_needs_a_head(build_trainer, tiny, labels):
    with pytest.raises(RuntimeError, match=r"Expected the task to have a head, but got none\. Fit it, or load a check"):
        build_trainer().validate(build_task(tiny), labels, verbose=False)


# ---- tables that do not suit it


def test_head_needs_labels(build_trainer, tiny, colour_table):
    captions = ImageTextDataModule(Table(str(colour_table), caption="caption", split="split"), tiny, batch_size=8)
    message = r"Expected data\.table\.label to name a column with ClassificationTask, but got none\. Give the trainer"
    with pytest.raises(RecipeError, match=message):
        build_trainer(max_steps=1).fit(build_task(tiny), captions)
    for ask in (build_trainer().validate, build_trainer().test):
        with pytest.raises(RecipeError, match=message):
            ask(build_task(tiny), captions, verbose=False)


def test_class_weights_must_be_those_of_the_table(build_trainer, tiny, labels):
    task = build_task(tiny, objective=CrossEntropy([1.0, 2.0]))
    with pytest.raises(RecipeError, match=r"one number for each of the 3 classes, but got 2\. List one"):
        build_trainer(max_steps=1).fit(task, labels)


@pytest.mark.parametrize("stage", [pytest.param("fit", marks=pytest.mark.slow), "validate", "test"])
def test_a_head_answers_for_its_own_classes_alone(build_trainer, tiny, labels, colour_table, tmp_path, stage):
    """Also where there are as many of them."""
    task = build_task(tiny)
    build_trainer(max_steps=1).fit(task, labels)
    others = other_classes(tmp_path, colour_table, tiny, {"red": "pink"})
    message = r"the classifier's 3 classes, blue, green, red, but got 3: blue, green, pink\. Take a table with"
    with pytest.raises(TableError, match=message):
        getattr(build_trainer(max_steps=1), stage)(task, datamodule=others)


@pytest.mark.parametrize(
    "stage", ["fit", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("validate", "test"))]
)
def test_a_head_of_a_checkpoint_answers_for_its_own_classes_alone(
    tmp_path, build_trainer, tiny, labels, colour_table, stage
):
    trainer = build_trainer(max_steps=1)
    trainer.fit(build_task(tiny), labels)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    others = other_classes(tmp_path, colour_table, tiny, {"red": "pink"})
    with pytest.raises(TableError, match=r"the classifier's 3 classes, blue, green, red, but got 3: blue, green, pink"):
        getattr(build_trainer(max_steps=2), stage)(
            build_task(tiny), datamodule=others, ckpt_path=tmp_path / "last.ckpt"
        )


def test_numbers_out_of_range_are_refused(tiny):
    for scale in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"Expected head_lr_scale to be positive and finite, but got {scale}\."):
            build_task(tiny, head_lr_scale=scale)


def test_objective_given_to_two_tasks_is_not_shared(tiny):
    objective = CrossEntropy([1.0, 2.0, 3.0])
    first, second = (build_task(tiny, None, objective=objective) for _ in range(2))
    assert first.objective is not second.objective
    assert first.objective is not objective

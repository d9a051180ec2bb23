"""Training with a part of the batch in memory at a time is training with the batch."""

import copy
from functools import partial

import pytest
import torch
from lightning import seed_everything
from torch.optim import SGD

from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.model.lora import TowerLora
from finetune.objectives import Sigmoid
from finetune.training.classification_task import ClassificationTask
from finetune.training.head_start import HeadStart
from finetune.training.memory import PeakBytes
from finetune.training.micro_batch import ROWS_AT_FIRST, SHARES, choose_portion
from finetune.training.task import AlignTask

LORA = TowerLora(rank=2)
CPU = torch.device("cpu")


class Hard(AlignTask):
    """A user's step, which sees all rows of a batch."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        embeddings = self(batch)
        own = (embeddings.image_embeds * embeddings.text_embeds).sum(1).detach()
        return self.loss(embeddings, batch._replace(weights=batch.weights + (own < own.median())))


class Given(HeadStart):
    """A head that does not depend on what the towers see, which rounds to float32."""

    rows = views = 1

    def __call__(self, class_embeds: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.linspace(-1, 1, class_embeds.numel()).view_as(class_embeds)
        return weight, torch.zeros(len(class_embeds))


TASKS = {
    "contrastive": lambda tiny, **more: AlignTask(tiny, LORA, LORA, **more),
    "sigmoid": lambda tiny, **more: AlignTask(tiny, LORA, None, objective=Sigmoid(), **more),
    "a user's step": lambda tiny, **more: Hard(tiny, None, LORA, **more),
    "head": lambda tiny, **more: ClassificationTask(tiny, LORA, head_start=Given(), **more),
    "head alone": lambda tiny, **more: ClassificationTask(tiny, None, head_start=Given(), **more),
}


def fit(build_trainer, task: AlignTask, data: ImageTextDataModule) -> dict[str, torch.Tensor]:
    """What two steps leave behind: weights, and the values that were logged."""
    seed_everything(0, verbose=False)
    trainer = build_trainer(max_epochs=1, precision="64-true", accumulate_grad_batches=2, gradient_clip_val=0.05)
    trainer.fit(task, data)
    weights = {name: tensor.detach() for name, tensor in task.named_parameters() if tensor.requires_grad}
    return weights | dict(trainer.callback_metrics)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("sigmoid", "head alone"))) for name in TASKS]
)
def test_a_fit_in_parts_leaves_the_weights_of_a_fit_of_whole_batches(build_trainer, tiny, labels, name):
    """With accumulated and clipped gradients, in a task of the toolkit or a user's.

    By plain gradient descent: Adam would make a step of the rounding of a gradient that is 0.
    """
    found = []
    for micro_batch in (None, 3):
        torch.manual_seed(0)
        task = TASKS[name](tiny, micro_batch=micro_batch, optimizer=partial(SGD, lr=0.1))
        start = copy.deepcopy(dict(task.named_parameters()))
        found.append(fit(build_trainer, task, labels))
        assert task.micro_batch == task.towers.micro_batch == micro_batch
        assert not all(tensor.equal(start.get(key, tensor * 0)) for key, tensor in found[-1].items())
    assert found[0].keys() == found[1].keys()
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, rtol=1e-9, atol=1e-10, msg=key)


def test_validation_embeds_parts_too(build_trainer, tiny, labels):
    task, sizes = AlignTask(tiny, None, None, micro_batch=3), []
    vision_model = task.towers.align.vision_model
    vision_model.register_forward_pre_hook(lambda *given: sizes.append(len(given[2]["pixel_values"])), with_kwargs=True)
    build_trainer().validate(task, labels, verbose=False)
    assert max(sizes) == 3
    assert sum(sizes) == len(labels.rows.indices("val"))


@pytest.mark.parametrize(
    ("micro_batch", "lora", "match"),
    [
        (0, LORA, r"Expected micro_batch to be at least 1, auto or null, but got 0\."),
        (
            16,
            TowerLora(rank=2, train_statistics=True),
            r"micro_batch to be null with image_lora\.train_statistics, but",
        ),
        ("auto", TowerLora(rank=2, train_statistics=True), r"got auto: .* Remove one of them, or lower data\.batch"),
    ],
)
@pytest.mark.parametrize("kind", [AlignTask, ClassificationTask])
def test_what_would_change_the_training_is_refused_before_weights_are_read(kind, micro_batch, lora, match):
    with pytest.raises(ValueError, match=match):
        kind("no such checkpoint", lora, micro_batch=micro_batch)


@pytest.fixture(scope="module")
def task(tiny) -> AlignTask:
    return AlignTask(tiny, LORA, LORA, micro_batch="auto")


def choose(task: AlignTask, batch: Batch, free: float, beside: int = 0):
    trained = [parameter for name, parameter in task.named_parameters() if name in task._trained]
    return choose_portion(task, trained, batch, CPU, int(free), beside)


def test_the_largest_power_of_two_that_fits_is_taken(task, batch):
    rows = Batch(*(torch.cat(6 * [part]) for part in batch))
    whole = choose(task, rows, 1e15)
    assert (whole.rows, whole.of) == (None, 36)
    assert "all 36 rows at a time" in str(whole)
    row = whole.row_bytes / SHARES["cpu"]
    chosen = [choose(task, rows, many * row + 1e6).rows for many in (0, 7, 20, 60)]
    assert chosen[0] == 1
    assert chosen[1] in (2, 4)
    assert chosen[2] in (8, 16)
    assert chosen[3] is None
    assert choose(task, rows, 60 * row + 1e6, beside=30).rows == 32


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kept", "recomputed"])
def test_a_step_takes_no_more_than_there_is(tiny, batch, recompute):
    """The estimate comes from four rows; the step has 36, in a part of its own choice."""
    task = AlignTask(tiny, LORA, LORA, image_recompute=recompute)
    rows = Batch(*(torch.cat(6 * [part]) for part in batch))
    found = choose(task, rows, 10e6 if recompute else 30e6)
    assert found.rows in (4, 8, 16)
    task.towers.micro_batch = found.rows
    meter = PeakBytes()
    with meter:
        features = task(rows).image_features
        features.sum().backward()
    assert 0.4 * found.usable_bytes < meter.peak <= 1.05 * found.usable_bytes


def test_choosing_changes_nothing(tiny, batch):
    """Also where a callback keeps the adapters frozen for now: they are counted."""
    task = AlignTask(tiny, TowerLora(rank=2, dropout=0.5), LORA)
    expected = choose(task, batch, 1e9)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    for parameter in task.towers.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert choose(task, batch, 1e9) == expected
    assert torch.get_rng_state().equal(state)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in task.towers.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in task.state_dict().items())


def test_auto_is_settled_on_the_first_training_batch_and_said(build_trainer, tiny, labels, capsys):
    task = AlignTask(tiny, LORA, LORA, micro_batch="auto")
    assert (task.micro_batch, task.towers.micro_batch) == ("auto", ROWS_AT_FIRST)
    build_trainer(max_epochs=1).fit(task, labels)
    assert task.micro_batch is task.towers.micro_batch is None  # this machine has more memory than that
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "rows at a time" in line]
    assert line.startswith("embeds all 6 rows at a time (")
    assert line.endswith("model.micro_batch null repeats it")

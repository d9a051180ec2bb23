import math

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD
from torch.utils.data import DataLoader, IterableDataset

from finetune.core.errors import RecipeError
from finetune.training.schedules import WarmupCosine, parameter_groups, total_steps, warmup_cosine
from finetune.training.task import AlignTask


def learning_rates(total_steps, warmup, steps):
    optimizer = SGD([Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, total_steps, warmup)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_values_by_hand():
    expected = [2 * factor for factor in (1 / 3, 2 / 3, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0, 0)]
    assert learning_rates(6, 1 / 3, 8) == pytest.approx(expected)


@pytest.mark.parametrize("total_steps", [1, 2, 9, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_each_step_of_the_run_trains(total_steps, warmup):
    rates = learning_rates(total_steps, warmup, total_steps)
    assert all(0 < rate <= 2 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_without_warmup_the_first_step_is_the_peak():
    assert warmup_cosine(0, 10, 0) == 1.0


def test_each_group_keeps_its_own_peak():
    optimizer = SGD([{"params": [Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 4.0)])
    WarmupCosine(optimizer, total_steps=4, warmup=0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2.0]


def test_a_saved_schedule_goes_on_where_it_was(tmp_path):
    def build():
        optimizer = SGD([Parameter(torch.zeros(1))], lr=2.0)
        return optimizer, WarmupCosine(optimizer, 10, 0.2)

    optimizer, schedule = build()
    for _ in range(4):
        optimizer.step()
        schedule.step()
    torch.save([optimizer.state_dict(), schedule.state_dict()], tmp_path / "state.pt")
    other_optimizer, other = build()
    for part, state in zip((other_optimizer, other), torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    for one, one_optimizer in ((schedule, optimizer), (other, other_optimizer)):
        one_optimizer.step()
        one.step()
    assert schedule.get_last_lr() == other.get_last_lr() == [pytest.approx(2 * warmup_cosine(5, 10, 2))]


@pytest.mark.parametrize("total_steps", [0, -3])
def test_refuses_a_run_without_steps(total_steps):
    with pytest.raises(ValueError, match=rf"Expected total_steps to be at least 1, but got {total_steps}\."):
        WarmupCosine(SGD([Parameter(torch.zeros(1))], lr=1.0), total_steps)


@pytest.mark.parametrize("warmup", [-0.1, 1.1, float("nan")])
def test_refuses_a_warmup_that_is_no_fraction(warmup):
    with pytest.raises(ValueError, match=rf"Expected warmup to be in \[0, 1\], but got {warmup}\."):
        WarmupCosine(SGD([Parameter(torch.zeros(1))], lr=1.0), 10, warmup)


def test_decay_spares_vectors_scalars_and_magnitudes():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    module.register_parameter("temperature", Parameter(torch.tensor(0.05)))
    module[2].register_parameter("lora_magnitude_vector", Parameter(torch.ones(1, 4, 1, 1)))
    module[0].bias.requires_grad_(False)
    decayed, kept = parameter_groups(module.named_parameters())
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert "weight_decay" not in decayed
    assert kept["weight_decay"] == 0.0
    assert [names[id(parameter)] for parameter in decayed["params"]] == ["0.weight", "2.weight"]
    assert sorted(names[id(parameter)] for parameter in kept["params"]) == [
        "1.bias",
        "1.weight",
        "2.bias",
        "2.lora_magnitude_vector",
        "temperature",
    ]


def test_empty_groups_are_dropped():
    assert parameter_groups([]) == []
    [only] = parameter_groups([("weight", Parameter(torch.zeros(2, 2)))])
    assert "weight_decay" not in only
    [only] = parameter_groups([("bias", Parameter(torch.zeros(2)))])
    assert only["weight_decay"] == 0.0


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(2, -1, 6), (2, 10_000, 6), (2, 4, 4), (-1, 4, 4)])
def test_total_steps_are_those_that_the_trainer_takes(tiny, labels, build_trainer, epochs, steps, expected):
    """18 training rows in batches of 8."""
    trainer = build_trainer(max_epochs=epochs, max_steps=steps, limit_val_batches=0)
    trainer.fit(AlignTask(tiny), labels)
    assert total_steps(trainer) == trainer.global_step == expected


@pytest.mark.parametrize(("steps", "expected"), [(-1, 6), (10_000, 6), (4, 4)])
def test_total_steps_of_loaders_without_a_table(tiny, labels, build_trainer, steps, expected):
    trainer = build_trainer(max_epochs=2, max_steps=steps, limit_val_batches=0)
    trainer.fit(AlignTask(tiny), DataLoader([*labels.train_dataloader()], batch_size=None))
    assert total_steps(trainer) == trainer.global_step == expected


def test_loaders_without_a_length_need_a_number_of_steps(tiny, labels, build_trainer):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(labels.train_dataloader())

    batches = DataLoader(Endless(), batch_size=None)
    with pytest.raises(RecipeError, match=r"loaders without a length\. Set max_steps"):
        build_trainer(max_epochs=2, limit_val_batches=0).fit(AlignTask(tiny), batches)
    build_trainer(max_epochs=-1, max_steps=2, limit_val_batches=0).fit(AlignTask(tiny), batches)


def test_a_training_that_only_the_time_ends_is_refused(tiny, labels, build_trainer):
    trainer = build_trainer(max_epochs=-1, max_time="00:00:10:00")
    with pytest.raises(RecipeError, match="max_epochs or max_steps to say how long .* but got neither"):
        trainer.fit(AlignTask(tiny), labels)

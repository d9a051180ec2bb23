"""What a frozen tower made is kept by content; all that would change it is noticed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from finetune.model.base import Base
from finetune.model.kept_features import KeptFeatures, hash_rows, hash_texts
from finetune.model.towers import AlignTowers


class Asked:
    """A frozen layer, the rows it computed, and what is kept of them."""

    def __init__(self, tower: nn.Module | None = None, **options: int) -> None:
        self.tower = (tower or nn.Linear(3, 2)).eval().requires_grad_(False)
        self.computed: list[list[float]] = []
        self.kept = KeptFeatures([self.tower], **options)

    def compute(self, rows: torch.Tensor) -> torch.Tensor:
        self.computed.append(rows[:, 0].tolist())
        return self.tower(rows)

    def __call__(self, *numbers: float) -> torch.Tensor:
        rows = torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, 3)
        found = self.kept(self.compute, hash_rows, rows)
        torch.testing.assert_close(found, self.tower(rows), rtol=1e-6, atol=1e-6)
        return found


def test_each_input_is_computed_once():
    asked = Asked()
    asked(1, 2, 1)
    asked(3, 2)
    asked(1, 2, 3)
    assert asked.computed == [[1, 2], [3]]


def change_in_place(tower: nn.Module) -> None:
    with torch.no_grad():
        tower.weight.add_(1)


def load_other_weights(tower: nn.Module) -> None:
    tower.load_state_dict(nn.Linear(3, 2).state_dict())


def replace_weights(tower: nn.Module) -> None:
    tower.weight = nn.Parameter(torch.ones(2, 3), requires_grad=False)


@pytest.mark.parametrize("change", [change_in_place, load_other_weights, replace_weights])
def test_other_weights_compute_anew(change):
    asked = Asked()
    asked(1, 2)
    change(asked.tower)
    asked(1, 2)
    assert asked.computed == [[1, 2], [1, 2]]


def test_a_trained_tower_keeps_nothing():
    asked = Asked()
    asked(1)
    asked.tower.requires_grad_(True)
    assert asked(1).requires_grad
    asked.tower.requires_grad_(False)
    assert not asked(1).requires_grad
    assert asked.computed == [[1]] * 3


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"target_modules": ["0"]}, {"target_modules": DUMMY_TARGET_MODULES, "modules_to_save": ["0"]}]
)
def test_an_adapter_that_is_switched_off_is_noticed(options):
    adapted = get_peft_model(nn.Sequential(nn.Linear(3, 2)), LoraConfig(init_lora_weights=False, **options))
    for parameter in adapted.parameters():
        parameter.normal_()
    asked = Asked(adapted)
    asked(1)
    with adapted.disable_adapter():
        asked.tower.requires_grad_(False)
        asked(1)
    assert asked.computed == [[1], [1]]


def test_an_input_that_is_trained_has_its_gradient():
    """As a prompt of pixels in front of a frozen tower."""
    asked, prompt = Asked(), torch.zeros(3, requires_grad=True)
    for _ in range(2):
        asked.kept(asked.compute, hash_rows, torch.ones(1, 3) + prompt).sum().backward()
    torch.testing.assert_close(prompt.grad, 2 * asked.tower.weight.sum(0))


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.BatchNorm1d(2)])
def test_a_layer_that_is_random_or_follows_the_batch_keeps_nothing(layer):
    asked = Asked(nn.Sequential(nn.Linear(3, 2), layer))
    layer.train()
    asked(1, 2)
    asked(1, 2)
    layer.eval()
    asked(1, 2)
    asked(1, 2)
    assert asked.computed == [[1, 2]] * 3


def test_each_precision_has_its_own_features():
    asked = Asked()
    asked(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert asked(1).dtype == torch.bfloat16
    assert asked(1).dtype == torch.float32
    assert asked.computed == [[1]] * 3


def test_what_has_no_room_is_computed_each_time():
    asked = Asked(most_bytes=2 * 2 * 4)
    asked(1, 1)
    asked(2)
    asked(3)
    asked(1, 2, 3)
    assert asked.computed == [[1], [2], [3], [3]]


def test_keeping_ends_where_it_never_helped():
    """As with images that are augmented in another way each time."""
    asked = Asked(most_bytes=2 * 2 * 4)
    for number in (1, 2, 3):
        asked(number)
    asked(1, 1)
    assert asked.computed == [[1], [2], [3], [1, 1]]


def test_features_of_an_evaluation_can_be_trained_with():
    asked, head = Asked(), nn.Linear(2, 1)
    with torch.inference_mode():
        asked(1, 2)
    head(asked(1, 2)).sum().backward()
    assert head.weight.grad is not None
    assert asked.computed == [[1, 2]]


def test_hashes_tell_rows_apart_by_a_single_bit():
    rows = torch.randint(0, 256, (40, 3, 7, 5), dtype=torch.uint8)
    rows[1:20] = rows[0]
    for row in range(1, 20):
        rows[row].view(-1)[row] ^= 1 << (row % 8)
    assert len({*hash_rows(rows)}) == 40
    assert hash_rows(rows)[7] == hash_rows(rows[7:8].clone())[0]


def test_padding_does_not_change_a_text():
    ids, mask = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 0]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    short, long = hash_texts(ids, mask)
    assert hash_texts(ids[:1, :2], mask[:1, :2]) == [short]
    assert short != long


@torch.no_grad()
def test_towers_answer_as_without(tiny, batch):
    towers = AlignTowers(Base.open(tiny).load().requires_grad_(False))
    plain = towers(batch)
    towers.keep_features(True)
    order = torch.arange(len(batch.rows)).flip(0)
    first, again = towers(batch), towers(type(batch)(*(part[order] if len(part) else part for part in batch)))
    for expected, found, turned in zip(plain, first, again, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(turned, expected[order] if expected.ndim else expected, rtol=1e-6, atol=1e-6)
    assert again.image_features.equal(first.image_features[order])

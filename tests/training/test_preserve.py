"""Texts that hold the text tower to the base, against plain transformers."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AlignModel, AlignProcessor

from finetune.core.errors import CheckpointError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.model.lora import TowerLora
from finetune.training.preserve import PreservedTexts, TextPreservation, draw_texts
from finetune.training.task import AlignTask

SMALL = TowerLora(rank=2)
WORDS = [f"{first}{second}{third}" for first in "bcdfg" for second in "aeiou" for third in "lmnrst"]


@pytest.fixture
def captions(colour_table, tiny) -> ImageTextDataModule:
    return ImageTextDataModule(Table(str(colour_table), caption="caption", split="split"), tiny, batch_size=8)


@pytest.fixture(scope="module")
def preserved(tiny) -> PreservedTexts:
    """The texts, embedded once for all tests."""
    return PreservedTexts(Base.open(tiny))


def plain_words(tiny: str) -> list[str]:
    vocabulary = AlignProcessor.from_pretrained(tiny).tokenizer.get_vocab()
    return sorted(word for word in vocabulary if len(word) > 2 and set(word) <= set("abcdefghijklmnopqrstuvwxyz"))


@torch.no_grad()
def plain_features(model: AlignModel, tiny: str, texts: list[str]) -> torch.Tensor:
    """Embeds texts one by one, as transformers alone would."""
    processor = AlignProcessor.from_pretrained(tiny)
    features = []
    for text in texts:
        encoded = processor.tokenizer(text, return_tensors="pt")
        features.append(model.get_text_features(**encoded).pooler_output)
    return torch.cat(features)


def move_text_tower(task: AlignTask, size: float = 0.3) -> None:
    """Gives adapters of the text tower an effect."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in task.towers.named_parameters():
        if "text_model" in name and "lora_B" in name:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("texts", "step"), [(8, 0), (5, 3), (600, 1)]
)  # the last begins anew with the first text after the 1,024th
def test_distance_is_that_of_plain_transformers(tiny, preserved, texts, step):
    task = AlignTask(tiny, SMALL, SMALL)
    with torch.no_grad():
        assert abs(float(preserved.distance(task.towers, texts, step))) < 1e-5
    move_text_tower(task)
    drawn = draw_texts(plain_words(tiny))
    chosen = [drawn[(texts * step + number) % len(drawn)] for number in range(texts)]
    base = plain_features(AlignModel.from_pretrained(tiny).eval(), tiny, chosen)
    moved = plain_features(copy.deepcopy(task.towers.model).merge_and_unload().eval(), tiny, chosen)
    expected = (1 - cosine_similarity(moved, base)).mean()
    assert expected > 0.01
    for is_training in (False, True):
        with torch.set_grad_enabled(is_training):
            found = preserved.distance(task.towers, texts, step)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-6)


def test_gradient_is_that_of_the_distance_and_of_the_text_tower_alone(tiny, preserved):
    task = AlignTask(tiny, SMALL, SMALL)
    move_text_tower(task)
    preserved.distance(task.towers, 8, 0).backward()
    named = {name: parameter for name, parameter in task.towers.named_parameters() if parameter.grad is not None}
    assert named
    assert not any("vision" in name or "temperature" in name for name in named)
    name, parameter = max(named.items(), key=lambda pair: float(pair[1].grad.abs().max()))
    place, slope = int(parameter.grad.abs().argmax()), float(parameter.grad.abs().max())
    ends = []
    for change in (-1e-3, 1e-3):
        with torch.no_grad():
            parameter.view(-1)[place] += change
            ends.append(float(preserved.distance(task.towers, 8, 0)))
            parameter.view(-1)[place] -= change
    assert abs(ends[1] - ends[0]) / 2e-3 == pytest.approx(slope, rel=0.05), name


def test_training_keeps_texts_that_it_never_saw(build_trainer, tiny, captions):
    """The distance on other words than those of the pool, as plain transformers measures it after merging."""
    others = [f"{one} {two}" for one, two in zip(WORDS[::2], WORDS[1::2], strict=True)]
    base = plain_features(AlignModel.from_pretrained(tiny).eval(), tiny, others)
    moved = {}
    for preserve in (None, TextPreservation(weight=100.0)):
        torch.manual_seed(0)
        task = AlignTask(
            tiny, SMALL, SMALL, preserve=preserve, optimizer=lambda params: torch.optim.AdamW(params, 0.02)
        )
        trainer = build_trainer(max_epochs=4)
        trainer.fit(task, captions)
        after = plain_features(task.towers.model.merge_and_unload().eval(), tiny, others)
        moved[preserve] = float((1 - cosine_similarity(after, base)).mean())
        assert ("train/text_distance" in trainer.callback_metrics) == (preserve is not None)
        assert not any("preserve" in name for name in task.state_dict())
    assert moved[TextPreservation(weight=100.0)] < 0.5 * moved[None]


def test_a_step_adds_the_weighted_distance_to_the_loss(build_trainer, tiny, preserved, captions):
    seen = []

    class Watched(AlignTask):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            with torch.no_grad():
                distance = preserved.distance(self.towers, 4, self.global_step)
                seen.append((float(loss), float(self.loss(self(batch), batch)), float(distance)))
            return loss

    task = Watched(tiny, SMALL, SMALL, preserve=TextPreservation(weight=7.0, texts=4))
    move_text_tower(task)
    build_trainer(max_epochs=2).fit(task, captions)
    assert len(seen) > 2
    assert len({distance for _, _, distance in seen}) == len(seen)
    for total, loss, distance in seen:
        assert total == pytest.approx(loss + 7 * distance, rel=1e-4)


def test_a_text_tower_that_is_not_trained_has_nothing_to_preserve(tiny):
    with pytest.raises(ValueError, match="Set preserve to null"):
        AlignTask(tiny, SMALL, None, preserve=TextPreservation())


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"weight": float("inf")}, {"texts": 0}, {"texts": 5000}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TextPreservation(**options)


def test_a_vocabulary_without_words_is_refused(tiny, tmp_path: Path):
    folder = tmp_path / "base"
    AlignModel.from_pretrained(tiny).save_pretrained(folder)
    processor = AlignProcessor.from_pretrained(tiny)
    tokens = [*processor.tokenizer.all_special_tokens, *(f"##{word}" for word in WORDS), "one", "two"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    processor.tokenizer = type(processor.tokenizer)(vocab=str(tmp_path / "vocab.txt"))
    processor.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="but got 2"):
        AlignTask(folder, SMALL, SMALL, preserve=TextPreservation())

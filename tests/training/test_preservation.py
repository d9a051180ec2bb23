"""Random texts and pictures that hold the towers to the base, against plain transformers."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity
from transformers import AlignModel, AlignProcessor

from finetune.core.errors import CheckpointError
from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.model.lora import TowerLora
from finetune.training.classification_task import ClassificationTask
from finetune.training.preservation import (
    ImagePreservation,
    PreservedImages,
    PreservedTexts,
    TextPreservation,
)
from finetune.training.random_pictures import draw_picture
from finetune.training.random_texts import draw_texts
from finetune.training.task import AlignTask

SMALL = TowerLora(rank=2)
WORDS = [f"{first}{second}{third}" for first in "bcdfg" for second in "aeiou" for third in "lmnrst"]
SIDE, TEXTS, IMAGES = 40, 1024, 512


@pytest.fixture
def captions(colour_table, tiny) -> ImageTextDataModule:
    return ImageTextDataModule(Table(str(colour_table), caption="caption", split="split"), tiny, batch_size=8)


@pytest.fixture(scope="module")
def texts(tiny) -> PreservedTexts:
    """The texts, embedded once for all tests."""
    return PreservedTexts(Base.open(tiny), TextPreservation())


@pytest.fixture(scope="module")
def images(tiny) -> PreservedImages:
    """The pictures, embedded once for all tests."""
    return PreservedImages(Base.open(tiny), ImagePreservation())


@pytest.fixture(params=["image", "text"])
def tower(request) -> str:
    return request.param


@pytest.fixture
def preserved(tower, images, texts) -> PreservedImages | PreservedTexts:
    return images if tower == "image" else texts


def batch_of(side: int) -> Batch:
    """A batch of which nothing but the size of its images matters."""
    rows = torch.zeros(2, dtype=torch.int64)
    pixels = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    return Batch(pixels, rows[:, None], rows[:, None], rows, rows, rows, rows, rows.float())


BATCH = batch_of(SIDE)


def plain_words(tiny: str) -> list[str]:
    vocabulary = AlignProcessor.from_pretrained(tiny).tokenizer.get_vocab()
    return sorted(word for word in vocabulary if len(word) > 2 and set(word) <= set("abcdefghijklmnopqrstuvwxyz"))


def reference(tiny: str, tower: str, places: list[int]) -> list[str] | list[np.ndarray]:
    """The texts or pictures at these places."""
    if tower == "text":
        drawn = draw_texts(plain_words(tiny), TEXTS)
        return [drawn[place % TEXTS] for place in places]
    return [draw_picture(place % IMAGES, SIDE) for place in places]


@torch.no_grad()
def plain_features(model: AlignModel, tiny: str, given: list[str] | list[np.ndarray]) -> torch.Tensor:
    """Embeds texts or pictures one by one, as transformers alone would."""
    processor = AlignProcessor.from_pretrained(tiny)
    features = []
    for one in given:
        if isinstance(one, str):
            found = model.get_text_features(**processor.tokenizer(one, return_tensors="pt"))
        else:
            size = {"height": one.shape[1], "width": one.shape[2]}
            picture = Image.fromarray(one.transpose(1, 2, 0))
            found = model.get_image_features(
                **processor.image_processor(picture, size=size, crop_size=size, return_tensors="pt")
            )
        features.append(found.pooler_output)
    return torch.cat(features)


def move(task: AlignTask, size: float = 0.3) -> None:
    """Gives all adapters an effect."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in task.towers.named_parameters():
        if "lora_B" in name:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("count", "step"), [(8, 0), (5, 3), (40, 26)])  # the last begins anew with the first ones
def test_distance_is_that_of_plain_transformers(tiny, tower, preserved, count, step, monkeypatch):
    how = ImagePreservation(images=count) if tower == "image" else TextPreservation(texts=count)
    monkeypatch.setattr(preserved, "how", how)
    task = AlignTask(tiny, SMALL, SMALL)
    with torch.no_grad():
        assert abs(float(preserved.distance(task.towers, BATCH, step))) < 1e-5
    move(task)
    chosen = reference(tiny, tower, [count * step + number for number in range(count)])
    base = plain_features(AlignModel.from_pretrained(tiny).eval(), tiny, chosen)
    moved = plain_features(copy.deepcopy(task.towers.model).merge_and_unload().eval(), tiny, chosen)
    expected = (1 - cosine_similarity(moved, base)).mean()
    assert expected > 0.001
    for is_training in (False, True):
        with torch.set_grad_enabled(is_training):
            found = preserved.distance(task.towers, BATCH, step)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=1e-6)


def test_gradient_is_that_of_the_distance_and_of_its_tower_alone(tiny, tower, preserved):
    torch.manual_seed(1)
    task = AlignTask(tiny, SMALL, SMALL)
    move(task)
    preserved.distance(task.towers, BATCH, 0).backward()
    named = {name: parameter for name, parameter in task.towers.named_parameters() if parameter.grad is not None}
    assert named
    assert all({"image": "vision", "text": "text"}[tower] in name for name in named)
    name, parameter = max(named.items(), key=lambda pair: float(pair[1].grad.abs().max()))
    place, slope = int(parameter.grad.abs().argmax()), float(parameter.grad.abs().max())
    ends = []
    for change in (-1e-4, 1e-4):
        with torch.no_grad():
            parameter.view(-1)[place] += change
            ends.append(float(preserved.distance(task.towers, BATCH, 0)))
            parameter.view(-1)[place] -= change
    assert abs(ends[1] - ends[0]) / 2e-4 == pytest.approx(slope, rel=0.05), name


def test_pictures_are_as_large_as_the_images_of_the_batch(tiny):
    preserved, task = PreservedImages(Base.open(tiny), ImagePreservation(images=2)), AlignTask(tiny, SMALL, SMALL)
    sizes = []
    task.towers.scale_pixels.register_forward_hook(lambda _, given, __: sizes.append(tuple(given[0].shape)))
    assert abs(float(preserved.distance(task.towers, batch_of(32), 0).detach())) < 1e-5
    assert sizes == [(2, 3, 32, 32)]


def unseen(tower: str) -> list[str] | list[np.ndarray]:
    """Texts of other words than those of the pool, or pictures beyond it."""
    if tower == "text":
        return [f"{one} {two}" for one, two in zip(WORDS[::2], WORDS[1::2], strict=True)]
    return [draw_picture(IMAGES + number, SIDE) for number in range(20)]


def test_training_keeps_what_it_never_saw(build_trainer, tiny, captions, tower):
    """The distance, as plain transformers measures it after merging."""
    others = unseen(tower)
    base = plain_features(AlignModel.from_pretrained(tiny).eval(), tiny, others)
    how = ImagePreservation(weight=100.0) if tower == "image" else TextPreservation(weight=100.0)
    moved = {}
    for preservation in (None, how):
        torch.manual_seed(0)
        task = AlignTask(
            tiny,
            SMALL,
            SMALL,
            optimizer=lambda params: torch.optim.AdamW(params, 0.005),
            **{f"{tower}_preservation": preservation},
        )
        trainer = build_trainer(max_epochs=6)
        trainer.fit(task, captions)
        after = plain_features(task.towers.model.merge_and_unload().eval(), tiny, others)
        moved[preservation] = float((1 - cosine_similarity(after, base)).mean())
        assert (f"train/{tower}_distance" in trainer.callback_metrics) == (preservation is not None)
        assert not any("preserv" in name for name in task.state_dict())
    assert moved[how] < 0.5 * moved[None]


def test_a_step_adds_the_weighted_distances_to_the_loss(build_trainer, tiny, captions):
    seen = []

    class Watched(AlignTask):
        def training_step(self, batch, batch_idx):
            total, step = super().training_step(batch, batch_idx), self.global_step
            with torch.no_grad():
                distances = [self._preserved[tower].distance(self.towers, batch, step) for tower in ("image", "text")]
                seen.append((float(total), float(self.loss(self(batch), batch)), *map(float, distances)))
            return total

    how = {"image_preservation": ImagePreservation(3.0, images=2), "text_preservation": TextPreservation(7.0, texts=4)}
    task = Watched(tiny, SMALL, SMALL, **how)
    move(task)
    build_trainer(max_epochs=2).fit(task, captions)
    assert len(seen) > 2
    for total, loss, images, texts in seen:
        assert images > 0
        assert texts > 0
        assert total == pytest.approx(loss + 3 * images + 7 * texts, rel=1e-4)


def test_a_head_is_trained_with_preserved_images(build_trainer, tiny, labels):
    trainer = build_trainer(max_epochs=1)
    trainer.fit(task := ClassificationTask(tiny, SMALL, image_preservation=ImagePreservation(images=2)), labels)
    assert float(trainer.callback_metrics["train/image_distance"]) > 0
    assert float(task.preservation) > 0


@pytest.mark.parametrize(("lora", "kept"), [((SMALL, None), "image"), ((None, SMALL), "text")])
def test_a_tower_that_is_not_trained_costs_nothing(build_trainer, tiny, captions, lora, kept):
    how = {"image_preservation": ImagePreservation(images=2), "text_preservation": TextPreservation(texts=2)}
    trainer = build_trainer(max_epochs=1)
    trainer.fit(AlignTask(tiny, *lora, **how), captions)
    logged = {tower for tower in ("image", "text") if f"train/{tower}_distance" in trainer.callback_metrics}
    assert logged == {kept}


def test_statistics_that_follow_the_batch_are_refused(tiny):
    following = TowerLora(rank=2, train_statistics=True)
    with pytest.raises(ValueError, match="would follow the random pictures"):
        ClassificationTask(tiny, following, image_preservation=ImagePreservation())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TextPreservation, {"weight": 0.0}),
        (TextPreservation, {"weight": float("inf")}),
        (TextPreservation, {"texts": 0}),
        (TextPreservation, {"texts": 5000}),
        (ImagePreservation, {"weight": -1.0}),
        (ImagePreservation, {"images": 0}),
        (ImagePreservation, {"images": 513}),
    ],
)
def test_numbers_out_of_range_are_refused(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)


def test_a_vocabulary_without_words_is_refused(tiny, tmp_path: Path):
    folder = tmp_path / "base"
    AlignModel.from_pretrained(tiny).save_pretrained(folder)
    processor = AlignProcessor.from_pretrained(tiny)
    tokens = [*processor.tokenizer.all_special_tokens, *(f"##{word}" for word in WORDS), "one", "two"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    processor.tokenizer = type(processor.tokenizer)(vocab=str(tmp_path / "vocab.txt"))
    processor.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="but got 2"):
        AlignTask(folder, SMALL, SMALL, text_preservation=TextPreservation())


def test_pictures_are_many_and_always_the_same():
    pictures = [draw_picture(number, 24) for number in range(20)]
    assert all(picture.shape == (3, 24, 24) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 20
    assert draw_picture(7, 24).tobytes() == pictures[7].tobytes()
    assert np.std([picture.mean() for picture in pictures]) > 10  # neither dark nor bright as a whole
    assert np.mean([picture.std() for picture in pictures]) > 30

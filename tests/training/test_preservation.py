"""Random texts and pictures that hold the towers to the base, against plain transformers."""

import copy
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity
from transformers import AlignModel, AlignProcessor

from finetune.core.errors import CheckpointError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.model.lora import TowerLora
from finetune.training.classification_task import ClassificationTask
from finetune.training.preservation import ImagePreservation, Preservation, Reference, TextPreservation
from finetune.training.random_pictures import draw_picture
from finetune.training.random_texts import draw_texts
from finetune.training.task import AlignTask

SMALL = TowerLora(rank=2)
SIZE = HEIGHT, WIDTH = (40, 48)
TEXTS, IMAGES = 1024, 200
CPU = torch.device("cpu")


@pytest.fixture
def captions(colour_table, tiny) -> ImageTextDataModule:
    return ImageTextDataModule(Table(str(colour_table), caption="caption", split="split"), tiny, batch_size=8)


@pytest.fixture(scope="module")
def references(tiny) -> dict[str, Reference]:
    """The texts and pictures of both towers, embedded once for all tests."""
    preservation = Preservation(Base.open(tiny), ImagePreservation(), TextPreservation())
    preservation.start(CPU, SIZE, batches=IMAGES // 8)
    return {reference.tower: reference for reference in preservation.references}


@pytest.fixture(params=["image", "text"])
def tower(request) -> str:
    return request.param


def plain_words(tiny: str) -> list[str]:
    vocabulary = AlignProcessor.from_pretrained(tiny).tokenizer.get_vocab()
    return sorted(word for word in vocabulary if len(word) > 2 and set(word) <= set("abcdefghijklmnopqrstuvwxyz"))


def given(tiny: str, tower: str, places: list[int]) -> list[str] | list[np.ndarray]:
    """The texts or pictures at these places."""
    if tower == "text":
        drawn = draw_texts(plain_words(tiny), TEXTS)
        return [drawn[place % TEXTS] for place in places]
    return [draw_picture(place % IMAGES, *SIZE) for place in places]


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


@pytest.mark.parametrize(("count", "number"), [(8, 0), (5, 3), (40, 26)])  # the last begins anew with the first ones
def test_distance_is_that_of_plain_transformers(tiny, tower, references, count, number):
    reference = replace(references[tower], count=count)
    task = AlignTask(tiny, SMALL, SMALL)
    with torch.no_grad():
        assert abs(float(reference.distance(task.towers, number))) < 1e-5
    move(task)
    chosen = given(tiny, tower, [count * number + place for place in range(count)])
    base = plain_features(AlignModel.from_pretrained(tiny).eval(), tiny, chosen)
    moved = plain_features(copy.deepcopy(task.towers.model).merge_and_unload().eval(), tiny, chosen)
    expected = (1 - cosine_similarity(moved, base)).mean()
    assert expected > 0.001
    for is_training in (False, True):
        with torch.set_grad_enabled(is_training):
            found = reference.distance(task.towers, number)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=1e-6)


def test_gradient_is_that_of_the_distance_and_of_its_tower_alone(tiny, tower, references):
    torch.manual_seed(1)
    task = AlignTask(tiny, SMALL, SMALL).double()
    move(task)
    references[tower].distance(task.towers, 0).backward()
    named = {name: parameter for name, parameter in task.towers.named_parameters() if parameter.grad is not None}
    assert named
    assert all({"image": "vision", "text": "text"}[tower] in name for name in named)
    name, parameter = max(named.items(), key=lambda pair: float(pair[1].grad.abs().max()))
    place = int(parameter.grad.abs().argmax())
    ends = []
    for change in (1e-6, -1e-6):
        with torch.no_grad():
            parameter.view(-1)[place] += change
            ends.append(float(references[tower].distance(task.towers, 0)))
            parameter.view(-1)[place] -= change
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(parameter.grad.view(-1)[place]), rel=0.01), name


def test_no_more_pictures_are_drawn_than_a_training_needs(tiny):
    preservation = Preservation(Base.open(tiny), ImagePreservation(images=3), None)
    preservation.start(CPU, SIZE, batches=4)
    assert [len(reference.features) for reference in preservation.references] == [12]


def unseen(tiny: str, tower: str) -> list[str] | list[np.ndarray]:
    """Texts of other words than those of the pool, or pictures beyond it."""
    if tower == "text":
        made = (f"{first}{second}{third}" for first in "bcdfg" for second in "aeiou" for third in "lmnrst")
        words = sorted({*made} - {*plain_words(tiny)})
        return [f"{one} {two}" for one, two in zip(words[:20], words[20:40], strict=True)]
    return [draw_picture(600 + number, *SIZE) for number in range(20)]


def test_training_keeps_what_it_never_saw(build_trainer, tiny, captions, tower):
    """The distance, as plain transformers measures it after merging."""
    others = unseen(tiny, tower)
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
        trainer = build_trainer(max_epochs=4)
        trainer.fit(task, captions)
        after = plain_features(task.towers.model.merge_and_unload().eval(), tiny, others)
        moved[preservation] = float((1 - cosine_similarity(after, base)).mean())
        assert (f"train/{tower}_distance" in trainer.callback_metrics) == (preservation is not None)
        assert not any("preserv" in name for name in task.state_dict())
    assert moved[how] < 0.5 * moved[None]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_adds_the_weighted_distances_to_the_loss(build_trainer, tiny, captions, accumulated):
    seen = []

    class Watched(AlignTask):
        def training_step(self, batch, batch_idx):
            total, number = super().training_step(batch, batch_idx), len(seen)
            with torch.no_grad():
                of_image, of_text = (one.distance(self.towers, number) for one in self._preservation.references)
                seen.append((float(total), float(self.loss(self(batch), batch)), float(of_image), float(of_text)))
            return total

    how = {"image_preservation": ImagePreservation(3.0, images=2), "text_preservation": TextPreservation(7.0, texts=4)}
    task = Watched(tiny, SMALL, SMALL, **how)
    move(task)
    build_trainer(max_epochs=2, accumulate_grad_batches=accumulated).fit(task, captions)
    assert len(seen) > 2
    for total, loss, of_image, of_text in seen:
        assert min(of_image, of_text) > 1e-3
        assert total == pytest.approx(loss + 3 * of_image + 7 * of_text, rel=1e-4)
    assert not task._preservation.references  # nothing stays in memory


def test_a_head_is_trained_with_preserved_images(build_trainer, tiny, labels):
    task = ClassificationTask(tiny, SMALL, image_preservation=ImagePreservation(images=2))
    move(task)
    trainer = build_trainer(max_epochs=1)
    trainer.fit(task, labels)
    assert float(trainer.callback_metrics["train/image_distance"]) > 1e-3
    assert float(task.preservation) > 1e-3


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
    pieces = (f"##{first}{second}" for first in string.ascii_lowercase for second in string.ascii_lowercase)
    tokens = [*processor.tokenizer.all_special_tokens, *pieces, "one", "two"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    processor.tokenizer = type(processor.tokenizer)(vocab=str(tmp_path / "vocab.txt"))
    processor.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="but got 2"):
        AlignTask(folder, SMALL, SMALL, text_preservation=TextPreservation())


def test_pictures_are_many_and_always_the_same():
    pictures = [draw_picture(number, 24, 30) for number in range(20)]
    assert all(picture.shape == (3, 24, 30) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 20
    assert draw_picture(7, 24, 30).tobytes() == pictures[7].tobytes()
    assert np.std([picture.mean() for picture in pictures]) > 10  # neither dark nor bright as a whole
    assert np.mean([picture.std() for picture in pictures]) > 30

"""Each way of asking a model says what plain transformers says, and answers about the rows it was asked of."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AlignModel, AutoImageProcessor, AutoModelForImageClassification

from finetune.core.errors import CheckpointError, RecipeError
from finetune.core.types import Answers, ClassPrompts
from finetune.inference.models import (
    HeadOnTower,
    PlainClassifier,
    TwoTowers,
    ZeroShot,
    ask_towers,
    require_finite,
)
from finetune.model.base import Base
from finetune.model.efficientnet import build_classifier
from finetune.model.head import LinearHead
from finetune.model.towers import AlignTowers

from ..pixels import scaled

CLASSES = ("cat", "dog", "Käse")


@pytest.fixture
def towers(tiny) -> AlignTowers:
    return AlignTowers(Base.open(tiny).load())


@pytest.fixture(scope="module")
def plain(tiny) -> AlignModel:
    return AlignModel.from_pretrained(tiny).eval()


@pytest.fixture(scope="module")
def prompts() -> ClassPrompts:
    ids = torch.randint(1000, 2000, (3, 5), generator=torch.Generator().manual_seed(0))
    return ClassPrompts(CLASSES, ids, torch.ones_like(ids), torch.arange(3))


@pytest.fixture(scope="module")
def head() -> LinearHead:
    random = torch.Generator().manual_seed(0)
    return LinearHead(torch.randn(3, 64, generator=random), torch.randn(3, generator=random), CLASSES)


@pytest.fixture
def folder(tiny, head, tmp_path):
    """A classifier as it is exported."""
    build_classifier(Base.open(tiny).load(), head).save_pretrained(tmp_path / "classifier")
    Base.open(tiny).processor().image_processor.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def check_ids(answers: Answers, batch) -> None:
    assert answers.rows.equal(batch.rows)
    assert answers.image_ids.equal(batch.image_ids)
    assert answers.caption_ids.equal(batch.caption_ids)
    assert answers.truth.equal(batch.truth)


@torch.no_grad()
def test_two_towers_give_both_features(towers, plain, batch):
    model = TwoTowers(towers)
    answers = model(batch)
    check_ids(answers, batch)
    images, texts = plain.get_image_features(batch.pixel_values), plain.get_text_features(*batch[1:3])
    torch.testing.assert_close(answers.image_features, images.pooler_output)
    torch.testing.assert_close(answers.text_features, texts.pooler_output)
    assert answers.class_scores is None
    assert model.scores(answers.image_features) is None


@torch.no_grad()
def test_zero_shot_gives_the_logits_of_transformers(towers, plain, batch, prompts):
    model = ZeroShot(towers, prompts)
    answers = model(batch)
    check_ids(answers, batch)
    expected = plain(
        pixel_values=batch.pixel_values, input_ids=prompts.input_ids, attention_mask=prompts.attention_mask
    ).logits_per_image
    torch.testing.assert_close(answers.class_scores, expected, rtol=1e-4, atol=1e-4)
    assert model.scores(answers.image_features).equal(answers.class_scores)
    assert answers.text_features is None


@torch.no_grad()
def test_zero_shot_embeds_its_classes_once(towers, batch, prompts):
    asked = []
    towers.align.text_model.register_forward_hook(lambda *of: asked.append(len(of[2][0])))
    model = ZeroShot(towers, prompts)
    for _ in range(3):
        model(batch)
    assert asked == [3]


@torch.no_grad()
def test_a_head_gives_its_logits_on_the_features(towers, plain, batch, head):
    asked = []
    towers.align.text_model.register_forward_hook(lambda *_: asked.append(1))
    model = HeadOnTower(towers, head)
    answers = model(batch)
    check_ids(answers, batch)
    features = plain.get_image_features(batch.pixel_values).pooler_output
    torch.testing.assert_close(answers.class_scores, features @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4)
    assert model.scores(answers.image_features).equal(answers.class_scores)
    assert (answers.text_features, asked) == (None, [])


@torch.no_grad()
def test_a_plain_classifier_gives_its_own_logits(folder, batch):
    model = PlainClassifier(folder)
    assert (model.classes, model.is_multilabel) == (CLASSES, False)
    answers = model(batch)
    check_ids(answers, batch)
    assert answers.class_scores.equal(
        AutoModelForImageClassification.from_pretrained(folder)(batch.pixel_values).logits
    )
    assert (answers.image_features, answers.text_features) == (None, None)
    assert model.scores(torch.ones(2, 64)) is None
    seen = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    found = model(batch._replace(pixel_values=seen)).class_scores
    assert found.equal(model.logits(scaled(seen, processor)))


@torch.no_grad()
def test_models_share_the_modules_they_are_made_of(towers, batch, head):
    """What is trained between two questions counts in the second."""
    models = (TwoTowers(towers), HeadOnTower(towers, head))
    before = [model(batch).image_features for model in models]
    towers.align.vision_model.encoder.blocks[-1].projection.project_bn.bias += 1
    for model, features in zip(models, before, strict=True):
        assert not model(batch).image_features.allclose(features)


def test_a_table_with_classes_asks_for_prompts(towers, prompts):
    assert isinstance(ask_towers(towers, None), TwoTowers)
    asked = ask_towers(towers, prompts)
    assert isinstance(asked, ZeroShot)
    units = normalize(towers.text_features(prompts.input_ids, prompts.attention_mask), dim=-1)
    torch.testing.assert_close(asked.class_embeds, units.detach())


def test_moving_a_model_moves_what_it_is_made_of(towers, prompts, head, folder):
    meta = torch.device("meta")  # as good a device as any
    zero_shot, on_tower = ZeroShot(towers, prompts), HeadOnTower(towers, LinearHead(head.weight, head.bias, CLASSES))
    assert zero_shot.to(meta) is zero_shot
    assert zero_shot.class_embeds.device == towers.temperature.device == meta
    assert on_tower.to(meta) is on_tower
    assert on_tower.head.weight.device == on_tower.head.start_bias.device == meta
    assert TwoTowers(towers).to(meta).towers.temperature.device == meta
    assert PlainClassifier(folder).to(meta).model.device == meta


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["image_features", "text_features", "class_scores"])
def test_numbers_that_no_metric_can_rank_are_refused(batch, field, fault):
    values = torch.ones(6, 4)
    answers = Answers.of(batch, **{field: values})
    require_finite(answers)
    values[2, 1] = fault
    with pytest.raises(RecipeError, match=r"Expected finite numbers .* NaN or infinity: training has diverged\. Lower"):
        require_finite(answers)


def test_a_damaged_classifier_is_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["classifier.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"to be exactly those.*got 1 missing, the first: classifier\.weight\."):
        PlainClassifier(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="to open as an EfficientNetForImageClassification, but got: "):
        PlainClassifier(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="to open as an EfficientNetForImageClassification, but got: "):
        PlainClassifier(folder)


def test_a_classifier_of_several_labels_says_so(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    assert PlainClassifier(folder).is_multilabel

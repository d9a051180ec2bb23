"""A plain EfficientNet computes the head on ALIGN's image features, for towers of each activation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from finetune.core.errors import CheckpointError
from finetune.model.base import Base
from finetune.model.efficientnet import build_classifier, feature_scale
from finetune.model.head import LinearHead

CLASSES = ("cat", "dog", "Käse", "emu", "fox")


def build_head(width: int, is_multilabel: bool = False) -> LinearHead:
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, width, generator=random), torch.randn(5, generator=random)
    return LinearHead(weight, bias, CLASSES, is_multilabel)


@pytest.fixture(scope="module")
def mini() -> Base:
    return Base.open("align-mini")


@pytest.mark.parametrize("checkpoint", ["tiny", "align-mini"])
def test_logits_are_those_of_the_head(checkpoint, tiny):
    """Swish with squeeze-excite, and relu6; sides that the tower halves evenly and others."""
    align = Base.open(tiny if checkpoint == "tiny" else checkpoint).load()
    head = build_head(align.config.projection_dim)
    classifier = build_classifier(align, head)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for side in (64, 97):
            pixels = torch.randn(3, 3, side, side, generator=random)
            expected = head(align.get_image_features(pixels).pooler_output)
            found = classifier(pixels).logits
            assert expected.std() > 0.1
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_config_names_classes_and_their_kind(tiny):
    align = Base.open(tiny).load()
    config = build_classifier(align, build_head(64)).config
    assert config.id2label == dict(enumerate(CLASSES))
    assert config.label2id == {name: index for index, name in enumerate(CLASSES)}
    assert config.problem_type is None
    assert build_classifier(align, build_head(64, is_multilabel=True)).config.problem_type == (
        "multi_label_classification"
    )


def test_the_aligned_model_stays_as_it_is(tiny):
    align = Base.open(tiny).load()
    before = {name: tensor.clone() for name, tensor in align.state_dict().items()}
    classifier = build_classifier(align, build_head(64))
    for tensor in classifier.state_dict().values():
        tensor += 1
    assert all(tensor.equal(before[name]) for name, tensor in align.state_dict().items())


def test_scale_holds_for_images_far_from_any_seen(mini):
    """Constant, noise and huge values: no feature of align-mini reaches the border of relu6."""
    tower = mini.load().vision_model
    largest = []
    tower.encoder.blocks[-1].register_forward_hook(lambda _module, _inputs, output: largest.append(output.abs().max()))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for spread in (0.0, 1.0, 30.0, 1e4):
            tower(spread * torch.randn(4, 3, 64, 64, generator=generator) + spread)
    scale = feature_scale(tower)
    assert scale == 2 ** round(np.log2(scale))
    assert max(largest) / scale < 6


def test_scale_counts_blocks_that_add_to_each_other(mini):
    """A last stage of two blocks: the second adds to the first, and both bounds count."""
    tower = mini.load().vision_model
    single = feature_scale(tower)
    assert not tower.encoder.blocks[-1].projection.apply_dropout
    tower.encoder.blocks.append(tower.encoder.blocks[-1])
    assert feature_scale(tower) == single
    last, added = tower.encoder.blocks[-1], mini.load().vision_model.encoder.blocks[-1]
    assert last is not added
    added.projection.apply_dropout = True
    tower.encoder.blocks[-1] = added
    assert feature_scale(tower) == 2 * single


@pytest.mark.parametrize("name", ["swish", "silu", "gelu", "relu"])
def test_symmetric_activations_need_no_scale(name):
    features = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    torch.testing.assert_close(ACT2FN[name](features) - ACT2FN[name](-features), features)
    assert feature_scale(SimpleNamespace(config=SimpleNamespace(hidden_act=name))) == 1


def test_refuses_a_tower_or_head_that_does_not_fit(tiny):
    tower = SimpleNamespace(config=SimpleNamespace(hidden_act="tanh"))
    with pytest.raises(CheckpointError, match="activation to be one of gelu, relu, silu, swish, relu6, but got 'tanh'"):
        feature_scale(tower)
    with pytest.raises(CheckpointError, match=r"Expected the head to read 64 features, .* but got 63"):
        build_classifier(Base.open(tiny).load(), build_head(63))

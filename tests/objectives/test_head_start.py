import numpy as np
import pytest
import torch

from finetune.checkpoint import load_model
from finetune.metrics import class_embeddings
from finetune.objectives import Classification, FromProbe, FromPrompts, Seen
from finetune.objectives.discriminant import discriminant, one_against_rest
from finetune.towers.align import AlignTowers


def test_prompts_start_with_the_ranking_of_zero_shot(tiny):
    """Real towers: every image ranks all classes as cosine similarities do, and only the scale differs."""
    towers = AlignTowers(load_model(tiny), False, 0.01)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(32, 3, 64, 64, generator=generator)
    input_ids = torch.randint(1000, 2000, (12, 6), generator=generator)
    with torch.no_grad():
        features = towers.image_features(pixels)
        texts = towers.text_features(input_ids, torch.ones_like(input_ids))
        class_embeds = class_embeddings(texts, torch.arange(12))
        objective = Classification()
        zero_shot = objective.class_scores(features, class_embeds, towers.temperature)
        norm = features.norm(dim=-1)
        seen = Seen(features, torch.zeros(32, dtype=torch.int64), torch.ones(32))
        objective.start(*FromPrompts()(class_embeds, towers.temperature, seen))
        scores = objective.class_scores(features, class_embeds, towers.temperature)
    assert norm.max() > 1.01 * norm.min()
    assert torch.equal(scores.argsort(dim=1), zero_shot.argsort(dim=1))
    torch.testing.assert_close(scores, zero_shot * (norm / norm.mean())[:, None])


@pytest.mark.parametrize("multilabel", [False, True])
def test_probe_is_the_discriminant_of_what_was_seen(multilabel):
    generator = torch.Generator().manual_seed(0)
    features, weights = torch.randn(40, 6, generator=generator), torch.rand(40, generator=generator)
    label_ids = torch.arange(40) % 3
    truth = torch.nn.functional.one_hot(label_ids, 3).bool() if multilabel else label_ids
    weight, bias = FromProbe(shrinkage=4.0)(torch.eye(3, 6), torch.tensor(0.05), Seen(features, truth, weights))
    if multilabel:
        expected = one_against_rest(features, truth, weights, 4.0)
    else:
        expected = discriminant(features, truth, weights, 3, 4.0)
    assert (weight.dtype, bias.dtype) == (torch.float32, torch.float32)
    np.testing.assert_allclose(weight, expected[0], rtol=1e-5)
    np.testing.assert_allclose(bias, expected[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FromPrompts(rows=0), "Expected rows to be at least 1, but got 0."),
        (lambda: FromProbe(rows=0), "Expected rows to be at least 1, but got 0."),
        (lambda: FromProbe(views=0), "Expected views to be at least 1, but got 0."),
        (lambda: FromProbe(shrinkage=0.0), "Expected shrinkage to be positive and finite, but got 0.0."),
    ],
)
def test_numbers_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()

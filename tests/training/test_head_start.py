import numpy as np
import pytest
import scipy.special
import torch

from finetune.inference.embed import class_embeddings
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.model.towers import AlignTowers
from finetune.objectives import cosine_logits
from finetune.training.discriminant import discriminant, one_against_rest
from finetune.training.head_start import FromProbe, FromPrompts, Seen


def test_prompts_start_with_the_ranking_of_zero_shot(tiny):
    """Real towers: every image ranks all classes as cosine similarities do, and only the scale differs."""
    towers = AlignTowers(Base.open(tiny).load())
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(32, 3, 64, 64, generator=generator)
    input_ids = torch.randint(1000, 2000, (12, 6), generator=generator)
    with torch.no_grad():
        features = towers.image_features(pixels)
        texts = towers.text_features(input_ids, torch.ones_like(input_ids))
        class_embeds = class_embeddings(texts, torch.arange(12))
        zero_shot = cosine_logits(features, class_embeds, towers.temperature)
        norm = features.norm(dim=-1)
        seen = Seen(features, torch.zeros(32, dtype=torch.int64), torch.ones(32))
        scores = LinearHead(*FromPrompts()(class_embeds, towers.temperature, seen), range(12))(features)
    assert norm.max() > 1.01 * norm.min()
    assert torch.equal(scores.argsort(dim=1), zero_shot.argsort(dim=1))
    torch.testing.assert_close(scores, zero_shot * (norm / norm.mean())[:, None])


def smoothed_loss(logits, truth, weights, smoothing):
    """Cross-entropy with smoothed labels in NumPy; a yes-or-no question for each class where truth has columns."""
    if truth.ndim == 2:
        yes = truth * (1 - smoothing) + smoothing / 2
        rows = (yes * np.logaddexp(0, -logits) + (1 - yes) * np.logaddexp(0, logits)).mean(1)
    else:
        log_shares = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        wanted = np.full(logits.shape, smoothing / logits.shape[1])
        wanted[np.arange(len(truth)), truth] += 1 - smoothing
        rows = -(wanted * log_shares).sum(1)
    return (rows * weights).sum()


@pytest.mark.parametrize("multilabel", [False, True])
def test_probe_is_the_discriminant_at_the_scale_that_suits_smoothed_labels(multilabel):
    generator = torch.Generator().manual_seed(0)
    features, weights = torch.randn(40, 60, generator=generator), torch.rand(40, generator=generator)
    label_ids = torch.arange(40) % 3
    truth = torch.nn.functional.one_hot(label_ids, 3).bool() if multilabel else label_ids
    probe = FromProbe(shrinkage=4.0, smoothing=0.2)
    weight, bias = probe(torch.eye(3, 60), torch.tensor(0.05), Seen(features, truth, weights))
    weights *= 40 / weights.sum()  # on the mean each row counts for one
    arguments = (features, truth, weights, 4.0) if multilabel else (features, truth, weights, 3, 4.0)
    expected = (one_against_rest if multilabel else discriminant)(*arguments)
    factors = weight / expected[0]
    factor = factors.mean().item()
    assert (weight.dtype, bias.dtype) == (torch.float32, torch.float32)
    np.testing.assert_allclose(factors, factor, rtol=1e-3)
    np.testing.assert_allclose(bias, factor * expected[1], rtol=1e-3)
    logits = (features.double() @ expected[0].T + expected[1]).numpy()
    tried = [factor * step for step in (0.7, 0.9, 1.0, 1.1, 1.4)]
    losses = [smoothed_loss(each * logits, truth.numpy(), weights.numpy(), 0.2) for each in tried]
    assert int(np.argmin(losses)) == 2


def test_probe_is_as_sure_of_separable_rows_as_its_smoothing_says():
    features = torch.randn(12, 200, generator=torch.Generator().manual_seed(0))
    label_ids = torch.arange(12) % 4
    weight, bias = FromProbe(smoothing=0.1)(
        torch.eye(4, 200), torch.tensor(0.05), Seen(features, label_ids, torch.ones(12))
    )
    own = (features @ weight.T + bias).softmax(dim=1)[torch.arange(12), label_ids]
    assert own.mean().item() == pytest.approx(0.9 + 0.1 / 4, abs=0.02)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FromPrompts(rows=0), "Expected rows to be at least 1, but got 0."),
        (lambda: FromProbe(rows=0), "Expected rows to be at least 1, but got 0."),
        (lambda: FromProbe(views=0), "Expected views to be at least 1, but got 0."),
        (lambda: FromProbe(smoothing=1.0), r"Expected smoothing to be in \(0, 1\), but got 1.0."),
        (lambda: FromProbe(shrinkage=0.0), "Expected shrinkage to be positive and finite, but got 0.0."),
    ],
)
def test_numbers_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("several", [False, True])
def test_the_scale_of_the_weights_does_not_count(several):
    """As in the loss. Where all rows seen weigh nothing, each counts once."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 8, generator=generator)
    truth = torch.rand(40, 3, generator=generator) < 0.3 if several else torch.arange(40) % 3
    weights = torch.rand(40, generator=generator) + 0.5
    weights *= 40 / weights.sum()

    def probe(weights):
        seen = Seen(features, truth, weights)
        return torch.cat([part.ravel() for part in FromProbe()(torch.eye(3), torch.tensor(1.0), seen)])

    for factor in (1e-4, 100.0):
        torch.testing.assert_close(probe(factor * weights), probe(weights), rtol=1e-3, atol=1e-4)
    assert torch.equal(probe(torch.zeros(40)), probe(torch.ones(40)))

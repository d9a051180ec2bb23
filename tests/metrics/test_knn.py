import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from finetune.metrics.knn import neighbour_votes


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def reference(queries, train, labels, classes, neighbours, temperature=0.07):
    """Wu et al. 2018 as loops: the k most similar ones, each with exp(s / T), summed by class."""
    votes = np.zeros((len(queries), classes))
    for row, query in enumerate(queries):
        similarities = train @ query
        for nearest in np.argsort(-similarities)[:neighbours]:
            votes[row, labels[nearest]] += np.exp(similarities[nearest] / temperature)
    return votes


@pytest.mark.parametrize("neighbours", [1, 2, 20, 60, 500])
@pytest.mark.parametrize("seed", range(3))
def test_votes_are_those_of_the_paper(neighbours, seed):
    queries, train = unit(31, 6, seed=seed), unit(60, 6, seed=seed + 100)
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(seed))
    votes = neighbour_votes(queries, train, labels, 7, neighbours, most_similarities=8 * len(train)).numpy()
    expected = reference(queries.double().numpy(), train.double().numpy(), labels.numpy(), 7, neighbours)
    # 1e-3, as similarities that differ by less than 1e-5 share the last place here.
    assert votes / votes.sum(1, keepdims=True) == pytest.approx(expected / expected.sum(1, keepdims=True), abs=1e-3)


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_predictions_are_those_of_scikit_learn(neighbours):
    queries, train = unit(200, 8, seed=1), unit(300, 8, seed=2)
    labels = torch.randint(0, 6, (300,), generator=torch.Generator().manual_seed(3))
    theirs = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
    theirs.fit(train.double().numpy(), labels.numpy())
    found = neighbour_votes(queries, train, labels, 6, neighbours).argmax(1)
    assert found.tolist() == theirs.predict(queries.double().numpy()).tolist()


def test_equal_neighbours_share_the_last_places():
    """One place is taken; three equal embeddings of two classes share the second."""
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, -0.8], [-1.0, 0.0]])
    votes = neighbour_votes(torch.tensor([[1.0, 0.0]]), train, torch.tensor([0, 1, 1, 2, 2]), 3, neighbours=2)
    weight = np.exp((0.6 - 1) / 0.07)
    assert votes[0].tolist() == pytest.approx([1, weight * 2 / 3, weight / 3])


def test_a_collapsed_model_votes_by_frequency_whatever_the_order():
    labels = torch.tensor([0, 1, 1, 1, 2, 2])
    for order in (torch.arange(6), torch.arange(6).flip(0)):
        votes = neighbour_votes(unit(1, 4).expand(5, 4), unit(1, 4).expand(6, 4), labels[order], 3, neighbours=2)
        assert (votes / votes.sum(1, keepdim=True)).tolist()[0] == pytest.approx([1 / 6, 3 / 6, 2 / 6])


def test_half_precision_and_autocast_are_compared_in_float32():
    queries, train, labels = unit(20, 64, seed=1).bfloat16(), unit(50, 64, seed=2).bfloat16(), torch.arange(50) % 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = neighbour_votes(queries, train, labels, 3)
    assert half.equal(neighbour_votes(queries.float(), train.float(), labels, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neighbours": 0}, r"Expected neighbours to be at least 1, but got 0\."),
        ({"most_similarities": 0}, r"Expected most_similarities to be at least 1, but got 0\."),
        ({"temperature": 0.0}, r"Expected temperature to be above 0, but got 0\.0\."),
        ({"train_embeds": torch.empty(0, 4)}, r"Expected train_embeds to hold at least one embedding, but got none\."),
    ],
)
def test_refuses_what_makes_no_vote(arguments, message):
    given = {"train_embeds": unit(4, 4), "train_labels": torch.arange(4)} | arguments
    with pytest.raises(ValueError, match=message):
        neighbour_votes(unit(2, 4), classes=4, **given)

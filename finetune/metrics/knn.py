"""The nearest training images classify: so embeddings are measured without any training."""

import torch
from torch import Tensor

from finetune.metrics.precision import full_float32
from finetune.metrics.ranking import TIE


def neighbour_votes(
    query_embeds: Tensor,
    train_embeds: Tensor,
    train_labels: Tensor,
    classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
    most_similarities: int = 1 << 22,
) -> Tensor:
    """Scores the classes of each query by a weighted vote of its nearest neighbours.

    The weighted k-NN classifier of Wu et al. 2018 (arXiv 1805.01978, section 3.4), with the 20 neighbours that
    DINO (Caron et al. 2021, arXiv 2104.14294) found best: each of the nearest training embeddings votes for its
    class with exp(cosine / temperature). With one neighbour it is the nearest one's class, which is what
    COYO-ALIGN's table calls ImageNet KNN.

    Embeddings that tie for the last of the k places share what is left of them, so the order of the rows decides
    nothing, and a collapsed model votes for the most frequent class.
    Similarities are taken in float32 (see `finetune.metrics.precision.full_float32`).

    Args:
        query_embeds: Unit vectors of shape (Q, D).
        train_embeds: Unit vectors of shape (N, D).
        train_labels: Int64 tensor of shape (N,), in [0, classes).
        classes: Number of classes.
        neighbours: How many training embeddings vote, at least 1; all of them where there are fewer.
        temperature: Divides the cosine similarities, above 0.
        most_similarities: How many similarities memory holds at a time, at least 1; those of one query in any case.

    Returns:
        Float tensor of shape (Q, classes), higher is better, 0 for a class without a vote.

    Raises:
        ValueError: If there is no training embedding, or one of the three last arguments is too small.

    Example:
        >>> circle = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> neighbour_votes(circle[:1], circle, torch.tensor([1, 0, 0]), classes=2, neighbours=2).argmax(1)
        tensor([1])
    """
    if not len(train_embeds):
        raise ValueError("Expected train_embeds to hold at least one embedding, but got none.")
    for name, number in (("neighbours", neighbours), ("most_similarities", most_similarities)):
        if number < 1:
            raise ValueError(f"Expected {name} to be at least 1, but got {number}.")
    if not temperature > 0:
        raise ValueError(f"Expected temperature to be above 0, but got {temperature}.")
    votes = torch.zeros(len(query_embeds), classes, device=query_embeds.device)
    queries = max(1, most_similarities // len(train_embeds))
    for start in range(0, len(query_embeds), queries):
        own = slice(start, start + queries)
        with full_float32(query_embeds.device):
            similarities = query_embeds[own].float() @ train_embeds.float().T
        last = similarities.topk(min(neighbours, len(train_embeds))).values[:, -1:]
        query, neighbour = (similarities >= last - TIE).nonzero(as_tuple=True)
        similarity = similarities[query, neighbour]
        tied = similarity <= last[query, 0] + TIE
        places = _share(query, tied, min(neighbours, len(train_embeds)), len(similarities))
        weights = places * ((similarity - 1) / temperature).exp()  # minus 1 scales all alike, and nothing overflows
        votes[own].index_put_((query, train_labels[neighbour]), weights, accumulate=True)
    return votes


def _share(query: Tensor, tied: Tensor, places: int, queries: int) -> Tensor:
    """Returns which part of a place each neighbour takes: all of it, or a share of the last places where they are tied.

    Args:
        query: Int64 tensor of shape (M,), the query of each neighbour.
        tied: Bool tensor of shape (M,), whether a neighbour is tied for the last place.
        places: Places of each query.
        queries: Number of queries.
    """
    counts = torch.zeros(queries, 2, device=query.device)
    counts.index_put_((query, tied.long()), torch.ones_like(query, dtype=counts.dtype), accumulate=True)
    share = (places - counts[:, 0]) / counts[:, 1]
    return torch.where(tied, share[query], 1.0)

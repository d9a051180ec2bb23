"""How far apart embeddings lie, and in how many directions: a collapse takes both away."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def spread(total: Tensor, count: int) -> float:
    """Returns one minus the mean cosine of all pairs of different rows: 0 where all are equal, 1 where unrelated.

    The sum of the unit vectors is enough: their mean cosine is (|sum|^2 - N) / (N (N - 1)).

    Args:
        total: Sum of N unit vectors, shape (D,).
        count: N, at least 2.

    Example:
        >>> spread(torch.tensor([2.0, 0.0]), 2), spread(torch.tensor([1.0, 1.0]), 2)
        (0.0, 1.0)
    """
    return 1.0 - (float(total.double().square().sum()) - count) / (count * (count - 1))


def effective_rank(gram: Tensor) -> float:
    """Returns the effective rank of a matrix of rows, from 1 to the smaller of its sides.

    With the singular values s of the matrix and p = s / sum(s) it is exp(-sum p log p) (Roy and Vetterli 2007, "The
    effective rank: a measure of effective dimensionality", EUSIPCO). The mean is not taken out first, so rows that are
    all equal have an effective rank of 1.

    Args:
        gram: The matrix's transpose times the matrix, shape (D, D); in float64, or small singular values are noise.

    Example:
        >>> round(effective_rank(torch.eye(3)), 3), round(effective_rank(torch.ones(3, 3)), 3)
        (3.0, 1.0)
    """
    singular = torch.linalg.eigvalsh(gram.double()).clamp_min(0.0).sqrt()
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


class Cloud:
    """Takes in features batch by batch, and gives spread and effective rank of their directions; sums alone are kept.

    Attributes:
        count: Number of distinct features that have a direction.
        broken: Number of those that have none, as their norm is 0 or not finite in float32.

    Example:
        >>> cloud = Cloud()
        >>> cloud.update(torch.tensor([[3.0, 0.0]]), torch.tensor([7]))
        >>> cloud.update(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([8, 7]))
        >>> cloud.count, cloud.broken, cloud.spread, round(cloud.effective_rank, 3)
        (2, 0, 1.0, 2.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.broken = 0
        self._seen: set[int] = set()
        self._total = torch.zeros(())
        self._gram = torch.zeros(())

    def update(self, features: Tensor, ids: Tensor) -> None:
        """Takes in a batch. Of equal ids the first counts.

        Args:
            features: Float tensor of shape (B, D), normalised here.
            ids: Int64 tensor of shape (B,).
        """
        first = {item: position for position, item in reversed([*enumerate(ids.tolist())])}
        new = features.detach().float().cpu()[[first[item] for item in first if item not in self._seen]]
        self._seen.update(first)
        norms = new.norm(dim=-1)
        is_whole = norms.isfinite() & (norms > 0)
        unit = normalize(new[is_whole].double(), dim=-1)
        self.count += len(unit)
        self.broken += len(new) - len(unit)
        self._total = self._total + unit.sum(0)
        self._gram = self._gram + unit.T @ unit

    @property
    def spread(self) -> float:
        """The spread, see `finetune.metrics.spread`; needs a count of at least 2."""
        return spread(self._total, self.count)

    @property
    def effective_rank(self) -> float:
        """The effective rank, see `finetune.metrics.effective_rank`; needs a count of at least 1."""
        return effective_rank(self._gram)

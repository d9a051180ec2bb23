"""Where the correct item of a query stands among all items, and what a tie is worth.

Items that score the same stand in random order, and each figure is its expectation over that order. The expectation
needs no random numbers, and cannot reward a collapsed model, as the order of the columns otherwise would.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TIE = 1e-5  # Columns of a float32 matrix product that ought to be equal were seen to differ by 2.4e-6.


class Placement(NamedTuple):
    """Where the best correct item of each of Q queries stands.

    Attributes:
        better: Number of items that score higher, shape (Q,).
        tied_correct: Number of correct items with the best correct score, at least 1, shape (Q,).
        tied_wrong: Number of other items with that score, shape (Q,).
    """

    better: Tensor
    tied_correct: Tensor
    tied_wrong: Tensor

    def ranks(self) -> Tensor:
        """Returns the expected rank, from 1, of the first correct item, float shape (Q,).

        Example:
            >>> Placement(torch.tensor([2]), torch.tensor([1]), torch.tensor([4])).ranks()
            tensor([5.])
        """
        return 1 + self.better + self.tied_wrong / (self.tied_correct + 1)

    def hits(self, k: int) -> Tensor:
        """Returns the probability that a correct item is among the k best, float shape (Q,).

        Without ties the probability is 0 or 1. With ties it is one minus the hypergeometric probability that wrong
        items take all the places that are left.

        Args:
            k: Number of items looked at, at least 1.

        Example:
            >>> Placement(torch.tensor([2]), torch.tensor([1]), torch.tensor([4])).hits(3)
            tensor([0.2000])
        """
        miss = torch.ones(self.better.shape, device=self.better.device)
        for drawn in range(k):
            wrong = (self.tied_wrong - drawn).clamp_min(0)
            still_missing = wrong / (wrong + self.tied_correct)
            miss = miss * still_missing.where(drawn < k - self.better, 1.0)
        return 1 - miss


def place(scores: Tensor, queries: Tensor, items: Tensor, tie: Tensor | float) -> Placement:
    """Finds the best correct item of each query in one chunk of scores.

    Args:
        scores: Float tensor of shape (Q, G), higher is better.
        queries: Int64 tensor of shape (P,), the query of each correct pair; each query occurs.
        items: Int64 tensor of shape (P,), the item of each correct pair; no pair occurs twice.
        tie: Scores that differ by no more are equal; one number, or one for each query, shape (Q,).
    """
    correct_scores = scores[queries, items]
    best = torch.full_like(scores[:, 0], -torch.inf).scatter_reduce(0, queries, correct_scores, "amax")
    lowest, highest = best - tie, best + tie
    better = (scores > highest[:, None]).sum(1)
    tied = (scores >= lowest[:, None]).sum(1) - better
    tied_correct = torch.zeros_like(tied).index_add(0, queries, (correct_scores >= lowest[queries]).to(tied.dtype))
    return Placement(better, tied_correct, tied - tied_correct)

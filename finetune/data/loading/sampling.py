"""Which rows an epoch of training is made of, where it is not each of them once."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from finetune.core.errors import RecipeError, TableError
from finetune.data.table.cells import Floats, Integers

Weights = npt.NDArray[np.float32] | Floats


class Sampling(ABC):
    """Draws the rows of an epoch, as many as the table has.

    Rows and their order depend on seed and epoch alone, so that a run goes on where it was stopped.

    Attributes:
        replaces_weights: Whether rows are drawn by their weights, which then do not count in the loss as well.
    """

    replaces_weights: ClassVar[bool] = False

    @abstractmethod
    def check(self, label: str | None, weight: str | None) -> None:
        """Refuses a table that does not say what rows are drawn by.

        Args:
            label: The table's column of labels, if it has one.
            weight: The table's column of weights, if it has one.

        Raises:
            RecipeError: If the column that is needed is None.
        """

    @abstractmethod
    def order(self, label_ids: Integers, weights: Weights, seed: int, epoch: int) -> Integers:
        """The rows of an epoch, in the order of training.

        Args:
            label_ids: Int64 array of shape (N,): the class of each row, -1 for none.
            weights: Float array of shape (N,): the weight of each row.
            seed: Seed of the run.
            epoch: Epoch, from 0.

        Returns:
            Int64 array of shape (N,): positions from 0 to N - 1, some of them several times or not at all.
        """


class ClassBalanced(Sampling):
    """Draws equally many rows of each class, or a number between that and the class's own.

    A class of n rows is drawn in proportion to n ** power. That is the family of samplings of Kang et al. 2020
    (arXiv 1910.09217): 0 balances the classes, 1 leaves them as they are, 0.5 is square-root sampling.

    A class is dealt like a deck of cards: each of its rows comes once before one of them comes again, epochs
    included. Of a large class an epoch sees a part, and the next epoch goes on with the rest. Rows with no label, as
    a table of several labels may have, are a class of their own.

    Args:
        power: From 0 (equally many of each class) to 1 (each row once).

    Raises:
        RecipeError: If the power is out of its range.
    """

    def __init__(self, power: float = 0.0) -> None:
        if not 0 <= power <= 1:
            raise RecipeError(f"Expected data.sampling.power to be from 0 to 1, but got {power}.")
        self.power = power

    def check(self, label: str | None, weight: str | None) -> None:  # noqa: ARG002
        """Refuses a table without labels."""
        if label is None:
            raise RecipeError(
                "Expected data.table.label to name a column with ClassBalanced, but got none. "
                "Pass --data.table.label COLUMN, or leave data.sampling out."
            )

    def order(self, label_ids: Integers, weights: Weights, seed: int, epoch: int) -> Integers:  # noqa: ARG002
        """The rows of an epoch; see `Sampling.order`."""
        classes, counts = np.unique(label_ids, return_counts=True)
        by_class = np.split(np.argsort(label_ids, kind="stable"), np.cumsum(counts)[:-1])
        draws = _apportion(len(label_ids), counts.astype(np.float64) ** self.power)
        dealt = [
            _deal(rows, draw, seed, epoch, label)
            for rows, draw, label in zip(by_class, draws.tolist(), classes.tolist(), strict=True)
        ]
        return np.random.default_rng([seed, epoch]).permutation(np.concatenate(dealt))


class WeightedRows(Sampling):
    """Draws rows in proportion to the table's weights, which then do not count in the loss as well.

    With the weights w, row i is expected N * w[i] / sum(w) times, and comes that many times rounded down or up:
    systematic sampling in a random order (Madow 1949, Annals of Mathematical Statistics 20:333). Of rows of equal
    weight none comes twice more often than another, as it would if each draw were independent.
    """

    replaces_weights = True

    def check(self, label: str | None, weight: str | None) -> None:  # noqa: ARG002
        """Refuses a table without weights."""
        if weight is None:
            raise RecipeError(
                "Expected data.table.weight to name a column with WeightedRows, but got none. "
                "Pass --data.table.weight COLUMN, or leave data.sampling out."
            )

    def order(self, label_ids: Integers, weights: Weights, seed: int, epoch: int) -> Integers:  # noqa: ARG002
        """The rows of an epoch; see `Sampling.order`.

        Raises:
            TableError: If all weights are 0.
        """
        generator = np.random.default_rng([seed, epoch])
        shuffled: Integers = generator.permutation(len(weights))
        ends = np.cumsum(weights[shuffled], dtype=np.float64)
        total = ends[-1]
        if total == 0:
            raise TableError(
                f"Expected weights above 0 in training rows with WeightedRows, but got 0 in all {len(weights):,}."
            )
        points = (np.arange(len(weights)) + generator.random()) * (total / len(weights))
        drawn = np.searchsorted(ends, np.minimum(points, np.nextafter(total, 0)), side="right")
        return generator.permutation(shuffled[drawn])


def _apportion(total: int, shares: Floats) -> Integers:
    """Whole numbers in proportion to the shares that sum to the total: rounded down, largest remainders up."""
    exact = total * shares / shares.sum()
    counts: Integers = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _deal(rows: Integers, draw: int, seed: int, epoch: int, label: int) -> Integers:
    """The cards that an epoch gets of a class, of decks that are each shuffled and used up in turn."""
    decks = -(-draw // len(rows))  # shuffled at a time: a generator for each of them would take seconds
    cards, first = decks * len(rows), epoch * draw
    dealt = [
        np.random.default_rng([seed, part, label % 2**32, 2]).permuted(np.tile(rows, (decks, 1)), axis=1).ravel()
        for part in range(first // cards, -(-(first + draw) // cards))
    ]
    return np.concatenate(dealt)[first % cards :][:draw]

"""Samplings: ways to draw the rows of a training epoch other than taking each row once."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from finetune.core.errors import RecipeError, TableError
from finetune.data.table.cells import Floats, Integers

Weights = npt.NDArray[np.float32] | Floats


class Sampling(ABC):
    """Draws as many rows for an epoch as the table has.

    Only seed and epoch decide the rows and their order, so a training that starts again draws the same ones.

    Attributes:
        needs: The column of `data.table` that the draw needs, `label` or `weight`; None for neither.
        replaces_weights: Whether the draw uses up the rows' weights, which then do not count in the loss.
    """

    needs: ClassVar[Literal["label", "weight"] | None] = None
    replaces_weights: ClassVar[bool] = False

    def check(self, label: str | None, weight: str | None) -> None:
        """Refuses a table that lacks the column that the draw needs.

        Args:
            label: The table's column of labels, if it has one.
            weight: The table's column of weights, if it has one.

        Raises:
            RecipeError: If the column is None.
        """
        if self.needs is not None and {"label": label, "weight": weight}[self.needs] is None:
            key = f"data.table.{self.needs}"
            raise RecipeError(
                f"Expected {key} to name a column with {type(self).__name__}, but got none. "
                f"Pass --{key} COLUMN, or leave data.sampling out."
            )

    @abstractmethod
    def order(self, label_ids: Integers, weights: Weights, seed: int, epoch: int) -> Integers:
        """Draws the rows of an epoch, in the order of training.

        Args:
            label_ids: Int64 array of shape (N,): the class of each row, -1 for none.
            weights: Float array of shape (N,): the weight of each row.
            seed: Seed of the run.
            epoch: Epoch, from 0.

        Returns:
            Int64 array of shape (N,): positions from 0 to N - 1, some of them several times or not at all.
        """


class ClassBalanced(Sampling):
    """Draws as many rows of each class, or a number between that and the class's own size.

    A class of n rows gets a share in proportion to n ** power, as in Kang et al. 2020 (arXiv 1910.09217): power 0
    balances the classes, 1 leaves them as they are, 0.5 is square-root sampling.

    A class is dealt like a deck of cards: all of its rows come before any of them comes again, across epochs too. An
    epoch sees part of a large class, and the next epoch continues with the rest. Rows without a label, which a table
    with several labels a row may have, form a class of their own.

    Args:
        power: From 0 (the same number of each class) to 1 (each row once).

    Raises:
        RecipeError: If the power is out of its range.
    """

    needs = "label"

    def __init__(self, power: float = 0.0) -> None:
        if not 0 <= power <= 1:
            raise RecipeError(f"Expected data.sampling.power to be from 0 to 1, but got {power}.")
        self.power = power

    def order(self, label_ids: Integers, weights: Weights, seed: int, epoch: int) -> Integers:  # noqa: ARG002
        """Draws the rows of an epoch; see `Sampling.order`."""
        classes, counts = np.unique(label_ids, return_counts=True)
        by_class = np.split(np.argsort(label_ids, kind="stable"), np.cumsum(counts)[:-1])
        draws = _apportion(len(label_ids), counts.astype(np.float64) ** self.power)
        dealt = [
            _deal(rows, draw, seed, epoch, label)
            for rows, draw, label in zip(by_class, draws.tolist(), classes.tolist(), strict=True)
        ]
        return np.random.default_rng([seed, epoch]).permutation(np.concatenate(dealt))


class WeightedRows(Sampling):
    """Draws rows in proportion to the table's weights, which then do not count in the loss.

    With the weights w, row i is expected N * w[i] / sum(w) times, and comes that many times rounded down or up:
    systematic sampling in a random order (Madow 1949, Annals of Mathematical Statistics 20:333). So rows of equal
    weight come equally often, to within one; independent draws would not guarantee that.
    """

    needs = "weight"
    replaces_weights = True

    def order(self, label_ids: Integers, weights: Weights, seed: int, epoch: int) -> Integers:  # noqa: ARG002
        """Draws the rows of an epoch; see `Sampling.order`.

        Raises:
            TableError: If all weights are 0.
        """
        generator = np.random.default_rng([seed, epoch])
        shuffled: Integers = generator.permutation(len(weights))
        ends = np.cumsum(weights[shuffled], dtype=np.float64)
        total = ends[-1]
        if total == 0:
            raise TableError(
                f"Expected a training row to have a weight above 0 with WeightedRows, but got 0 in all "
                f"{len(weights):,}. Correct the column of data.table.weight, or leave data.sampling out."
            )
        points = (np.arange(len(weights)) + generator.random()) * (total / len(weights))
        drawn = np.searchsorted(ends, np.minimum(points, np.nextafter(total, 0)), side="right")
        return generator.permutation(shuffled[drawn])


def _apportion(total: int, shares: Floats) -> Integers:
    """Divides the total into whole numbers in proportion to the shares; the largest remainders are rounded up."""
    exact = total * shares / shares.sum()
    counts: Integers = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _deal(rows: Integers, draw: int, seed: int, epoch: int, label: int) -> Integers:
    """Deals the rows of a class to an epoch, from shuffled decks that are used up in turn."""
    decks = -(-draw // len(rows))  # shuffled together: a generator for each deck would take seconds
    cards, first = decks * len(rows), epoch * draw
    dealt = [
        np.random.default_rng([seed, part, label % 2**32, 2]).permuted(np.tile(rows, (decks, 1)), axis=1).ravel()
        for part in range(first // cards, -(-(first + draw) // cards))
    ]
    return np.concatenate(dealt)[first % cards :][:draw]

"""Ways to search vectors: by all of them, or by an index of another library."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.inference.nearest import Nearest, find_nearest
from finetune.inference.vectors import FloatArray, VectorSource


class Found(NamedTuple):
    """What a way finds.

    Attributes:
        nearest: The answers.
        compared: With how many vectors each query was compared; None where that is not known.
        recall: Share of the exact answers that are among them; None where they are the exact ones.
        asked: Queries whose exact answers were looked for to measure that.
    """

    nearest: Nearest
    compared: int | None
    recall: float | None = None
    asked: int = 0


class Way(ABC):
    """A way to search."""

    @abstractmethod
    def find(self, index: VectorSource, queries: FloatArray, top: int) -> Found:
        """Finds the vectors of largest cosine with each query.

        Args:
            index: The vectors.
            queries: Array of shape (Q, D).
            top: Answers to each.

        Raises:
            RecipeError: If the index cannot be searched in this way.
        """


class Exact(Way):
    """Compares each query with all vectors.

    Args:
        kept: Bool array, which of all vectors to look at; None for all.
    """

    def __init__(self, kept: npt.NDArray[np.bool_] | None = None) -> None:
        self._kept = kept

    def find(self, index: VectorSource, queries: FloatArray, top: int) -> Found:
        """Reads the vectors once, see `find_nearest`."""
        facts = index.read_facts()
        is_unit = facts.space.normalised and facts.space.dtype == "float32"
        nearest = find_nearest(index.read_vectors, queries, top, self._kept, is_unit)
        return Found(nearest, facts.rows if self._kept is None else int(self._kept.sum()))

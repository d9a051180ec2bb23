"""The vectors that are most similar to queries, found exactly: all of them are looked at."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from finetune.inference.vectors import FloatArray
from finetune.metrics.ranking import TIE

SPARE = 32
"""Vectors kept beyond those asked for, as rounding in float32 may change the order of the last ones."""
QUERIES = 1024
"""Queries answered in one pass over the vectors."""
BLOCK = 32_768
"""Vectors compared at a time: so many that little but the memory's own speed counts."""


class Nearest(NamedTuple):
    """The most similar vectors of each query, the best first; where they are equally similar, the first one first.

    Attributes:
        rows: Int64 array of shape (Q, K), their positions among all vectors.
        similarity: Float64 array of shape (Q, K), their cosines.
        ranks: Int64 array of shape (Q, K): one more than the number of vectors that are better by more than `TIE`.
        goes_on: Bool array of shape (Q,), whether a vector that was left out is as similar as the last one.
    """

    rows: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.int64]
    goes_on: npt.NDArray[np.bool_]


def find_nearest(
    read: Callable[[], Iterable[FloatArray]],
    queries: FloatArray,
    top: int,
    kept: npt.NDArray[np.bool_] | None = None,
    normalised: bool = False,
) -> Nearest:
    """Returns the vectors of the largest cosines with each query.

    The best ones are compared once more in float64: equal vectors are equally similar wherever they lie.

    Args:
        read: Called for each pass over the vectors; yields them in order, as arrays of shape (N, D) in float32 or
            float16, of any N.
        queries: Array of shape (Q, D), of any lengths but 0.
        top: K, or the number of vectors where that is smaller.
        kept: Bool array, which of all vectors to look at; None for all.
        normalised: Whether all vectors have length 1 in float32, which saves computing it.
    """
    found = []
    for at in range(0, len(queries), QUERIES):
        best = _Best(normalise(queries[at : at + QUERIES]), top + SPARE)
        start = 0
        for piece in read():
            for first in range(0, len(piece), BLOCK):
                block = piece[first : first + BLOCK]
                rows = np.arange(start, start + len(block))
                start += len(block)
                if kept is not None:
                    block, rows = block[kept[rows]], rows[kept[rows]]
                if len(block):
                    best.look(block, rows, normalised)
        found.append(best.finish(top))
    return Nearest(*map(np.concatenate, zip(*found, strict=True)))


class _Best:
    """The best vectors of some queries so far.

    Args:
        queries: Array of shape (Q, D) of length 1.
        most: How many are kept of each.
    """

    def __init__(self, queries: npt.NDArray[np.float64], most: int) -> None:
        self._queries, self._most = queries, most
        self._asked = torch.from_numpy(queries.astype(np.float32))
        self._least = torch.full((len(queries), 1), -torch.inf)
        self._kept = _Candidates.none(queries.shape[1])
        self._new: list[_Candidates] = []

    def look(self, block: FloatArray, rows: npt.NDArray[np.int64], normalised: bool) -> None:
        """Takes in what may be among the best of a block."""
        vectors = torch.from_numpy(np.require(block, np.float32, ["C", "W"]))
        scores = self._asked @ vectors.T
        if not normalised:
            scores /= torch.linalg.vector_norm(vectors, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        asked = (scores.amax(1, keepdim=True) >= self._least).squeeze(1).nonzero().squeeze(1)
        if len(asked) == 0:
            return
        scores, least = scores[asked], self._least[asked]
        if len(block) > self._most:  # of a block, too, no more can be among the best
            least = least.maximum(scores.topk(self._most, dim=1, sorted=False).values.amin(1, keepdim=True))
        queries, at = (scores >= least).nonzero(as_tuple=True)
        values = scores[queries, at].numpy()
        self._new.append(_Candidates(asked[queries].numpy(), rows[at.numpy()], values, vectors[at].numpy()))
        if sum(len(new.rows) for new in self._new) > len(self._queries) * self._most:
            self._choose()

    def _choose(self) -> None:
        """Keeps the best of what was taken in."""
        joined = _Candidates(*map(np.concatenate, zip(self._kept, *self._new, strict=True)))
        order = np.lexsort((joined.rows, -joined.scores, joined.queries))
        counts = np.bincount(joined.queries, minlength=len(self._queries))
        place = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        self._kept = _Candidates(*(part[order[place < self._most]] for part in joined))
        self._new = []
        full = counts >= self._most
        last = np.minimum(counts, self._most).cumsum() - 1
        self._least = torch.from_numpy(np.where(full, self._kept.scores[last], -np.inf).astype(np.float32))[:, None]

    def finish(self, top: int) -> Nearest:
        """Orders the best ones by their similarity in float64, then by their position."""
        self._choose()
        queries, rows, _, vectors = self._kept
        exact = (normalise(vectors) * self._queries[queries]).sum(-1)
        order: npt.NDArray[Any] = np.lexsort((rows, -exact, queries))
        found = len(rows) // len(self._queries)  # the same number of each
        rows, exact = (part[order].reshape(-1, found) for part in (rows, exact))
        goes_on = (exact[:, top : top + 1] >= exact[:, top - 1 : top] - TIE).any(1)
        return Nearest(rows[:, :top], exact[:, :top], rank(exact[:, :top]), goes_on)


class _Candidates(NamedTuple):
    """Pairs of a query and a vector."""

    queries: npt.NDArray[Any]
    rows: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    vectors: npt.NDArray[Any]

    @classmethod
    def none(cls, dimension: int) -> "_Candidates":
        nothing = np.empty(0, np.int64)
        return cls(nothing, nothing, np.empty(0, np.float32), np.empty((0, dimension), np.float32))


def rank(similarity: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Returns for each answer one more than the number of those that are better by more than `TIE`.

    Args:
        similarity: Float array of shape (Q, K), descending in each row.
    """
    return np.array([1 + np.searchsorted(-row, -(row + TIE)) for row in similarity], np.int64).reshape(similarity.shape)


def normalise(vectors: FloatArray) -> npt.NDArray[np.float64]:
    """Returns vectors of length 1 in float64; those of length 0 stay.

    Args:
        vectors: Float array of shape (..., D).
    """
    wide: npt.NDArray[np.float64] = vectors.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return wide

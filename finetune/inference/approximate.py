"""Search by faiss, which looks at a part of the vectors; how much it misses is measured."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.core.errors import RecipeError
from finetune.core.files import write_bytes, write_text
from finetune.inference.nearest import Nearest, normalise, rank
from finetune.inference.vectors import FloatArray, VectorSource
from finetune.inference.ways import Exact, Found, Way

MEASURED = 100
"""Queries whose exact answers are looked for."""
TRAINED_ON = 200_000
"""Vectors on which faiss trains what it divides or compresses the others by."""


class Faiss(Way):
    """Searches an index of faiss, which is built at its first use and kept.

    Args:
        place: The vectors' file or folder, beside which it is kept as `NAME.FACTORY.faiss`.
        factory: What faiss builds, as its `index_factory` reads it: `IVF1024,Flat`, `HNSW32`, `IVF4096,PQ64`.
        parameters: What its `ParameterSpace` reads, such as `nprobe=16`.

    Raises:
        RecipeError: If faiss is not installed, or cannot read the factory.
    """

    def __init__(self, place: Path, factory: str, parameters: str = "") -> None:
        try:
            self._faiss: Any = import_module("faiss")
        except ImportError as error:
            raise RecipeError(
                "Expected the package faiss for --approximate, but got none. "
                "Run: pip install 'align-finetune[search]', or leave --approximate out: the exact search needs nothing."
            ) from error
        self._place, self._factory, self._parameters = place, factory, parameters

    def find(self, index: VectorSource, queries: FloatArray, top: int) -> Found:
        """Searches, and measures the recall on the first queries."""
        built = self._open(index)
        top = min(top, built.ntotal)
        try:
            if self._parameters:
                self._faiss.ParameterSpace().set_index_parameters(built, self._parameters)
            similarity, rows = built.search(normalise(queries).astype(np.float32), top)
        except RuntimeError as error:
            reason = str(error).rpartition(":")[2].strip()
            raise RecipeError(
                f"Expected --parameters such as nprobe=16, but got {self._parameters!r} ({reason})."
            ) from error
        exact = Exact().find(index, queries[:MEASURED], top).nearest
        recall = _measure_recall(rows[:MEASURED], exact)
        similarity = similarity.astype(np.float64)
        nearest = Nearest(rows, similarity, rank(similarity), np.zeros(len(rows), bool))
        return Found(nearest, None, recall, len(exact.rows))

    def _open(self, index: VectorSource) -> Any:
        facts = index.read_facts()
        kept = self._place.with_name(f"{self._place.name}.{re.sub(r'[^A-Za-z0-9]+', '-', self._factory)}.faiss")
        made_from = kept.with_name(f"{kept.name}.made_from")
        wanted = f"{self._factory} {facts.made_from}"
        if kept.is_file() and made_from.is_file() and made_from.read_text() == wanted:
            return self._faiss.read_index(str(kept))
        built = self._build(index, facts.space.dimension, facts.rows)
        made_from.unlink(missing_ok=True)
        write_bytes(kept, self._faiss.serialize_index(built).data)
        write_text(made_from, wanted)
        return built

    def _build(self, index: VectorSource, dimension: int, rows: int) -> Any:
        """Builds what the factory says of all vectors, of which few are held at a time beside faiss's own."""
        try:
            built = self._faiss.index_factory(dimension, self._factory, self._faiss.METRIC_INNER_PRODUCT)
            if not built.is_trained:
                step = -(-rows // TRAINED_ON)
                built.train(np.concatenate([piece[::step] for piece in _read(index)]))
            for piece in _read(index):
                built.add(piece)
        except RuntimeError as error:
            reason = str(error).rpartition(": ")[2]
            raise RecipeError(
                f"Expected --approximate to be what faiss can build of {rows:,} vectors, such as "
                f"IVF{_cells(rows)},Flat, but got {self._factory!r} ({reason})."
            ) from error
        return built


def _read(index: VectorSource) -> Iterator[FloatArray]:
    """Yields the vectors as faiss takes them: in float32, of length 1."""
    for piece in index.read_vectors():
        yield normalise(piece).astype(np.float32)


def _cells(rows: int) -> int:
    """A usual number of cells: each has some 40 vectors at least, which faiss asks for."""
    return 1 << min(16, max(1, rows // 40).bit_length() - 1)


def _measure_recall(rows: npt.NDArray[np.int64], exact: Nearest) -> float:
    """Returns the share of the exact answers that are among the rows."""
    return float(np.mean([np.isin(best, found).mean() for best, found in zip(exact.rows, rows, strict=True)]))

"""Vectors of images or texts with their ids, and the facts without which they mean nothing: who made them, and how."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

FORMAT, VERSION = "align-finetune vectors", 2
"""What a file says that it is, and the version of what it says."""

FloatArray = npt.NDArray[Any]  # float32 or float16


@dataclass(frozen=True)
class Space:
    """What decides on the vector of an image or text.

    Attributes:
        model: The checkpoint's public name.
        fingerprint: SHA-256 of its weights, see `Base.fingerprint`.
        processor: How images and texts are prepared, see `finetune.inference.embedder.describe_processor`.
        tower: `image` or `text`.
        tower_fingerprint: SHA-256 of this tower's weights alone, see `Base.fingerprint_tower`.
        normalised: Whether vectors have length 1.
        dimension: Numbers of a vector.
        dtype: `float32` or `float16`, in which vectors are stored.
    """

    model: str
    fingerprint: str
    processor: dict[str, Any]
    tower: str
    tower_fingerprint: str
    normalised: bool
    dimension: int
    dtype: str

    @property
    def column(self) -> str:
        """What stands beside an id: the `path` of an image, or the `text`."""
        return "path" if self.tower == "image" else "text"


class Skipped(NamedTuple):
    """An image or text that has no vector.

    Attributes:
        place: Its path, or the place of its row.
        reason: Why, in a few words.
    """

    place: str
    reason: str


@dataclass(frozen=True)
class Facts:
    """What a file of vectors says of itself.

    Attributes:
        space: What made the vectors.
        source: What was embedded, as the user named it.
        rows: How many vectors there are.
        made_from: Hash of all that the file was made from; a file made from the same is not made again.
        skipped: What has no vector.
    """

    space: Space
    source: tuple[str, ...]
    rows: int
    made_from: str
    skipped: tuple[Skipped, ...] = ()

    def as_json(self) -> str:
        """Writes the facts down; `of_json` reads them."""
        skipped = [skipped._asdict() for skipped in self.skipped]
        told = {**asdict(self.space), "source": self.source, "rows": self.rows, "made_from": self.made_from}
        return json.dumps({"format": FORMAT, "version": VERSION, **told, "skipped": skipped}, ensure_ascii=False)

    @classmethod
    def of_json(cls, text: str | bytes) -> Self:
        """Reads facts.

        Args:
            text: The JSON.

        Raises:
            ValueError: If it holds none, or those of another version.
        """
        told = json.loads(text)
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise ValueError("no facts on its vectors")
        if told["version"] != VERSION:
            raise ValueError(f"version {told['version']}, where this toolkit reads version {VERSION}")
        try:
            space = Space(**{name: told[name] for name in Space.__dataclass_fields__})
            skipped = tuple(Skipped(**one) for one in told["skipped"])
            return cls(space, tuple(told["source"]), told["rows"], told["made_from"], skipped)
        except (KeyError, TypeError) as error:
            raise ValueError(f"incomplete facts on its vectors ({error})") from error


class Piece(NamedTuple):
    """Some rows of a file.

    Attributes:
        ids: What each row is known by in its folder, table or tar.
        values: The path of each image, or each text.
        vectors: Array of shape (rows, dimension), float32 or float16.
    """

    ids: list[str]
    values: list[str]
    vectors: FloatArray


class VectorSource(ABC):
    """Vectors in files, which are read a few thousand rows at a time."""

    @abstractmethod
    def read_facts(self) -> Facts:
        """Reads what the files say of themselves.

        Raises:
            FileError: If they are no whole files of vectors.
            OSError: If they cannot be read.
        """

    @abstractmethod
    def read_names(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yields the ids of rows, and their paths or texts."""

    @abstractmethod
    def read_vectors(self) -> Iterator[FloatArray]:
        """Yields the vectors of the same rows."""

    def read_pieces(self) -> Iterator[Piece]:
        """Yields the rows whole."""
        for (ids, values), vectors in zip(self.read_names(), self.read_vectors(), strict=True):
            yield Piece(ids, values, vectors)


class Vectors(NamedTuple):
    """A whole file of vectors.

    Attributes:
        facts: What it says of itself.
        ids: What each row is known by.
        values: The path of each image, or each text.
        vectors: Array of shape (rows, dimension), float32 or float16.
    """

    facts: Facts
    ids: list[str]
    values: list[str]
    vectors: FloatArray

    @classmethod
    def gather(cls, facts: Facts, pieces: Iterator[Piece]) -> Self:
        """Gathers pieces; the vectors are held once.

        Args:
            facts: Those of the file.
            pieces: Its rows.
        """
        vectors = np.empty((facts.rows, facts.space.dimension), np.dtype(facts.space.dtype))
        ids, values = list[str](), list[str]()
        for piece in pieces:
            vectors[len(ids) : len(ids) + len(piece.ids)] = piece.vectors
            ids += piece.ids
            values += piece.values
        return cls(facts, ids, values, vectors)

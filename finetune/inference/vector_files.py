"""The files that vectors are kept in: Parquet, NumPy, safetensors. Each says what it holds, and is written whole."""

import json
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from finetune.core.errors import FileError
from finetune.core.files import write_bytes, write_file
from finetune.inference.vectors import Facts, FloatArray, Piece, VectorSource

KEY = "align_finetune"
"""Under which a file's own metadata holds the facts."""
ROWS = 4096
"""Rows read at a time."""


class VectorFile(VectorSource):
    """A file of vectors.

    Args:
        place: Its path.
    """

    suffix: ClassVar[str]
    """What its name ends in."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that belong to it."""
        return (self.place,)

    @abstractmethod
    def write(self, facts: Facts, pieces: Iterable[Piece]) -> None:
        """Writes the file, whole or not at all; it need not fit into memory.

        Args:
            facts: What it says of itself.
            pieces: `facts.rows` rows in all.
        """

    @abstractmethod
    def _read_facts(self) -> str | bytes | None:
        """Returns the facts as JSON; None where the file holds none."""

    def read_facts(self) -> Facts:
        """Reads what the file says of itself, see `VectorSource.read_facts`."""
        with self.place.open("rb"):  # the system's own error, which names the file
            pass
        try:
            return Facts.of_json(self._read_facts() or "null")
        except (ValueError, pa.ArrowException, SafetensorError) as error:
            raise FileError(
                f"Expected {self.place} to be vectors as `finetune embed` writes them, but got: {error}. "
                "Embed the images or texts again, or name another file."
            ) from error


class ParquetFile(VectorFile):
    """Columns `id`, `path` or `text`, and `vector`, a list of fixed length; the facts are metadata of the schema."""

    suffix = ".parquet"

    def write(self, facts: Facts, pieces: Iterable[Piece]) -> None:
        """Writes a row group for each piece, see `VectorFile.write`."""
        names, space = ["id", facts.space.column, "vector"], facts.space
        number = pa.field("element", pa.from_numpy_dtype(np.dtype(space.dtype)), nullable=False)
        kinds = (pa.string(), pa.string(), pa.list_(number, space.dimension))
        fields = [pa.field(name, kind, nullable=False) for name, kind in zip(names, kinds, strict=True)]
        schema = pa.schema(fields, metadata={KEY: facts.as_json()})
        settings: dict[str, Any] = {"use_dictionary": False, "write_statistics": names[:1]}
        settings["compression"] = {"id": "zstd", space.column: "zstd", "vector.list.element": "none"}
        with write_file(self.place) as file, pq.ParquetWriter(file, schema, **settings) as writer:
            for piece in pieces:
                numbers = pa.array(np.ascontiguousarray(piece.vectors).reshape(-1))
                columns = [piece.ids, piece.values, pa.FixedSizeListArray.from_arrays(numbers, type=kinds[2])]
                writer.write_table(pa.table(columns, schema=schema))

    def _read_facts(self) -> bytes | None:
        found: bytes | None = (pq.read_metadata(self.place).metadata or {}).get(KEY.encode())
        return found

    def read_names(self) -> Iterator[tuple[list[str], list[str]]]:
        """Reads the first two columns."""
        for ids, values in self._read_columns(["id", self.read_facts().space.column]):
            yield ids.to_pylist(), values.to_pylist()

    def read_vectors(self) -> Iterator[FloatArray]:
        """Reads the last column."""
        for (vectors,) in self._read_columns(["vector"]):
            yield vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)

    def _read_columns(self, names: list[str]) -> Iterator[list[pa.Array]]:
        with pq.ParquetFile(self.place, memory_map=True) as file:
            for batch in file.iter_batches(ROWS, columns=names, use_threads=False):
                yield batch.columns


class NumpyFile(VectorFile):
    """An array; ids with paths or texts lie beside it as `NAME.npy.jsonl`, a row a line, facts as `NAME.npy.json`."""

    suffix = ".npy"

    @property
    def files(self) -> tuple[Path, ...]:
        """The array, its ids, its facts."""
        return (self.place, self._beside("jsonl"), self._beside("json"))

    def _beside(self, ending: str) -> Path:
        return self.place.with_name(f"{self.place.name}.{ending}")

    def write(self, facts: Facts, pieces: Iterable[Piece]) -> None:
        """Writes the facts last: without them the file is not there; see `VectorFile.write`."""
        names, dtype = ("id", facts.space.column), np.dtype(facts.space.dtype)
        header = {"descr": dtype.str, "fortran_order": False, "shape": (facts.rows, facts.space.dimension)}
        self._beside("json").unlink(missing_ok=True)
        with write_file(self._beside("jsonl")) as rows, write_file(self.place) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                file.write(np.ascontiguousarray(piece.vectors).data)
                for cells in zip(piece.ids, piece.values, strict=True):
                    record = dict(zip(names, cells, strict=True))
                    rows.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        write_bytes(self._beside("json"), facts.as_json().encode())

    def _read_facts(self) -> bytes | None:
        facts = self._beside("json").read_bytes()
        return facts if all(file.is_file() for file in self.files) else None

    def read_names(self) -> Iterator[tuple[list[str], list[str]]]:
        """Reads the lines."""
        with self._beside("jsonl").open("rb") as rows:
            while some := [json.loads(row).values() for row in islice(rows, ROWS)]:
                ids, values = zip(*some, strict=True)
                yield list(ids), list(values)

    def read_vectors(self) -> Iterator[FloatArray]:
        """Maps the array into memory."""
        vectors = np.load(self.place, mmap_mode="c", allow_pickle=False)  # torch takes no array that is read-only
        for start in range(0, len(vectors), ROWS):
            yield vectors[start : start + ROWS]


class SafetensorsFile(VectorFile):
    """Tensors `vectors`, and ids and paths or texts as UTF-8 bytes with the offset at which each begins.

    Row `i` of `id` is `id.bytes[id.offsets[i]:id.offsets[i + 1]]`, as Arrow keeps texts.
    """

    suffix = ".safetensors"

    def write(self, facts: Facts, pieces: Iterable[Piece]) -> None:
        """Writes the vectors as they come, and the texts after them, see `VectorFile.write`."""
        rows, space = facts.rows, facts.space
        texts: dict[str, list[bytes]] = {"id": [], space.column: []}
        kind, width = {"float32": ("F32", 4), "float16": ("F16", 2)}[space.dtype]
        shapes = {f"{name}.offsets": ("I64", 8, [rows + 1]) for name in texts}
        shapes["vectors"] = (kind, width, [rows, space.dimension])
        with write_file(self.place) as file:
            length = self._write_header(file, facts, shapes | {f"{name}.bytes": ("U8", 1, [1 << 62]) for name in texts})
            offsets_at = file.tell()
            file.write(bytes(16 * (rows + 1)))
            for piece in pieces:
                file.write(np.ascontiguousarray(piece.vectors).data)
                texts["id"] += map(str.encode, piece.ids)
                texts[space.column] += map(str.encode, piece.values)
            for name, column in texts.items():
                shapes[f"{name}.bytes"] = ("U8", 1, [sum(map(len, column))])
                file.writelines(column)
            file.seek(0)
            self._write_header(file, facts, shapes, length)
            file.seek(offsets_at)
            for column in texts.values():
                file.write(np.cumsum([0, *map(len, column)], dtype=np.int64).data)

    def _write_header(
        self, file: BinaryIO, facts: Facts, shapes: dict[str, tuple[str, int, list[int]]], length: int = 0
    ) -> int:
        """Writes the header, filled up with spaces to a length; returns its length."""
        header: dict[str, Any] = {"__metadata__": {KEY: facts.as_json()}}
        end = 0
        for name, (kind, width, shape) in shapes.items():
            start, end = end, end + width * math.prod(shape)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text = text.ljust(length or -(-len(text) // 8) * 8)
        file.write(len(text).to_bytes(8, "little") + text)
        return len(text)

    def _read_facts(self) -> str | None:
        with safe_open(self.place, framework="np") as file:
            return (file.metadata() or {}).get(KEY)

    def read_names(self) -> Iterator[tuple[list[str], list[str]]]:
        """Cuts the bytes into texts."""
        column = self.read_facts().space.column
        with safe_open(self.place, framework="np") as file:
            texts = [(file.get_slice(f"{name}.bytes"), file.get_tensor(f"{name}.offsets")) for name in ("id", column)]
            for start in range(0, len(texts[0][1]) - 1, ROWS):
                ids, values = (_cut(content, offsets[start : start + ROWS + 1]) for content, offsets in texts)
                yield ids, values

    def read_vectors(self) -> Iterator[FloatArray]:
        """Reads parts of the tensor."""
        with safe_open(self.place, framework="np") as file:
            vectors = file.get_slice("vectors")
            rows = vectors.get_shape()[0]
            for start in range(0, rows, ROWS):
                yield vectors[start : min(start + ROWS, rows)]


def _cut(content: Any, offsets: Any) -> list[str]:
    """Cuts some bytes of a tensor into texts."""
    first, *ends = offsets.tolist()
    found = content[first : ends[-1]].tobytes()
    return [found[start - first : end - first].decode() for start, end in zip([first, *ends], ends, strict=False)]


FORMATS: tuple[type[VectorFile], ...] = (ParquetFile, NumpyFile, SafetensorsFile)


def find_format(place: Path) -> type[VectorFile] | None:
    """Returns the format that a file's name asks for; None where it asks for none, as a folder's does.

    Args:
        place: The file.
    """
    return next((kind for kind in FORMATS if place.suffix.lower() == kind.suffix), None)

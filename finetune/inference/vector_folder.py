"""A folder of files of vectors, one a part, and the index of them: what any number of processes fill together."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.core.errors import FileError
from finetune.core.files import read_json, remove_staged, require_own, write_text
from finetune.inference.vector_files import VectorFile, find_format
from finetune.inference.vectors import Facts, FloatArray, Space, Vectors, VectorSource

INDEX = "index.json"
"""The file of a folder that says what its other files are; without a list of files while these are being made."""


class VectorFolder(VectorSource):
    """A folder of files of vectors.

    Args:
        place: The folder.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    @property
    def index(self) -> Path:
        """Says what the files are."""
        return self.place / INDEX

    def begin(self, space: Space, source: Sequence[str], files: Sequence[VectorFile], overwrite: bool) -> None:
        """Makes the folder, or goes on with one that holds vectors of the same space.

        Args:
            space: What decides on the vectors.
            source: What is embedded, as the user named it.
            files: The files that it is to hold.
            overwrite: Whether files of another space or another source are replaced.

        Raises:
            FileExistsError: If the folder holds something else.
        """
        require_own(self.place, lambda names: INDEX in names or all(name.startswith(".") for name in names))
        if self.index.is_file() and not overwrite:
            former = self._read()[0].space
            if former != space:
                raise FileExistsError(
                    f"Expected {self.place} to hold vectors of the same model and settings, but got "
                    f"{_differ(former, space)}. Name another folder, or pass --overwrite."
                )
            if strange := self._list_strange(files):
                raise FileExistsError(
                    f"Expected {self.place} to hold parts of what is embedded alone, but got {strange[0].name}, which "
                    "is of something else. Name another folder, or pass --overwrite to have it removed."
                )
        self.place.mkdir(parents=True, exist_ok=True)
        self._write(Facts(space, tuple(source), 0, ""), None)

    def end(self, facts: Facts, files: Sequence[VectorFile]) -> None:
        """Writes the index, and removes whatever belongs to none of the files.

        Args:
            facts: Those of all files together.
            files: The files, each of them whole.
        """
        remove_staged(self.place)
        for path in self._list_strange(files):
            path.unlink(missing_ok=True)
        self._write(facts, [file.place.name for file in files])

    def read_facts(self) -> Facts:
        """Reads what the index says of all files.

        Raises:
            FileError: If there is none, or the folder is not finished.
        """
        self._list_files()
        return self._read()[0]

    def read_names(self) -> Iterator[tuple[list[str], list[str]]]:
        """Reads one file after the other."""
        for file in self._list_files():
            yield from file.read_names()

    def read_vectors(self) -> Iterator[FloatArray]:
        """Reads one file after the other."""
        for file in self._list_files():
            yield from file.read_vectors()

    def _list_files(self) -> list[VectorFile]:
        names = self._read()[1]
        if names is None:
            raise FileError(
                f"Expected {self.place} to hold all of its vectors, but some are still to be made. "
                "Run `finetune embed` again with the same words: it goes on where it was."
            )
        return [open_file(self.place / name) for name in names]

    def _list_strange(self, files: Sequence[VectorFile]) -> list[Path]:
        known = {path.name for file in files for path in file.files} | {INDEX}
        return sorted(path for path in self.place.iterdir() if not path.name.startswith(".") and path.name not in known)

    def _read(self) -> tuple[Facts, list[str] | None]:
        try:
            told = read_json(self.index)
            return Facts.of_json(json.dumps(told)), told["files"]
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise FileError(
                f"Expected {self.place} to be a folder that `finetune embed` has written, but got: {error}. "
                "Name another folder."
            ) from error

    def _write(self, facts: Facts, names: list[str] | None) -> None:
        told = json.loads(facts.as_json()) | {"files": names}
        write_text(self.index, json.dumps(told, ensure_ascii=False, indent=2) + "\n")


def _differ(former: Space, space: Space) -> str:
    """Names the first difference between two spaces."""
    names = (name for name in Space.__dataclass_fields__ if getattr(former, name) != getattr(space, name))
    name = next(names)
    return f"{name} {getattr(former, name)!r} there and {getattr(space, name)!r} here"


def open_file(place: Path) -> VectorFile:
    """Opens a file of vectors by its ending.

    Args:
        place: The file.

    Raises:
        FileError: If its ending is that of no format.
    """
    kind = find_format(place)
    if kind is None:
        raise FileError(
            f"Expected {place} to be a .parquet, .npy or .safetensors file of vectors, but got another. "
            "Make one: finetune embed MODEL FOLDER --output photos.npy"
        )
    return kind(place)


def open_vectors(place: Path) -> VectorSource:
    """Opens what `finetune embed` has written: a file, or a folder of files. Nothing is read yet.

    Args:
        place: Its path.

    Raises:
        FileError: If it is neither.
    """
    if not place.is_dir():
        return open_file(place)
    if not (place / INDEX).is_file():
        raise FileError(
            f"Expected {place} to be a file or folder that `finetune embed` wrote, but got a folder without {INDEX}. "
            f"Make one of its images: finetune embed MODEL {place} --output photos.npy"
        )
    return VectorFolder(place)


def read_vectors(place: str | Path) -> Vectors:
    """Reads what `finetune embed` has written, whatever its format: facts, ids, paths or texts, vectors.

    Args:
        place: A file, or a folder of files.

    Raises:
        FileError: If it is neither, or not whole.
        OSError: If it cannot be read.
    """
    opened = open_vectors(Path(place))
    return Vectors.gather(opened.read_facts(), opened.read_pieces())

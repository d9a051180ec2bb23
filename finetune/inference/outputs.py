"""Where vectors go: one file, which is joined from its parts, or a folder that keeps a file of each part."""

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from finetune.core.errors import RecipeError
from finetune.core.files import refuse_existing
from finetune.core.places import require_place
from finetune.inference.vector_files import FORMATS, ParquetFile, VectorFile, find_format
from finetune.inference.vector_folder import VectorFolder
from finetune.inference.vectors import Facts, Space, VectorSource

LIKE_A_FILE = re.compile(r"\.[A-Za-z]{2,11}")
"""An ending that no folder should have, such as that of a format misspelt."""


class Output(ABC):
    """What a command writes.

    Args:
        place: The file or folder.
        overwrite: Whether what is there of something else is replaced.

    Attributes:
        parts: The folder of the parts' files.
        kind: The format of these.
        whole: What the parts become.
    """

    parts: Path
    kind: type[VectorFile]
    whole: VectorSource

    def __init__(self, place: Path, overwrite: bool) -> None:
        self.place = place
        self.overwrite = overwrite

    @property
    def claim(self) -> Path:
        """The file by which one process claims to write the end of the output."""
        return self.place.with_name(f".{self.place.name}.claim")

    def find(self) -> Facts | None:
        """Returns what the output says of itself; None where it is not there, or not whole."""
        try:
            return self.whole.read_facts()
        except OSError:
            return None

    @abstractmethod
    def begin(self, space: Space, source: Sequence[str], files: Sequence[VectorFile]) -> None:
        """Makes room for the parts.

        Args:
            space: What decides on the vectors.
            source: What is embedded, as the user named it.
            files: The files of the parts.

        Raises:
            FileExistsError: If something else is there that may not be replaced.
        """

    @abstractmethod
    def end(self, facts: Facts, files: Sequence[VectorFile]) -> None:
        """Makes the output of its parts, each of which is whole.

        Args:
            facts: What the output says of itself.
            files: The files of the parts.
        """

    @abstractmethod
    def tidy(self) -> None:
        """Removes what the output needs no more once it is whole."""


class FileOutput(Output):
    """One file; its parts lie beside it in `NAME.parts` until it is whole."""

    kind = ParquetFile

    def __init__(self, place: Path, overwrite: bool) -> None:
        super().__init__(place, overwrite)
        self.parts = place.with_name(f"{place.name}.parts")
        format_of_place = find_format(place)
        assert format_of_place is not None
        self.whole: VectorFile = format_of_place(place)

    def begin(self, space: Space, source: Sequence[str], files: Sequence[VectorFile]) -> None:
        """Refuses a file of something else, and makes the folder of the parts; former ones are replaced."""
        refuse_existing(self.place, self.overwrite)
        VectorFolder(self.parts).begin(space, source, files, overwrite=True)

    def end(self, facts: Facts, files: Sequence[VectorFile]) -> None:
        """Joins the parts, of which few rows are held at a time, and removes them."""
        VectorFolder(self.parts).end(facts, files)
        self.whole.write(facts, VectorFolder(self.parts).read_pieces())
        self.tidy()

    def tidy(self) -> None:
        """Removes the parts."""
        shutil.rmtree(self.parts, ignore_errors=True)


class FolderOutput(Output):
    """A folder with a file of each part, and the index of them.

    Args:
        place: The folder.
        overwrite: Whether what is there of something else is replaced.
        kind: The format of the files.
    """

    def __init__(self, place: Path, overwrite: bool, kind: type[VectorFile]) -> None:
        super().__init__(place, overwrite)
        self.parts = place
        self.kind = kind
        self.whole: VectorFolder = VectorFolder(place)

    @property
    def claim(self) -> Path:
        """A file in the folder, see `Output.claim`."""
        return self.place / ".index.claim"

    def begin(self, space: Space, source: Sequence[str], files: Sequence[VectorFile]) -> None:
        """Makes the folder, or goes on with one of the same space."""
        self.whole.begin(space, source, files, self.overwrite)

    def end(self, facts: Facts, files: Sequence[VectorFile]) -> None:
        """Writes the index."""
        self.whole.end(facts, files)

    def tidy(self) -> None:
        """Removes nothing: the parts are the output."""


def open_output(place: Path, overwrite: bool = False, kind: str | None = None) -> Output:
    """Returns the output that a path asks for: a file where its ending is that of a format, else a folder.

    Args:
        place: The path.
        overwrite: Whether what is there of something else is replaced.
        kind: The ending of a folder's files, without the dot; None for Parquet.

    Raises:
        RecipeError: If the path has another ending, or one beside `kind`, or is that of a folder where it asks for a
            file, or lies in no folder.
        OSError: If nothing can be written there.
    """
    require_place(place)
    endings = ", ".join(kind.suffix for kind in FORMATS)
    if find_format(place) is None:
        if LIKE_A_FILE.fullmatch(place.suffix) and not place.is_dir():
            raise RecipeError(
                f"Expected --output to end in one of {endings}, or to name a folder without an ending, but got {place}."
            )
        return FolderOutput(place, overwrite, find_format(Path(f"x.{kind}")) or ParquetFile)
    if kind is not None:
        raise RecipeError(f"Expected --format for a folder only, but got it beside {place}, whose ending says it.")
    if place.is_dir() or not place.absolute().parent.is_dir():
        repair = "Name a file in it." if place.is_dir() else f"Make {place.parent}, or correct it."
        raise RecipeError(f"Expected --output to name a file in a folder that exists, but got {place}. {repair}")
    return FileOutput(place, overwrite)

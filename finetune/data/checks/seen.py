"""The table as a run saw it, which the run keeps: what has changed since, and which images the run has seen."""

# Strings and os.path, as a Path object for each of a million rows would take seconds.
# ruff: noqa: PTH114, PTH118

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from finetune.core.files import write_file
from finetune.core.freed import give_back
from finetune.core.sealed import is_sealed, seal
from finetune.data.checks.concerns import count, show_some
from finetune.data.checks.once import place_once
from finetune.data.table.cells import number_strings
from finetune.data.table.row_images import hash_keys
from finetune.data.table.rows import Rows
from finetune.data.table.splits import SPLITS, UNKNOWN, Codes

CHUNK = 100_000  # rows held as Python objects at a time

FORGOTTEN = "This run has no record of the table it was trained on: an earlier release made it."


class Comparison(NamedTuple):
    """A table beside the one that a run saw.

    Attributes:
        changes: What has changed, a line for each kind of change; empty where nothing has.
        former: Int8 array of shape (N,): the split that each row's image had in the run, -1 for an image that the run
            did not see. Of an image in several splits the first of train, val, test.
    """

    changes: tuple[str, ...]
    former: Codes


@dataclass(frozen=True, eq=False)
class SeenTable:
    """The rows of a table, small enough to be kept.

    Attributes:
        folder: The folder of the images.
        rows: The columns `image` (path relative to `folder`), `split` (a name), and `text`, the BLAKE2b hash of caption
            and label.
    """

    folder: str
    rows: pd.DataFrame

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """Keeps what is needed of a table."""
        return cls(rows.folder, pd.concat(_frames(rows), ignore_index=True))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote.

        Args:
            path: The file.
        """
        table = parquet.read_table(path)
        rows = table.to_pandas()
        rows["split"] = pd.Categorical(rows["split"].astype(str), categories=pd.Index(SPLITS))
        return cls(table.schema.metadata[b"folder"].decode(), rows)

    def compare(self, rows: Rows) -> Comparison:
        """Compares the table with another one, or with itself as it is now.

        An image is the same if it is the same file, or else if it has the same path relative to the images' folder. A
        row of the same image with another text counts as relabelled.

        Args:
            rows: The other table.
        """
        now = self.of(rows)
        ids, _ = pd.factorize(pd.concat([self.rows["image"], self._find(now)]))  # numbers, which pair faster
        before, after = (
            frame.assign(name=frame["image"], image=part)
            for frame, part in zip((self.rows, now.rows), np.split(ids, [len(self.rows)]), strict=True)
        )
        same = _pair(before, after, ["image", "text"])
        relabelled = _pair(before.drop(same["before"]), after.drop(same["after"]), ["image"])
        both = pd.concat([same, relabelled])
        found = {
            "added": after["name"].drop(both["after"]),
            "removed": before["name"].drop(both["before"]),
            "with another text or label": after["name"][relabelled["after"]],
            **_find_moved(before.loc[both["before"]], after.loc[both["after"]]),
        }
        changes = [
            f"{count(len(names), 'row', 'rows')} {what}: {show_some(names.unique())}"
            for what, names in found.items()
            if len(names)
        ]
        first = before["split"].cat.codes.groupby(before["image"]).min()
        former: Codes = np.asarray(after["image"].map(first).fillna(UNKNOWN), dtype=np.int8)
        return Comparison(tuple(changes), former)

    def holds(self, folder: str, images: Sequence[str], splits: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether an image is in one of some splits: the same file, or the same path relative to the images' folder.

        Args:
            folder: The folder that paths are relative to.
            images: Paths.
            splits: Names of splits.

        Returns:
            Bool array of shape (len(images),).
        """
        known = self.rows["image"][self.rows["split"].isin(splits)]
        names = pd.DataFrame({"image": pd.Series(images, dtype=object)})
        return self._find(SeenTable(folder, names)).isin(set(known)).to_numpy()

    def _find(self, other: "SeenTable") -> pd.Series:
        """The name that each image of another table has in this one, or its own."""
        known, names = set(self.rows["image"]), other.rows["image"]
        if self.folder == other.folder and known.issuperset(names):
            return names
        resolve = _Resolver()
        files = {resolve(self.folder, name): name for name in known}
        same = known if self.folder == other.folder else ()
        found = {name: files.get(resolve(other.folder, name), name) for name in names.unique() if name not in same}
        return names.map(lambda name: found.get(name, name))


def compare_seen(rows: Rows, path: Path) -> Comparison:
    """Compares a table with what a run saw; where it is known to be the same, no table is held in memory.

    Args:
        rows: The table as it is now.
        path: What `write_seen` wrote.
    """
    if not is_as_seen(rows, path):
        return SeenTable.read(path).compare(rows)
    first, images = number_strings(rows.images)
    former = np.full(len(first), len(SPLITS), dtype=np.int8)
    np.minimum.at(former, images, rows.splits)
    return Comparison((), former[images])


def describe_changes(recipe: Path, seen: Path) -> tuple[str, ...]:
    """Says what has changed of a run's table; nothing where the table cannot be read any more.

    Args:
        recipe: The run's recipe.
        seen: The table as the run saw it.
    """
    if not seen.is_file():
        return (FORGOTTEN,)
    # Its parser of recipes takes seconds, which the rest of this file need not wait for.
    from finetune.data.checks.check import read_settings

    settings = read_settings(recipe)
    rows = settings.table.inspect().rows if settings else None
    return () if rows is None or is_as_seen(rows, seen) else compare_seen(rows, seen).changes


def write_seen(rows: Rows, path: Path) -> None:
    """Writes a table as `SeenTable.read` reads it, as Parquet.

    Args:
        rows: The table.
        path: The file.
    """
    kept = place_once(rows, "seen.parquet", None)
    if kept is None or rows.order is None or not _keep(rows, kept):
        _write(rows, path)
        return
    with kept.open("rb") as source, write_file(path) as file:
        shutil.copyfileobj(source, file)


def is_as_seen(rows: Rows, path: Path) -> bool:
    """Whether a table is known to be the one that a run saw, without a look at its rows.

    Args:
        rows: The table as it is now.
        path: What `write_seen` wrote.
    """
    known: bytes = parquet.read_schema(path).metadata.get(b"table", b"")
    return known != b"" and known.decode() == _key_of(rows)


def _keep(rows: Rows, kept: Path) -> bool:
    """Writes what a later start only copies, and returns whether it is there: a disk may be full."""
    if not is_sealed(kept):
        with suppress(OSError):
            _write(rows, kept)
            seal(kept)
            give_back()
    return is_sealed(kept)


def _write(rows: Rows, path: Path) -> None:
    metadata = {"folder": rows.folder, "table": _key_of(rows)}
    tables = (pa.Table.from_pandas(frame, preserve_index=False) for frame in _frames(rows))
    first = next(tables)
    schema = first.schema.with_metadata(metadata)
    with write_file(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in chain([first], tables):
            writer.write_table(table.replace_schema_metadata(metadata))


def _key_of(rows: Rows) -> str:
    """What a kept table is known by; empty for any other."""
    return "" if rows.kept is None or rows.order is None else rows.kept.name


def _frames(rows: Rows) -> Iterator[pd.DataFrame]:
    """Yields what is kept of some rows at a time, at least once."""
    labels = ["" if rows.label_sets else name for name in (*rows.classes, "")]  # the captions name several labels
    for start in range(0, max(1, len(rows)), CHUNK):
        part = slice(start, min(start + CHUNK, len(rows)))
        pairs = zip(rows.captions[part].tolist(), rows.label_ids[part].tolist(), strict=True)
        texts = hash_keys((f"{text}\0{labels[label]}" for text, label in pairs), part.stop - start, seed=0)
        splits = pd.Categorical.from_codes(rows.splits[part], categories=pd.Index(SPLITS))
        yield pd.DataFrame({"image": rows.names(part.start, part.stop), "text": texts, "split": splits})


def _pair(before: pd.DataFrame, after: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The positions `before` and `after` of rows with equal keys, each row at most once."""
    one, two = (
        part[keys].assign(nth=part.groupby(keys, sort=False).cumcount(), **{name: part.index})
        for name, part in (("before", before), ("after", after))
    )
    return one.merge(two, on=[*keys, "nth"])[["before", "after"]]


def _find_moved(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, "pd.Series[str]"]:
    """The rows, in the same order, whose split is another one, by what has happened to them."""
    former, now = before["split"].cat.codes.to_numpy(), after["split"].cat.codes.to_numpy()
    return {
        f"moved from {one} to {other}": after["name"][(former == i) & (now == j)]
        for i, one in enumerate(SPLITS)
        for j, other in enumerate(SPLITS)
        if i != j
    }


class _Resolver(dict[str, str]):
    """Follows links, those of a folder once for all its images."""

    def __missing__(self, folder: str) -> str:
        self[folder] = os.path.realpath(folder)
        return self[folder]

    def __call__(self, folder: str, name: str) -> str:
        parent, base = os.path.split(os.path.join(folder, name))
        path = os.path.join(self[parent], base)
        return os.path.realpath(path) if os.path.islink(path) else path

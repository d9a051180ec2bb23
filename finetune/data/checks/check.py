"""Everything that is wrong with a table or seldom meant, in one pass, for a screen and for a machine."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from finetune.core.errors import Concern
from finetune.data.checks.concerns import MIRRORING, count, find_concerns, name_transforms
from finetune.data.checks.copies import find_copies
from finetune.data.checks.decode import decode_images
from finetune.data.table.faults import SHOWN, Fault, TableFaultsError
from finetune.data.table.rows import Rows
from finetune.data.table.splits import SPLITS
from finetune.data.table.table import Table

DATA_MODULES = ("ImageTextDataModule", "ShardedImageText")
TABLE_KEYS = ("table", "retention")


class TableSettings(NamedTuple):
    """What a recipe says of its tables.

    Attributes:
        table: The table.
        mirrors: Whether its augmentations mirror images.
        retention: The tables that stand for elsewhere.
    """

    table: Table
    mirrors: bool
    retention: tuple[Table, ...] = ()


@dataclass
class Report:
    """What a check found.

    Attributes:
        faults: What is wrong with the table and its images.
        concerns: What is seldom meant.
        rows: The rows without fault, None where there are none.
        sizes: Width and height of each row's image, where images were decoded.
        recipe_error: What is wrong with the recipe, or None.
    """

    faults: tuple[Fault, ...] = ()
    concerns: list[Concern] = field(default_factory=list)
    rows: Rows | None = None
    sizes: npt.NDArray[np.int64] | None = None
    recipe_error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.faults) or self.recipe_error is not None

    def as_json(self) -> dict[str, Any]:
        """All of it, for a machine."""
        faults = [{**fault._asdict(), "message": str(fault)} for fault in self.faults]
        if self.recipe_error is not None:
            faults.append({**dict.fromkeys(Fault._fields), "message": self.recipe_error})
        rows = self.rows
        return {
            "errors": faults,
            "warnings": [concern._asdict() for concern in self.concerns],
            "rows": {} if rows is None else {split: len(rows.indices(split)) for split in SPLITS},
            "removed": [] if rows is None else [removed._asdict() for removed in rows.removed],
        }

    def lines(self) -> list[str]:
        """The counts of rows, the first of the faults, and all warnings, for a screen."""
        told = []
        if self.rows is not None:
            told.append("rows: " + ", ".join(f"{len(self.rows.indices(split)):,} {split}" for split in SPLITS))
            told += describe_filter(self.rows)
        told += [f"error: {fault}" for fault in self.faults[:SHOWN]]
        if len(self.faults) > SHOWN:
            told.append(f"… and {len(self.faults) - SHOWN:,} more")
        told += [f"warning: {concern.message}" for concern in self.concerns]
        return told

    @property
    def total(self) -> str:
        """The counts, in a line."""
        errors = len(self.faults) + (self.recipe_error is not None)
        return f"{count(errors, 'error', 'errors')}, {count(len(self.concerns), 'warning', 'warnings')}"


def check_table(settings: TableSettings, full: bool = False) -> Report:
    """Checks a table, and for faults those that stand for elsewhere; rows without fault are looked at for warnings.

    Args:
        settings: The tables.
        full: Whether every image is decoded.
    """
    report = _find_faults(settings.table, ("train", "test"), full)
    for other in settings.retention:
        report.faults += _find_faults(other, ("test",), full).faults
    if report.rows is not None:
        report.concerns = [*find_concerns(report.rows, settings.mirrors), *find_copies(report.rows)]
    return report


def _find_faults(table: Table, required: Sequence[str], full: bool) -> Report:
    rows, faults = table.inspect()
    if rows is None:
        return Report(faults)
    try:
        rows.require(*required)
    except TableFaultsError as error:
        faults = (*faults, *error.faults)
    if not full:
        return Report(faults, rows=rows)
    decoded = decode_images(rows, table.image)
    return Report((*faults, *decoded.faults), rows=rows, sizes=decoded.sizes)


def read_settings(recipe: Path, overrides: Sequence[str] = ()) -> TableSettings | None:
    """Reads what a recipe says of its tables, without what the rest of it needs.

    Args:
        recipe: The recipe's file.
        overrides: Words of the command line; those that begin with `--data.table` or `--data.retention` count.

    Returns:
        None where the recipe has no table, or any that cannot be read, as reading the whole recipe will tell.
    """
    try:
        data = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("data") or {}
        if str(data.get("class_path", DATA_MODULES[0])).rpartition(".")[2] not in DATA_MODULES:
            return None
        values = data.get("init_args", data)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(Table, "table")
        parser.add_argument("--retention", type=list[Table] | None)
        given = json.dumps({key: values[key] for key in TABLE_KEYS if key in values})
        found = parser.instantiate(parser.parse_args(["--config", given, *_table_words(overrides)]))
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError, ArgumentError):
        return None
    mirrors = bool(MIRRORING & {*name_transforms(values.get("augmentations"))})
    return TableSettings(found.table, mirrors, tuple(found.retention or ()))


def _table_words(overrides: Sequence[str]) -> list[str]:
    """The words that replace values of the tables, as their own parser takes them."""
    kept, follows = [], False
    for word in overrides:
        if word.startswith("--"):
            key = word.replace("--data.init_args.", "--data.", 1)
            follows = key.startswith(tuple(f"--data.{name}" for name in TABLE_KEYS))
            word = key.replace("--data.", "--", 1)
        if follows:
            kept.append(word)
    return kept


def describe_filter(rows: Rows) -> list[str]:
    """A line for each condition of the table's filter: how many rows it removed."""
    return [f"filter: {removed.rows:,} rows removed by {removed.condition}" for removed in rows.removed]


def tell(rows: Rows, concerns: Sequence[Concern]) -> None:
    """Prints what a table's filter removed, and warnings, on the standard error stream.

    Args:
        rows: The table.
        concerns: The warnings.
    """
    for line in [*describe_filter(rows), *(f"warning: {concern.message}" for concern in concerns)]:
        print(line, file=sys.stderr)

"""Checks a table in one pass for everything that is wrong or rarely intended, and reports it to people and machines."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from finetune.core.console import say
from finetune.core.errors import Concern
from finetune.core.overrides import write_out_nulls
from finetune.core.yaml_text import read_yaml
from finetune.data.checks.concerns import MIRRORING, count, find_concerns, name_transforms, show_some
from finetune.data.checks.copies import find_contradictions, find_copies
from finetune.data.checks.decode import decode_images
from finetune.data.table.faults import SHOWN, Fault, TableFaultsError
from finetune.data.table.retention import name_tables
from finetune.data.table.rows import Rows
from finetune.data.table.splits import SPLITS
from finetune.data.table.table import Table

DATA_MODULE = "ImageTextDataModule"
TABLE_KEYS = ("table", "retention")
_REASONS = ("where their class would have none", "which would be empty", "which would be empty")


class TableSettings(NamedTuple):
    """The tables of a recipe.

    Attributes:
        table: The table.
        mirrors: Whether the augmentations mirror images.
        retention: The retention tables.
    """

    table: Table
    mirrors: bool
    retention: tuple[Table, ...] = ()


@dataclass
class Report:
    """The findings of a check.

    Attributes:
        faults: Everything that is wrong with the tables and their images.
        concerns: The warnings.
        rows: The rows without fault, or None if there are none.
        sizes: Width and height of each row's image, if images were decoded.
        retention: The rows without fault of each retention table, or None if there are none.
        recipe_error: What is wrong with the recipe, or None.
    """

    faults: tuple[Fault, ...] = ()
    concerns: list[Concern] = field(default_factory=list)
    rows: Rows | None = None
    sizes: npt.NDArray[np.int64] | None = None
    retention: list[Rows | None] = field(default_factory=list)
    recipe_error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.faults) or self.recipe_error is not None

    def as_json(self) -> dict[str, Any]:
        """Returns all findings, for machines."""
        faults = [{**fault._asdict(), "message": str(fault)} for fault in self.faults]
        if self.recipe_error is not None:
            faults.append({**dict.fromkeys(Fault._fields), "message": self.recipe_error})
        rows = self.rows
        return {
            "errors": faults,
            "warnings": [concern._asdict() for concern in self.concerns],
            "rows": {} if rows is None else {split: len(rows.indices(split)) for split in SPLITS},
            "removed": [] if rows is None else [removed._asdict() for removed in rows.removed],
            "exceptions": [] if rows is None else [*map(partial(_name_exception, rows), rows.exceptions().tolist())],
        }

    def lines(self) -> list[str]:
        """Returns the counts of rows, the first faults and all warnings, for people."""
        lines = []
        if self.rows is not None:
            lines.append("rows: " + ", ".join(f"{len(self.rows.indices(split)):,} {split}" for split in SPLITS))
            lines += [*describe_filter(self.rows), *describe_exceptions(self.rows)]
        return [*lines, *self.errors(), *self.warnings()]

    def errors(self, start: int = 0) -> list[str]:
        """Returns a line for each of the first faults from one on, and the number of the others."""
        faults = self.faults[start:]
        lines = [f"error: {fault}" for fault in faults[:SHOWN]]
        return [*lines, f"… and {len(faults) - SHOWN:,} more"] if len(faults) > SHOWN else lines

    def warnings(self, start: int = 0) -> list[str]:
        """Returns a line for each warning from one on."""
        return [f"warning: {concern.message}" for concern in self.concerns[start:]]

    @property
    def total(self) -> str:
        """The number of errors and warnings, in a line."""
        errors = len(self.faults) + (self.recipe_error is not None)
        return f"{count(errors, 'error', 'errors')}, {count(len(self.concerns), 'warning', 'warnings')}"


def check_table(settings: TableSettings, full: bool = False) -> Report:
    """Checks a table for faults and warnings, and the retention tables for faults and contradictions.

    Args:
        settings: The tables.
        full: Whether to decode every image.
    """
    report = _find_faults(settings.table, ("train", "test"), full)
    if report.rows is not None:
        report.concerns = [*find_concerns(report.rows, settings.mirrors), *find_copies(report.rows)]
    for name, other in name_tables(settings.retention).items():
        found = _find_faults(other, ("test",), full)
        report.faults += found.faults
        report.retention.append(found.rows)
        if found.rows is not None:
            report.concerns += [concern.of_table(name) for concern in find_contradictions(found.rows)]
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
    """Reads the tables of a recipe, without the libraries that the rest of the recipe needs.

    Args:
        recipe: The recipe's file.
        overrides: Words of the command line, of which `--data.table` and `--data.retention` count.

    Returns:
        The tables, or None if the recipe has none or they cannot be read; reading the whole recipe reports why.
    """
    try:
        data = (read_yaml(recipe) or {}).get("data") or {}
        if str(data.get("class_path", DATA_MODULE)).rpartition(".")[2] != DATA_MODULE:
            return None
        values = data.get("init_args", data)
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["finetune"])  # imports no other module
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(Table, "table")
        parser.add_argument("--retention", type=list[Table] | None)
        given = json.dumps({key: values[key] for key in TABLE_KEYS if key in values})
        found = parser.instantiate(parser.parse_args(["--config", given, *_table_words(overrides)]))
    except (OSError, ValueError, AttributeError, TypeError, ArgumentError):
        return None
    mirrors = bool(MIRRORING & {*name_transforms(values.get("augmentations"))})
    return TableSettings(found.table, mirrors, tuple(found.retention or ()))


def _table_words(overrides: Sequence[str]) -> list[str]:
    """Picks the words that replace values of the tables, in the form that the tables' parser expects."""
    kept, follows = [], False
    for word in overrides:
        if word.startswith("--"):
            key = word.replace("--data.init_args.", "--data.", 1)
            follows = key.startswith(tuple(f"--data.{name}" for name in TABLE_KEYS))
            word = key.replace("--data.", "--", 1)
        if follows:
            kept.append(word)
    return write_out_nulls(kept)


def describe_filter(rows: Rows) -> list[str]:
    """Says for each condition of the table's filter how many rows it removed."""
    return [f"filter: {count(removed.rows, 'row', 'rows')} removed by {removed.condition}" for removed in rows.removed]


def describe_exceptions(rows: Rows) -> list[str]:
    """Says which images the draw put into another split than their own hash says, and why."""
    moved, lines = rows.exceptions(), []
    for code, (split, reason) in enumerate(zip(SPLITS, _REASONS, strict=True)):
        names = [rows.name(row) for row in moved[rows.splits[moved] == code].tolist()]
        if names:
            lines.append(
                f"split: {count(len(names), 'image is', 'images are')} in {split}, {reason}: {show_some(names)}"
            )
    return lines


def _name_exception(rows: Rows, row: int) -> dict[str, str]:
    split, drawn = (SPLITS[codes[row]] for codes in (rows.splits, rows.drawn))
    return {"image": rows.name(row), "place": rows.place(row), "split": split, "drawn": drawn}


def print_warnings(rows: Rows, concerns: Sequence[Concern]) -> None:
    """Prints what a table's filter removed, the exceptions of its draw, and the warnings, to the standard error stream.

    Args:
        rows: The table.
        concerns: The warnings.
    """
    warnings = [f"warning: {concern.message}" for concern in concerns]
    for line in [*describe_filter(rows), *describe_exceptions(rows), *warnings]:
        say(line, file=sys.stderr)

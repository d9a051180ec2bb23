"""Models that were measured on the same rows, side by side."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from finetune.core.errors import CheckpointError, RecipeError
from finetune.core.exchange import restore_folder
from finetune.core.places import AnyPath
from finetune.evaluation.forgetting import find_differences
from finetune.run.folder import AFTER, ZERO_SHOT_AFTER, RunFolder, require_finished
from finetune.run.measurement import FACTS, MEASUREMENT, TEST, Measurement, TableMeasurement, read_measurement
from finetune.run.results import format_table, grade


class Comparison(NamedTuple):
    """Two or more models on the same rows.

    Attributes:
        metrics: By table (`TEST`, or a retention table's name), then by model, the metrics.
        differences: By table, then by each model but the first, its differences to the first with their intervals.
        left_out: Retention tables that not all models were measured on.
    """

    metrics: dict[str, dict[str, dict[str, float]]]
    differences: dict[str, dict[str, dict[str, Any]]]
    left_out: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns, for each table of rows, its metrics and a verdict on each model but the first."""
        parts = []
        for table, models in self.metrics.items():
            first, *others = models
            title = [] if table == TEST else [f"Retention table {table}:\n"]
            shown = self.differences[table][others[0]] if len(others) == 1 else {}
            parts.append("\n".join([*title, format_table(models, shown)]))
            parts += [_format_verdicts(first, other, self.differences[table][other]) for other in others]
        if self.left_out:
            parts.append(f"Left out, as not all were measured there: {', '.join(self.left_out)}.")
        return "\n\n".join(parts).splitlines()


def compare_models(models: Sequence[AnyPath]) -> Comparison:
    """Compares models, each with the first.

    Args:
        models: Finished runs, exported folders that carry their measurement, or measurements.

    Raises:
        RecipeError: If there are fewer than two models, one is named twice, or they were not measured on the same rows
            by the same metrics.
        CheckpointError: If one was not measured, or its measurement is damaged.
    """
    names = [os.fspath(model) for model in ([models] if isinstance(models, str | os.PathLike) else models)]
    if len(names) < 2 or len(set(names)) < len(names):
        raise RecipeError(f"Expected two models or more, each named once, but got {', '.join(names) or 'none'}.")
    measured = {name: find_measurement(Path(name)).tables for name in names}
    first, *others = names
    named = dict.fromkeys(table for tables in measured.values() for table in tables)
    shared = [table for table in named if all(table in tables for tables in measured.values())]
    differences: dict[str, dict[str, dict[str, Any]]] = {}
    for table in shared:
        differences[table] = {}
        for other in others:
            one, two = measured[first][table], measured[other][table]
            _require_same_rows(first, one, other, two, table)
            differences[table][other] = find_differences(one, two)
    return Comparison(
        {table: {name: tables[table].metrics for name, tables in measured.items()} for table in shared},
        differences,
        tuple(table for table in named if table not in shared),
    )


def find_measurement(model: Path) -> Measurement:
    """Reads how a model did. Of a run with a head that is its classifier on its own table, and its merged checkpoint on
    retention tables.

    Args:
        model: A finished run, an exported folder that carries its measurement, or a measurement.

    Raises:
        CheckpointError: If it was not measured.
    """
    restore_folder(model)
    run = RunFolder(model)
    if run.recipe.is_file():
        require_finished(run)
    for folder in (run.measurement(AFTER), model / MEASUREMENT, model):
        if (folder / FACTS).is_file():
            measured, merged = read_measurement(folder), run.measurement(ZERO_SHOT_AFTER)
            if merged.is_dir():  # a classifier knows none of the classes of other tables; the merged checkpoint does
                return measured._replace(tables={**measured.tables, **read_measurement(merged).retention})
            return measured
    raise CheckpointError(
        f"Expected {model} to be a run, or an exported folder that carries its measurement, but it holds none. "
        f"Measure it: finetune test --config RECIPE --model.checkpoint {model} --output FOLDER"
    )


def _require_same_rows(first: str, one: TableMeasurement, other: str, two: TableMeasurement, table: str) -> None:
    """Refuses measurements whose difference would say nothing of the models."""
    rows = "test rows" if table == TEST else f"rows of the retention table {table}"
    found = None
    if not one.rows.equals(two.rows):
        count = min(len(one.rows), len(two.rows))
        differing = (one.rows[:count].to_numpy() != two.rows[:count].to_numpy()).any(axis=1)
        at = int(differing.argmax()) if differing.any() else count
        found = f"{_describe(one.rows, at)} and {_describe(two.rows, at)} in place {at + 1:,}"
    elif one.headline != two.headline:
        found = f"{one.headline} and {two.headline} for metrics"
    else:
        for key in one.figures.keys() & two.figures.keys():
            ones, twos = one.figures[key].units, two.figures[key].units
            if ones != twos:
                found = f"{ones:,} and {twos:,} queries of {key}"
    if found is not None:
        raise RecipeError(
            f"Expected {first} and {other} to be measured on the same {rows}, but got {found}. Measure both with the "
            "same recipe: finetune test --config RECIPE --output FOLDER"
        )


def _describe(rows: pd.DataFrame, at: int) -> str:
    if at >= len(rows):
        return "no row"
    row = rows.iloc[at]
    return f"{row['file']}:{row['row']} ({row['image']}, {row['text']!r})"


def _format_verdicts(first: str, other: str, differences: Mapping[str, Any]) -> str:
    grades = {key: grade(key, difference["verdict"]) for key, difference in differences.items()}
    lines = []
    for shown in ("better", "worse", "no clear difference"):
        keys = [key for key, found in grades.items() if found == shown]
        if keys:
            lines.append(f"  {shown}: {', '.join(keys)}")
    return "\n".join([f"{other} against {first}:", *lines]) if lines else f"{other} against {first}: nothing to compare"

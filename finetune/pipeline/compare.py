"""Models that were measured on the same rows, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.core.errors import CheckpointError, RecipeError
from finetune.evaluation.forgetting import find_differences
from finetune.run.folder import AFTER, RunFolder
from finetune.run.measurement import FACTS, MEASUREMENT, TEST, Measurement, read_measurement
from finetune.run.results import format_table


class Comparison(NamedTuple):
    """Two or more models on the same rows.

    Attributes:
        metrics: By table (`test`, or a retention table's name), then by model, the metrics.
        differences: By table, then by each model but the first, its differences to the first with their intervals.
    """

    metrics: dict[str, dict[str, dict[str, float]]]
    differences: dict[str, dict[str, dict[str, Any]]]

    def lines(self) -> list[str]:
        """Returns a table for each table of rows, and a verdict for each model that is compared with the first."""
        parts = []
        for table, models in self.metrics.items():
            first, *others = models
            title = [] if table == TEST else [f"Retention table {table}:\n"]
            shown = self.differences[table][others[0]] if len(others) == 1 else {}
            parts.append("\n".join([*title, format_table(models, shown)]))
            parts += [_format_verdicts(first, other, self.differences[table][other]) for other in others]
        return "\n\n".join(parts).splitlines()


def compare_models(models: Sequence[str | Path]) -> Comparison:
    """Compares models, each with the first.

    Args:
        models: Runs, exported folders that carry their measurement, or measurements.

    Raises:
        RecipeError: If there are fewer than two models, one is named twice, or they were measured on different rows.
        CheckpointError: If one was not measured, or its measurement is damaged.
    """
    names = [str(model) for model in models]
    if len(names) < 2 or len(set(names)) < len(names):
        raise RecipeError(f"Expected two models or more, each named once, but got {', '.join(names)}.")
    measured = {name: find_measurement(Path(name)) for name in names}
    first, *others = names
    for other in others:
        _require_same_rows(first, measured[first], other, measured[other])
    tables = [table for table in measured[first].tables if all(table in found.tables for found in measured.values())]
    return Comparison(
        {table: {name: found.tables[table].metrics for name, found in measured.items()} for table in tables},
        {
            table: {
                other: find_differences(measured[first].tables[table], measured[other].tables[table])
                for other in others
            }
            for table in tables
        },
    )


def find_measurement(model: Path) -> Measurement:
    """Reads how a model did.

    Args:
        model: A run, an exported folder that carries its measurement, or a measurement.

    Raises:
        CheckpointError: If it was not measured.
    """
    run = RunFolder(model)
    for folder in (run.measurement(AFTER), model / MEASUREMENT, model):
        if (folder / FACTS).is_file():
            return read_measurement(folder)
    if run.recipe.is_file():
        repair = f"Go on with the run: finetune resume {model}"
    else:
        repair = f"Measure it: finetune test --config RECIPE --model.checkpoint {model} --output FOLDER"
    raise CheckpointError(
        f"Expected {model} to be a run, or an exported folder that carries its measurement, but it holds none. {repair}"
    )


def _require_same_rows(first: str, before: Measurement, other: str, after: Measurement) -> None:
    for table in before.tables.keys() & after.tables.keys():
        one, two = before.tables[table].rows, after.tables[table].rows
        if one.equals(two):
            continue
        count = min(len(one), len(two))
        differing = (one[:count].to_numpy() != two[:count].to_numpy()).any(axis=1)
        at = int(differing.argmax()) if differing.any() else count
        rows = "test rows" if table == TEST else f"rows of the retention table {table}"
        raise RecipeError(
            f"Expected {first} and {other} to be measured on the same {rows}, but got {_name(one, at)} and "
            f"{_name(two, at)} in place {at + 1:,}. Measure both with the same table: finetune test --output FOLDER"
        )
    if before.test.headline != after.test.headline:
        raise RecipeError(
            f"Expected {first} and {other} to be measured by the same metric, but got {before.test.headline} and "
            f"{after.test.headline}."
        )


def _name(rows: Any, at: int) -> str:
    if at >= len(rows):
        return "no row"
    row = rows.iloc[at]
    return f"{row['file']}:{row['row']} ({row['image']}, {row['text']!r})"


def _format_verdicts(first: str, other: str, differences: Mapping[str, Any]) -> str:
    lines = []
    for verdict in ("higher", "lower", "no clear difference"):
        keys = [key for key, difference in differences.items() if difference["verdict"] == verdict]
        if keys:
            lines.append(f"  {verdict}: {', '.join(keys)}")
    return "\n".join([f"{other} against {first}:", *lines]) if lines else f"{other} against {first}: nothing to compare"

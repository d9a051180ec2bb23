"""A measurement as files: what a model reached, and what each row contributed, so that any two can be compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.core.csv_text import format_frame, read_frame, shield_frame
from finetune.core.errors import CheckpointError
from finetune.core.files import read_json, refuse_existing, require_own, write_folder, write_json, write_text
from finetune.core.places import AnyPath, require_place
from finetune.metrics.statistics import Figure, from_tensors, to_tensors

FACTS, TENSORS, PREDICTIONS, ROWS = "measurement.json", "figures.safetensors", "predictions.csv", "rows.csv"
MEASUREMENT = "measurement"
"""Name of the folder in which an exported folder carries its measurement."""

TEST = "data.table"
"""Name of the recipe's own table among those measured: its key. Names of retention tables have no dot."""


class TableMeasurement(NamedTuple):
    """One model on the test rows of one table.

    Attributes:
        metrics: Values by key, such as `test/accuracy`.
        headline: Key of the metric by which models are compared.
        figures: By metric that has an interval, how to compute it again for a bootstrap.
        rows: What was measured, a line a row: `file`, `row`, `image` and `text`.
    """

    metrics: dict[str, float]
    headline: str
    figures: dict[str, Figure]
    rows: pd.DataFrame

    @property
    def main(self) -> tuple[str, float]:
        """Key and value of the metric by which models are compared."""
        return self.headline, self.metrics[self.headline]


class Probe(NamedTuple):
    """What a model makes of the user's own images and of words that are not the user's; see `evaluation.drift`.

    Attributes:
        image_embeds: Unit vectors of test images, float32 of shape (images, D), on the CPU.
        text_embeds: Unit vectors of the words, float32 of shape (words, D), on the CPU.
    """

    image_embeds: Tensor
    text_embeds: Tensor


class Measurement(NamedTuple):
    """Everything that is measured of one model.

    Attributes:
        tables: The recipe's own table under `TEST`, and each of `data.retention` by its name.
        predictions: What the model says of each test row, see `TableKind.predictions`.
        linear_probe: The metrics of a logistic regression on the image embeddings, where it was asked for.
        calibration: How right the probabilities of the classes are, where a temperature was fitted.
        probe: What the drift meter looks at; None for a model without text tower.
    """

    tables: dict[str, TableMeasurement]
    predictions: pd.DataFrame
    linear_probe: dict[str, float] | None = None
    calibration: dict[str, Any] | None = None
    probe: Probe | None = None

    @property
    def test(self) -> TableMeasurement:
        """The model on the recipe's own table."""
        return self.tables[TEST]

    @property
    def retention(self) -> dict[str, TableMeasurement]:
        """The model on each retention table."""
        return {name: table for name, table in self.tables.items() if name != TEST}


def require_output(folder: AnyPath | None, overwrite: bool) -> None:
    """Refuses to replace a folder unasked, or one that is no measurement, before anything is measured.

    Args:
        folder: Where a measurement is to be written; None where none is.
        overwrite: Whether a measurement that is there is replaced.

    Raises:
        FileExistsError: If something is there that may not be replaced.
        OSError: If nothing can be written there.
    """
    if folder is None:
        return
    place = Path(folder)
    require_place(place)
    refuse_existing(place, overwrite)
    require_own(place, lambda names: FACTS in names and names <= {FACTS, TENSORS, PREDICTIONS, ROWS})


def write_measurement(measurement: Measurement, folder: Path) -> None:
    """Writes a measurement as a folder, in place of one that is there.

    Args:
        measurement: The measurement.
        folder: The folder to write.
    """
    tensors: dict[str, Tensor] = dict(measurement.probe._asdict()) if measurement.probe else {}
    facts: dict[str, Any] = {
        "tables": {
            name: {
                "metrics": table.metrics,
                "headline": table.headline,
                "figures": _take_apart(name, table.figures, tensors),
            }
            for name, table in measurement.tables.items()
        },
        "linear_probe": measurement.linear_probe,
        "calibration": measurement.calibration,
    }
    rows = pd.concat([table.rows.assign(table=name) for name, table in measurement.tables.items()])
    with write_folder(folder, overwrite=True) as staging:
        write_json(staging / FACTS, facts)
        save_file(tensors, staging / TENSORS)
        write_text(staging / PREDICTIONS, format_frame(shield_frame(measurement.predictions)))
        write_text(staging / ROWS, format_frame(shield_frame(rows)))


def read_measurement(folder: Path) -> Measurement:
    """Reads what `write_measurement` wrote.

    Args:
        folder: The folder.

    Raises:
        CheckpointError: If a file is missing or damaged.
    """
    try:
        facts, tensors = read_json(folder / FACTS), load_file(folder / TENSORS)
        rows = read_frame(folder / ROWS)
        tables = {
            name: TableMeasurement(
                table["metrics"],
                table["headline"],
                {key: _put_together(f"{name}/{key}/", kind, tensors) for key, kind in table["figures"].items()},
                rows[rows["table"] == name].drop(columns="table").reset_index(drop=True),
            )
            for name, table in facts["tables"].items()
        }
        probe = Probe(*(tensors[name] for name in Probe._fields)) if Probe._fields[0] in tensors else None
        return Measurement(tables, read_frame(folder / PREDICTIONS), facts["linear_probe"], facts["calibration"], probe)
    except (AttributeError, KeyError, OSError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"Expected {folder} to be a measurement, but got: {error!r}. Measure again.") from error


def _take_apart(table: str, figures: Mapping[str, Figure], tensors: dict[str, Tensor]) -> dict[str, str]:
    """Puts the tensors of figures among the others, and returns the kind of each figure."""
    kinds = {}
    for key, figure in figures.items():
        kinds[key], parts = to_tensors(figure)
        tensors |= {f"{table}/{key}/{part}": tensor for part, tensor in parts.items()}
    return kinds


def _put_together(prefix: str, kind: str, tensors: Mapping[str, Tensor]) -> Figure:
    parts = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return from_tensors(kind, {name: tensor for name, tensor in parts.items() if "/" not in name})

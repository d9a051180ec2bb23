"""A run or an untouched checkpoint, measured on a table."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from finetune.core.errors import RecipeError
from finetune.core.overrides import Overrides
from finetune.core.places import AnyPath
from finetune.data.checks.unreadable import SkippedRow, describe_skipped
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.measure import measure_rows, measure_towers
from finetune.inference.models import PlainClassifier
from finetune.model.base import Base
from finetune.model.head import require_classes
from finetune.model.towers import AlignTowers
from finetune.pipeline.recipe import Recipe, open_recipe, read_recipe
from finetune.pipeline.run_recipe import quieten
from finetune.pipeline.unseen import keep_unseen
from finetune.run.folder import open_run, require_finished
from finetune.run.measurement import Measurement, require_output, write_measurement
from finetune.run.results import format_table

_Measure = Callable[[ImageTextDataModule, torch.device], Measurement]
_Choose = Callable[[ImageTextDataModule], None]


class Measured(NamedTuple):
    """A model that was measured.

    Attributes:
        name: The model.
        measurement: What was measured.
        skipped: Rows that were left out, as their images cannot be read.
    """

    name: str
    measurement: Measurement
    skipped: tuple[SkippedRow, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Values by key, such as `test/accuracy`, on the recipe's own table."""
        return self.measurement.test.metrics

    def lines(self) -> list[str]:
        """Returns the metrics of each table as text, and which rows were left out."""
        parts = [format_table({self.name: self.metrics})]
        parts += [
            f"\nRetention table {name}:\n\n{format_table({self.name: table.metrics})}"
            for name, table in self.measurement.retention.items()
        ]
        return [*parts, *describe_skipped(self.skipped)]


def measure_run(
    run: AnyPath,
    overrides: Overrides = (),
    trust: Sequence[str] = (),
    output: AnyPath | None = None,
    anyway: bool = False,
    overwrite: bool = False,
) -> Measured:
    """Measures what a finished run exported again, its classifier where there is one, as `finetune test` does.

    Says what has changed of the table. Test rows whose images the run was trained on, or chosen by, are left out.

    Args:
        run: The run's folder.
        overrides: Recipe values to replace, see `read_recipe`: another table for example, or a DataFrame.
        trust: Modules that the run's recipe may name.
        output: The folder to write the measurement to, which `compare_models` reads; None writes none.
        anyway: Whether those rows are measured all the same.
        overwrite: Whether a measurement in `output` is replaced.

    Raises:
        RecipeError: If there is no such run, the run has seen all test rows, or `run.neighbours` has no training rows.
        CheckpointError: If it is not finished, or its exported folder does not load.
        FileExistsError: If `output` exists and `overwrite` is false, or it is no measurement.
        TableError: If the table has a fault.
    """
    folder = open_run(run)
    require_finished(folder)
    require_output(output, overwrite)
    recipe = read_recipe(folder.recipe, overrides, trust)
    choose = partial(keep_unseen, folder, split="test", seen=["train", "val"], anyway=anyway)
    if folder.classifier.is_dir():
        return _measure(recipe, str(folder.classifier), _ask_classifier(folder.classifier), output, choose)
    measure = _ask_towers(Base.open(folder.merged), recipe.run.neighbours)
    return _measure(recipe, str(folder.merged), measure, output, choose)


def measure_checkpoint(recipe: Recipe | AnyPath, output: AnyPath | None = None, overwrite: bool = False) -> Measured:
    """Measures a recipe's checkpoint as it is, as `finetune test --config` does.

    Args:
        recipe: Names the checkpoint and the table; a recipe, its file, or the name of a shipped one.
        output: As for `measure_run`.
        overwrite: As for `measure_run`.

    Raises:
        RecipeError: If `run.neighbours` has no training rows.
        CheckpointError: If the checkpoint does not load.
        FileExistsError: As `measure_run`.
        TableError: If the table has a fault.
    """
    require_output(output, overwrite)
    recipe = open_recipe(recipe)
    return _measure(recipe, recipe.checkpoint, _ask_towers(recipe.base, recipe.run.neighbours), output)


def _measure(
    recipe: Recipe, name: str, measure: _Measure, output: AnyPath | None, choose: _Choose | None = None
) -> Measured:
    """Measures a model on the rows chosen, opened once the tables are known to be without fault."""
    quieten()
    data = recipe.build_data()
    for table in (data, *data.retention.values()):
        table.rows.require("test")
    if choose is not None:
        choose(data)
    measured = measure(data, recipe.device)
    if output is not None:
        write_measurement(measured, Path(output))
    return Measured(name, measured, data.skipped)


def _ask_towers(base: Base, neighbours: int | None) -> _Measure:
    def measure(data: ImageTextDataModule, device: torch.device) -> Measurement:
        if neighbours and data.kind.has_one_label and not len(data.rows.indices("train")):
            raise RecipeError(
                f"Expected training rows in {data.rows.source} for run.neighbours {neighbours}, but got none. Measure "
                "without them by --run.neighbours null."
            )
        towers = AlignTowers.of(base)
        return measure_towers(towers, data, device, neighbours, with_probe=False)[0]

    return measure


def _ask_classifier(folder: Path) -> _Measure:
    def measure(data: ImageTextDataModule, device: torch.device) -> Measurement:
        model = PlainClassifier(folder)
        require_classes(model.classes, data.kind.classes)
        return measure_rows(model, data, device)[0]

    return measure

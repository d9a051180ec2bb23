"""A run or an untouched checkpoint, measured on a table."""

from collections.abc import Sequence
from pathlib import Path

from finetune.core.errors import RecipeError
from finetune.data.checks.unreadable import describe_skipped
from finetune.evaluation.measure import measure_classifier, measure_towers
from finetune.inference.embed import find_device
from finetune.inference.models import PlainClassifier
from finetune.model.base import Base
from finetune.model.head import require_classes
from finetune.pipeline.recipe import Recipe, read_recipe
from finetune.pipeline.run_recipe import quieten
from finetune.pipeline.stages import open_towers
from finetune.run.folder import open_run
from finetune.run.measurement import write_measurement
from finetune.run.results import format_table


def measure_run(
    run: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = (), output: Path | None = None
) -> str:
    """Measures what a finished run exported again, its classifier where there is one.

    Args:
        run: The run's folder.
        overrides: Recipe values to replace.
        trust: Modules that the run's recipe may name.
        output: The folder to write the measurement to; None writes none.

    Returns:
        A table for the screen.

    Raises:
        RecipeError: If there is no such run, or `run.neighbours` has no training rows.
        CheckpointError: If its exported folder does not load.
    """
    folder = open_run(run)
    recipe = read_recipe(folder.recipe, overrides, trust)
    if folder.classifier.is_dir():
        return _measure_classifier(recipe, folder.classifier, output)
    return _measure_towers(str(folder.merged), recipe, folder.merged, output)


def measure_checkpoint(recipe: Recipe, output: Path | None = None) -> str:
    """Measures a recipe's checkpoint as it is.

    Args:
        recipe: Names the checkpoint and the table.
        output: As for `measure_run`.

    Returns:
        A table for the screen.
    """
    return _measure_towers(recipe.checkpoint, recipe, recipe.checkpoint, output)


def _measure_towers(title: str, recipe: Recipe, checkpoint: str | Path, output: Path | None) -> str:
    """Measures a checkpoint, opened once the table is known to be without fault."""
    quieten()
    data, neighbours = recipe.build_data(), recipe.run.neighbours
    data.rows.require("test")
    if neighbours and data.kind.has_one_label and not len(data.rows.indices("train")):
        raise RecipeError(
            f"Expected training rows in {data.rows.source} for run.neighbours {neighbours}, but got none. Measure "
            "without them by --run.neighbours null."
        )
    device = find_device(recipe.accelerator)
    base = recipe.base if checkpoint == recipe.checkpoint else Base.open(checkpoint)
    measured, _ = measure_towers(open_towers(base), data, device, neighbours, with_probe=False)
    if output:
        write_measurement(measured, output)
    lines = [format_table({title: measured.test.metrics})]
    lines += [
        f"\nRetention table {name}:\n\n{format_table({title: table.metrics})}"
        for name, table in measured.retention.items()
    ]
    return "\n".join([*lines, *describe_skipped(data.skipped)])


def _measure_classifier(recipe: Recipe, folder: Path, output: Path | None) -> str:
    quieten()
    data = recipe.build_data()
    data.rows.require("test")
    model = PlainClassifier(folder)
    require_classes(model.classes, data.kind.classes)
    measured, _ = measure_classifier(model, data, find_device(recipe.accelerator))
    if output:
        write_measurement(measured, output)
    return "\n".join([format_table({str(folder): measured.test.metrics}), *describe_skipped(data.skipped)])

"""Everything that is wrong or doubtful with a recipe, its tables and their images, in one report."""

from finetune.core.errors import CheckpointError, FileError, RecipeError, TableError
from finetune.core.places import AnyPath
from finetune.data.checks.augment import find_refused
from finetune.data.checks.check import Report, TableSettings, check_table
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.pipeline.check_recipe import check_recipe, check_trainer
from finetune.pipeline.recipe import Recipe, open_recipe
from finetune.pipeline.run_recipe import quieten


def check(recipe: Recipe | AnyPath, full: bool = False) -> Report:
    """Finds every fault of a recipe's tables and images, then of the recipe, and what is seldom meant.

    Nothing is trained, and nothing is written.

    Args:
        recipe: A recipe, its file, or the name of a shipped one.
        full: Whether every image is decoded.

    Returns:
        The findings; `failed` where something is wrong, `lines()` for people, `as_json()` for machines.

    Raises:
        RecipeError: If the recipe cannot be read, or its data cannot be built.
        CheckpointError: If its checkpoint has no processor.

    Example:
        >>> from finetune import check, read_recipe
        >>> check(read_recipe("mine.yaml"), full=True).lines()  # doctest: +SKIP
    """
    quieten()
    recipe = open_recipe(recipe)
    data = recipe.build_data()
    retention = tuple(other.table for other in data.retention.values())
    report = check_table(TableSettings(data.table, data.mirrors, retention), full)
    add_limits(report, recipe, data)
    try:
        require_sound(report, recipe, data)
    except (TableError, RecipeError, CheckpointError, FileError) as error:
        report.recipe_error = str(error)
    return report


def add_limits(report: Report, recipe: Recipe, data: ImageTextDataModule) -> None:
    """Adds to a report on tables what checkpoint, augmentations and task make of their rows.

    Args:
        report: The report.
        recipe: The recipe that names the tables.
        data: Its tables, which take the rows of the report.
    """
    for other, rows in zip(data.retention.values(), report.retention, strict=False):
        if rows is not None:
            other.rows = rows
    if report.rows is not None:
        data.rows = report.rows
        report.concerns += [*data.find_limits(report.sizes), *recipe.task_class.find_concerns(data)]
        if data.augmentation is not None and report.sizes is not None:
            refused = find_refused(report.rows, data.table.image, report.sizes, data.augmentation, data.seed)
            report.faults = (*report.faults, *refused)
    if None not in report.retention:
        report.concerns += data.find_retention_limits()


def require_sound(report: Report, recipe: Recipe, data: ImageTextDataModule) -> None:
    """Refuses a recipe whose run would end in an error, see `check_recipe`.

    Args:
        report: What is known of the tables. Where they have faults, no more is asked than what no row decides.
        recipe: The recipe.
        data: Its tables.

    Raises:
        TableError: As `check_recipe`.
        RecipeError: As `check_recipe`.
        CheckpointError: As `check_recipe`.
    """
    if not recipe.trains:  # it is measured, by `finetune test`
        return
    if report.faults:  # then what depends on the rows would be said of others than a run's
        check_trainer(recipe.build_trainer())
    else:
        check_recipe(recipe, data)

"""The whole run: before -> fit -> best weights -> merge -> proof -> after -> report."""

import logging
import platform
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from transformers.utils.logging import disable_progress_bar

from finetune.core.errors import RecipeError
from finetune.core.files import fingerprint_file, fingerprint_weights, read_json, write_json, write_text
from finetune.data.checks.check import tell
from finetune.data.checks.unreadable import describe_skipped, read_skipped, write_skipped
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.classifier_task import ClassifierTask
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.evaluation.forgetting import Measurement, compare, compare_evaluations, measure
from finetune.export.choose_interpolation import Choice, check_settings
from finetune.export.classifier import write_classifier_card
from finetune.export.proof import PROOF_FILE
from finetune.model.base import portable_name, resolve_checkpoint
from finetune.pipeline.handover import hand_over
from finetune.pipeline.recipe import Recipe, read_recipe
from finetune.pipeline.train import fit
from finetune.report.page import write_report
from finetune.run.folder import RunFolder, open_run
from finetune.run.results import format_proof, format_results, format_table, installed_versions, write_model_card
from finetune.training.task import AlignTask

_EXPECTED_WARNINGS = (
    r".*module\(s\) in eval mode at the start of training",  # BatchNorm and the base's dropout, on purpose
    r"Label .* is present in all training examples",  # scikit-learn, of a class that all training rows have, or none
    r".*does not have many workers",  # the recipe says how many
    r".*Experiment logs directory .* exists",  # the run's folder was made for this log
    r".*Checkpoint directory .* exists",
    r".*smaller than the logging interval",
    r".*treespec",  # lightning on torch 2.13
    r".*is_gradient_checkpointing",  # transformers about itself
    r"(?s).*does not round-trip",  # tuples of albumentations in YAML, read back as lists all the same
)


def run_experiment(recipe: Recipe, overwrite: bool = False) -> RunFolder:
    """Measures the base, trains, merges, proves the merge, and measures what is handed out.

    Args:
        recipe: What to run.
        overwrite: Whether a run of the same name is replaced.

    Returns:
        The finished run's folder.

    Raises:
        TableError: If the table has a fault; nothing is written then.
        RecipeError: If a run of that name exists and `overwrite` is false, or alpha is to be chosen but the tables
            hold nothing to choose it by.
        CheckpointError: If a checkpoint does not load or the proof fails.
    """
    quieten()
    data = recipe.build_data()
    data.rows.require("train", "test")  # every fault of the tables is told before anything is written
    for elsewhere in data.retention.values():
        elsewhere.rows.require("test")
    check_settings(recipe.run, data)
    tell(data.rows, data.find_concerns())
    task = recipe.build_trainable()
    recipe.build_trainer([], DummyLogger())  # what is wrong with it is told before anything is written
    run = RunFolder(Path(recipe.run.folder) / recipe.name)
    base = resolve_checkpoint(recipe.checkpoint)
    tables = [file for one in (data, *data.retention.values()) for file in one.rows.files]
    run.create(overwrite, needed=[base, *map(Path, tables)])
    write_text(run.recipe, recipe.resolved)
    fingerprint = fingerprint_weights(base)
    write_json(run.environment, _environment(data, recipe.checkpoint, fingerprint))

    untouched = _untouched(recipe.checkpoint)
    before = measure(recipe.accelerator, untouched, data, recipe.run.neighbours, recipe.run.floor)
    metrics: dict[str, Any] = {"before": before.evaluation.metrics}
    if before.evaluation.floor:
        metrics["floor"] = before.evaluation.floor
    del untouched

    notices = fit(recipe, task, data, run)
    choice, proofs = hand_over(recipe, task, data, run, fingerprint)
    after = _measure_exports(recipe, data, run, before, choice, metrics)
    if notices:
        metrics["notices"] = [notice._asdict() for notice in notices]
    write_skipped(run.skipped, data.skipped)
    _write_results(run, recipe, metrics, after, proofs)
    return run


def quieten() -> None:
    """Leaves progress bars and warnings that tell a user something."""
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    disable_progress_bar()


def _measure_exports(
    recipe: Recipe,
    data: ImageTextDataModule,
    run: RunFolder,
    before: Measurement,
    choice: Choice,
    metrics: dict[str, Any],
) -> Evaluation:
    """Measures each folder that is handed out; beside a classifier the merged checkpoint is a column of its own.

    Returns:
        That of the last one, with the base's predictions beside its own.
    """
    if run.merged.is_dir():
        merged = measure(recipe.accelerator, _untouched(str(run.merged)), data, recipe.run.neighbours)
        after = merged.evaluation
        metrics["zero-shot after" if run.classifier.is_dir() else "after"] = after.metrics
        metrics |= compare(before, merged)
    if run.classifier.is_dir():
        after = evaluate(recipe.accelerator, ClassifierTask(run.classifier), data)
        metrics["after"] = after.metrics
    metrics["difference"] = compare_evaluations(before.evaluation, after)
    metrics |= choice.as_metrics() | choice.measure_calibration(after)
    return after._replace(predictions=after.predictions.assign(before=before.evaluation.predictions["prediction"]))


def _environment(data: ImageTextDataModule, checkpoint: str, fingerprint: str) -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **installed_versions()},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "table": [
            {"path": str(file), "sha256": fingerprint_file(file)}
            for file in map(Path, data.rows.files)
            if file.is_file()
        ],
        "checkpoint": {"name": portable_name(checkpoint), "sha256": fingerprint},
    }


def _write_results(
    run: RunFolder,
    recipe: Recipe,
    metrics: dict[str, Any],
    after: Evaluation,
    proofs: dict[Path, dict[str, Any]],
) -> None:
    write_json(run.metrics, metrics)
    write_text(run.predictions, after.predictions.to_csv(index=False, lineterminator="\n"))
    if run.merged in proofs:
        write_model_card(run.merged, recipe.name, metrics, proofs[run.merged])
    if run.classifier in proofs:
        base = portable_name(recipe.checkpoint)
        write_classifier_card(run.classifier, recipe.name, base, metrics, proofs[run.classifier])
    write_report(run.path)
    found = {folder.name: format_proof(proof) for folder, proof in proofs.items()}
    run.finish({"proofs": found, "versions": installed_versions()})


def measure_run(run: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> str:
    """The merged checkpoint of a finished run, measured again, as a table.

    Args:
        run: The run's folder.
        overrides: Recipe values to replace.
        trust: Modules that the run's recipe may name.

    Raises:
        RecipeError: If there is no such run, or `run.neighbours` has no training rows.
        CheckpointError: If its merged folder does not load.
    """
    folder = open_run(run)
    recipe = read_recipe(folder.recipe, overrides, trust)
    if folder.classifier.is_dir():
        return _measure(str(folder.classifier), recipe, None, lambda: ClassifierTask(folder.classifier))
    return _measure(str(folder.merged), recipe, recipe.run.neighbours, lambda: _untouched(str(folder.merged)))


def measure_checkpoint(recipe: Recipe) -> str:
    """A recipe's checkpoint, measured as it is, as a table.

    Args:
        recipe: Names the checkpoint and the table.
    """
    return _measure(recipe.checkpoint, recipe, recipe.run.neighbours, lambda: _untouched(recipe.checkpoint))


def _measure(
    title: str, recipe: Recipe, neighbours: int | None, build_task: Callable[[], AlignTask | ClassifierTask]
) -> str:
    """Measures a task, built once the table is known to be without fault."""
    quieten()
    data = recipe.build_data()
    data.rows.require("test")
    if neighbours and data.rows.classes and data.rows.label_sets is None and not len(data.rows.indices("train")):
        raise RecipeError(
            f"Expected training rows in {data.rows.source} for run.neighbours {neighbours}, but got none. Measure "
            "without them by --run.neighbours null."
        )
    found = format_table({title: evaluate(recipe.accelerator, build_task(), data, neighbours).metrics})
    return "\n".join([found, *describe_skipped(data.skipped)])


def _untouched(checkpoint: str) -> AlignTask:
    """A checkpoint as it is, nothing attached."""
    return AlignTask(checkpoint, image_lora=None, text_lora=None)


def describe(run: RunFolder) -> str:
    """The before/after table of a finished run, where its files lie, and which rows were left out.

    Args:
        run: A finished run.
    """
    folders = [folder for folder in (run.merged, run.classifier) if folder.is_dir()]
    return "\n".join(
        [
            format_results(read_json(run.metrics)),
            "",
            *(f"{folder.name:<11} {folder}: {format_proof(read_json(folder / PROOF_FILE))}" for folder in folders),
            f"run         {run.path}",
            *describe_skipped(read_skipped(run.skipped), run.skipped),
        ]
    )

"""What a run hands out, written and proven: adapter, merged checkpoint, classifier; by the run, and once more later."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoImageProcessor

from finetune.core.errors import CheckpointError, RecipeError
from finetune.core.files import fingerprint_weights, read_json, refuse_existing
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.classifier_task import require_classes
from finetune.export.choose_interpolation import Choice, Line, Temperature, choose
from finetune.export.classifier import export_classifier, write_classifier_card
from finetune.export.merged import export_merged, write_adapter
from finetune.export.proof import PROOF_FILE, write_witness
from finetune.model.base import load_model, portable_name, resolve_checkpoint
from finetune.model.head import Head, build_head, read_head, write_head
from finetune.model.interpolate import check_alpha
from finetune.model.merge import merge_adapter, merge_copy
from finetune.objectives import Classification
from finetune.pipeline.recipe import Recipe, read_recipe
from finetune.run.folder import RunFolder, open_run
from finetune.run.results import write_model_card
from finetune.training.task import AlignTask

WITNESS_ROWS = 8
"""Held-back rows that prove a merge."""


def hand_over(
    recipe: Recipe, task: AlignTask, data: ImageTextDataModule, run: RunFolder, fingerprint: str
) -> tuple[Choice, dict[Path, dict[str, Any]]]:
    """Chooses alpha and temperature, and writes the merged checkpoint of adapters and the classifier of a head.

    At alpha 1 the trained model takes in the fitted temperature before its witness and adapter are written, so that
    all of them have it.

    Args:
        recipe: Names the base and what is done after training.
        task: The trained model.
        data: The table, and those that stand for elsewhere.
        run: Where to write.
        fingerprint: SHA-256 of the base's weights.

    Returns:
        What was chosen, and the proofs by folder.

    Raises:
        CheckpointError: If a proof does not hold.
    """
    checkpoint = recipe.checkpoint
    choice = choose(recipe.run, recipe.accelerator, data, lambda: _line_of_task(checkpoint, task, data))
    if choice.alpha == 1 and choice.temperature is not None:
        _take_in(task, choice.temperature)
    write_witness(task.towers, data.held_back(WITNESS_ROWS), run.witness, task.head)
    if task.towers.has_adapters:
        write_adapter(task.towers, data.processor, run.adapter, portable_name(checkpoint), fingerprint)
    if task.head is not None:
        write_head(_head_of_task(task.head, data), run.head)
    left = choice if choice.alpha < 1 else Choice(1.0)
    proofs = {}
    if task.towers.has_adapters:
        proofs[run.merged] = _export_merged(run, checkpoint, run.merged, left)
        checkpoint = str(run.merged)
    if task.head is not None:
        processor = data.processor.image_processor
        proofs[run.classifier] = _export_classifier(run, checkpoint, processor, run.classifier, left)
    return choice, proofs


def _line_of_task(checkpoint: str, task: AlignTask, data: ImageTextDataModule) -> Line:
    adapted = merge_copy(task.towers.model).state_dict() if isinstance(task.towers.model, PeftModel) else None
    return Line(checkpoint, adapted, _head_of_task(task.head, data) if task.head else None)


def _head_of_task(objective: Classification, data: ImageTextDataModule) -> Head:
    return build_head(objective, data.rows.classes, is_multilabel=data.rows.label_sets is not None)


@torch.no_grad()
def _take_in(task: AlignTask, temperature: Temperature) -> None:
    """Puts a fitted temperature into what the class scores come from: the head and its start, or else the towers."""
    if task.head is None:
        task.towers.temperature.fill_(temperature.fitted)
        return
    for tensor in task.head.state_dict().values():
        tensor.mul_(temperature.scale)


def _export_merged(
    run: RunFolder, checkpoint: str, output: Path, choice: Choice, overwrite: bool = False
) -> dict[str, Any]:
    """The merged checkpoint; a temperature that was fitted to the scores of a head is not that of the prompts."""
    fitted = choice.temperature.fitted if choice.temperature and not run.head.is_file() else None
    return export_merged(checkpoint, run.adapter, run.witness, output, overwrite, choice.alpha, fitted)


def _export_classifier(
    run: RunFolder, checkpoint: str, processor: Any, output: Path, choice: Choice, overwrite: bool = False
) -> dict[str, Any]:
    scale = choice.temperature.scale if choice.temperature else 1.0
    return export_classifier(checkpoint, processor, run.head, run.witness, output, overwrite, choice.alpha, scale)


def export_run(
    run: str | Path,
    output: Path,
    overwrite: bool = False,
    alpha: float | Literal["auto"] | None = None,
    classifier: bool = False,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """Merges and proves what a finished run trained once more, into a folder of the user's choice.

    Args:
        run: The run's folder.
        output: The folder to write.
        overwrite: Whether an existing `output` is replaced.
        alpha: 1 for all that was trained, 0 for the base; a number needs no table, and its temperature is not fitted.
            `auto` chooses alpha and temperature on the recipe's tables as the run would. None repeats what the run
            handed out.
        classifier: Whether the image classifier of the run's head is written and not the merged checkpoint.
        overrides: Recipe values to replace, for `auto` alone.
        trust: Modules that the run's recipe may name.

    Returns:
        The content of `merge_proof.json`.

    Raises:
        RecipeError: If there is no such run, `alpha` is not in [0, 1], or there is nothing to choose it by.
        FileExistsError: If `output` exists and `overwrite` is false, or it is no folder that was exported.
        CheckpointError: If the run is not finished or did not train what is asked for, or as `export_merged`.
    """
    folder = open_run(run)
    _check_run(folder, classifier)
    refuse_existing(output, overwrite)
    _check_replaceable(output)
    if overrides and alpha != "auto":
        raise RecipeError(f"Expected recipe keys with --alpha auto only, but got {overrides[0]}. Remove it.")
    checkpoint = read_json(folder.environment)["checkpoint"]["name"]
    metrics = read_json(folder.metrics)
    choice = handed_out = _read_choice(metrics)
    if alpha == "auto":
        choice = _choose_again(folder, checkpoint, overrides, trust)
    elif alpha not in (None, handed_out.alpha):
        check_alpha(alpha, "--alpha")
        choice = Choice(alpha)
    shown = metrics if choice is handed_out else choice.as_metrics()
    if classifier:
        proof = _export_classifier_again(folder, checkpoint, output, choice, overwrite)
        write_classifier_card(output, folder.path.name, checkpoint, shown, proof)
    else:
        proof = _export_merged(folder, checkpoint, output, choice, overwrite)
        write_model_card(output, folder.path.name, shown, proof)
    return proof


def _check_replaceable(output: Path) -> None:
    """Refuses to replace what no export wrote: a run, or a user's own files."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / PROOF_FILE).is_file() or RunFolder(output).recipe.is_file():
        raise FileExistsError(
            f"Expected {output} to be absent, empty or a folder that was exported, but it holds something else. Name "
            "another folder with --output."
        )


def _check_run(run: RunFolder, classifier: bool) -> None:
    if not run.is_finished:
        raise CheckpointError(f"Expected {run.path} to be finished, but it has no finished.json. Run it again.")
    if classifier and not run.head.is_file():
        raise CheckpointError(f"Expected {run.path} to have a head, but it trained none. Export without --classifier.")
    if not classifier and not run.adapter.is_dir():
        raise CheckpointError(
            f"Expected {run.path} to have an adapter to merge, but it trained a head alone. Export its image "
            "classifier with --classifier."
        )


def _read_choice(metrics: dict[str, Any]) -> Choice:
    """What a run handed out of its adapter and head; at alpha 1 they hold the fitted temperature themselves."""
    alpha = metrics.get("alpha", {}).get("chosen", 1.0)
    if alpha == 1 or "calibration" not in metrics:
        return Choice(alpha)
    return Choice(alpha, Temperature(**metrics["calibration"]["temperature"]))


def _choose_again(run: RunFolder, checkpoint: str, overrides: Sequence[str], trust: Sequence[str]) -> Choice:
    recipe = read_recipe(run.recipe, [*overrides, "--run.alpha", "auto"], trust)
    data = recipe.build_data()
    for elsewhere in data.retention.values():
        elsewhere.rows.require("test")

    head = read_head(run.head) if run.head.is_file() else None
    if head is not None:
        require_classes(head.classes, data.rows.classes)

    def build_line() -> Line:
        adapted = None
        if run.adapter.is_dir():
            fingerprint = fingerprint_weights(resolve_checkpoint(checkpoint))
            adapted = merge_adapter(load_model(checkpoint), run.adapter, fingerprint).state_dict()
        return Line(checkpoint, adapted, head)

    return choose(recipe.run, recipe.accelerator, data, build_line)


def _export_classifier_again(
    run: RunFolder, checkpoint: str, output: Path, choice: Choice, overwrite: bool
) -> dict[str, Any]:
    """The classifier of the run's head on the towers of the same alpha, which are merged and proven for it."""
    processor = AutoImageProcessor.from_pretrained(run.classifier, backend="pil", local_files_only=True)
    with TemporaryDirectory() as scratch:
        if run.adapter.is_dir():
            merged = Path(scratch) / "merged"
            _export_merged(run, checkpoint, merged, choice)
            checkpoint = str(merged)
        return _export_classifier(run, checkpoint, processor, output, choice, overwrite)

"""What a finished run trained, exported once more: at the interpolation it chose, or at another one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from finetune.core.errors import CheckpointError, RecipeError
from finetune.core.files import read_json
from finetune.core.interpolation import Interpolation, parse_interpolation
from finetune.core.overrides import Overrides, as_words
from finetune.core.places import AnyPath
from finetune.export.artifact import require_exportable
from finetune.export.cards import select_metrics
from finetune.export.choose_interpolation import Choice
from finetune.export.classifier import ImageClassifier
from finetune.export.facts import read_facts
from finetune.export.merged import MergedCheckpoint
from finetune.export.onnx_files import OnnxFiles, require_onnx
from finetune.export.trained import TrainedModel
from finetune.model.base import Base
from finetune.run.folder import RunFolder, open_run, require_finished
from finetune.run.measurement import MEASUREMENT, read_measurement


def export_run(
    run: AnyPath,
    output: AnyPath,
    overwrite: bool = False,
    interpolation: float | Interpolation | Literal["auto"] | None = None,
    classifier: bool = False,
    overrides: Overrides = (),
    trust: Sequence[str] = (),
    anyway: bool = False,
    onnx: bool = False,
) -> dict[str, Any]:
    """Merges and proves what a finished run trained once more, into a folder of the user's choice.

    Args:
        run: The run's folder.
        output: The folder to write.
        overwrite: Whether an existing `output` is replaced.
        interpolation: None repeats what the run exported, as does its own number or profile. 1 exports all that was
            trained, 0 the base; any other number, or profile over towers and blocks, needs no table, and its
            temperature is not fitted. `auto` chooses interpolation and temperature on the recipe's tables as the run
            would.
        classifier: Whether the image classifier of the run's head is written and not the merged checkpoint.
        overrides: Recipe values to replace, for `auto` alone.
        trust: Modules that the run's recipe may name.
        anyway: Whether `auto` counts validation rows that the run was trained on.
        onnx: Whether the folder holds the towers, and the classifier of a head, in ONNX as well; the folder of an image
            classifier that alone. They are proven in a fresh process with onnxruntime.

    Returns:
        The content of `merge_proof.json`.

    Raises:
        RecipeError: If there is no such run, `interpolation` is not in [0, 1], there is nothing to choose it by, or
            a package for `onnx` is missing.
        FileExistsError: If `output` exists and `overwrite` is false, or it is no folder that was exported.
        CheckpointError: If the run is not finished or did not train what is asked for, its base has changed, or the
            proof does not hold.
    """
    folder, output = open_run(run), Path(output)
    kind = ImageClassifier if classifier else MergedCheckpoint
    require_finished(folder)
    _check_parts(folder, classifier)
    require_exportable(output, overwrite)
    if onnx:
        require_onnx()
    if (words := as_words(overrides)) and interpolation != "auto":
        raise RecipeError(f"Expected recipe keys with --interpolation auto only, but got {words[0]}. Remove it.")
    if anyway and interpolation != "auto":
        raise RecipeError("Expected --anyway with --interpolation auto only, which reads validation rows. Remove it.")
    exported = Choice.read(folder.choice)
    if interpolation == "auto":
        base, choice = _choose_again(folder, words, trust, anyway)
    else:
        base, choice = _open_base(folder), exported
        if interpolation is not None:
            asked = parse_interpolation(interpolation, "--interpolation")
            choice = exported if asked == exported.interpolation else Choice(asked)
    is_measured = choice is exported
    trained = TrainedModel(folder, base, choice)
    artifact = kind.of(trained)
    assert artifact is not None
    if not kind.by_head and folder.head.is_file():
        choice = choice._replace(curve=None, profiles=())  # what the head scored
    metrics = select_metrics(kind.by_head, read_json(folder.metrics)) if is_measured else choice.as_metrics()
    measurement = read_measurement(folder.path / kind.name / MEASUREMENT) if is_measured else None
    files = OnnxFiles(trained, only_classifier=classifier) if onnx else None
    title, facts = folder.path.resolve().name, read_facts(folder, base)
    return artifact.export(output, title, metrics, measurement, overwrite, onnx=files, facts=facts)


def _check_parts(run: RunFolder, classifier: bool) -> None:
    """Refuses to export what the run did not train."""
    if classifier and not run.head.is_file():
        raise CheckpointError(f"Expected {run.path} to have a head, but it trained none. Export without --classifier.")
    if not classifier and not run.adapter.is_dir():
        raise CheckpointError(
            f"Expected {run.path} to have an adapter to merge, but it trained a head alone. Export its image "
            "classifier with --classifier."
        )


def _open_base(run: RunFolder) -> Base:
    """The base of the training, as it was then."""
    named = read_json(run.environment)["checkpoint"]
    base = Base.open(named["name"])
    if base.fingerprint != named["sha256"]:
        raise CheckpointError(
            f"Expected the base of {run.path}, {base.name}, to have SHA-256 {named['sha256']}, but got "
            f"{base.fingerprint}. Put back the checkpoint that was trained on."
        )
    return base


def _choose_again(run: RunFolder, overrides: Sequence[str], trust: Sequence[str], anyway: bool) -> tuple[Base, Choice]:
    from finetune.model.head import LinearHead, require_classes
    from finetune.pipeline.choose import choose, open_line
    from finetune.pipeline.recipe import read_recipe
    from finetune.pipeline.unseen import keep_unseen

    recipe = read_recipe(run.recipe, [*overrides, "--run.interpolation", "auto"], trust)
    data = recipe.build_data()
    for other in data.retention.values():
        other.rows.require("test")
    if run.head.is_file():
        require_classes(LinearHead.read(run.head).classes, data.rows.classes)
    keep_unseen(run, data, "val", ["train"], anyway)
    base = _open_base(run)
    device = recipe.device
    return base, choose(recipe.run, data, device, lambda: open_line(run, base, device))

"""The interpolation and the temperature of what a run exports, chosen on validation rows."""

from collections.abc import Callable

import torch

from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.evaluation.forgetting import Loss, relative_loss
from finetune.export.choose_interpolation import INTERPOLATIONS, Choice, Line, Temperature, choose_interpolation
from finetune.inference.models import RowModel, ask_towers
from finetune.metrics.calibration import fit_temperature
from finetune.metrics.statistics import Figure
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.model.merge import merge_adapter
from finetune.run.folder import RunFolder
from finetune.run.settings import RunSettings


def check_settings(settings: RunSettings, data: ImageTextDataModule) -> None:
    """Checks that there is something to choose by.

    Args:
        settings: The recipe's.
        data: The table, and those of `data.retention`.

    Raises:
        RecipeError: If the interpolation is to be chosen, but there are no validation rows or no retention tables.
    """
    if settings.fixed_interpolation is not None:
        return
    if not len(data.rows.indices("val")):
        raise RecipeError(
            "Expected validation rows for run.interpolation auto, which chooses by them, but got none. Mark rows as "
            "val in the split column, give data.table.split.val a fraction, or set run.interpolation to a number."
        )
    if not data.retention:
        raise RecipeError(
            "Expected data.retention to name a table for run.interpolation auto, which bounds what is lost there, but "
            "got none. Name one of a domain that the model shall keep, or set run.interpolation to a number."
        )


def choose(
    settings: RunSettings, data: ImageTextDataModule, device: torch.device, build_line: Callable[[], Line]
) -> Choice:
    """Chooses the interpolation where that was asked for, and fits the temperature at it where rows have one label.

    Args:
        settings: The recipe's.
        data: The table, and those of `data.retention`.
        device: Where the models run.
        build_line: Makes the models to choose from; not called where nothing has to be measured.

    Raises:
        RecipeError: See `check_settings`.
    """
    check_settings(settings, data)
    fits = settings.calibrate and data.kind.has_one_label and len(data.rows.indices("val")) > 0
    fixed = settings.fixed_interpolation
    if fixed is not None and not fits:
        return Choice(fixed)
    line = build_line()
    if fixed is None:
        score = _build_score(line, data, device)
        weight, curve = choose_interpolation(score, INTERPOLATIONS, settings.max_retention_loss)
        choice = Choice(weight, curve=tuple(curve), max_retention_loss=settings.max_retention_loss)
    else:
        choice = Choice(fixed)
    if fits:
        answers = _validate(line.at(choice.interpolation, data.class_prompts), data, device).answers
        assert answers.class_scores is not None
        trained = line.towers.temperature.item()
        factor = fit_temperature(answers.class_scores, answers.truth)
        fitted = torch.tensor(factor * trained).item()  # as the weights hold it
        choice = choice._replace(temperature=Temperature(trained, fitted, len(answers.truth)))
    return choice


def open_line(run: RunFolder, base: Base, device: torch.device) -> Line:
    """Returns the models between a base and what a run trained of it.

    Args:
        run: The run's folder.
        base: The base.
        device: Where the models run.
    """
    adapted = merge_adapter(base, run.adapter).state_dict() if run.adapter.is_dir() else None
    return Line(base, adapted, LinearHead.read(run.head) if run.head.is_file() else None, device)


def _validate(model: RowModel, data: ImageTextDataModule, device: torch.device) -> Evaluation:
    return evaluate(model, data.loader("val"), data.kind.metric(), device, "validation")


def _build_score(
    line: Line, data: ImageTextDataModule, device: torch.device
) -> Callable[[float], tuple[float, float, float]]:
    """The score of an interpolation: the main metric on the validation rows, and the worst retention loss."""

    def measure_retention(interpolation: float) -> dict[str, Figure]:
        towers = line.towers_at(interpolation)
        found = {}
        for name, other in data.retention.items():
            split = "val" if len(other.rows.indices("val")) else "test"
            model = ask_towers(towers, other.class_prompts)
            measured = evaluate(model, other.loader(split), other.kind.metric(), device, f"retention, {name}")
            found[name] = measured.figures[measured.headline]
        return found

    before = measure_retention(0.0)

    def score(interpolation: float) -> tuple[float, float, float]:
        after = measure_retention(interpolation) if interpolation and line.moves_towers else before
        losses = [relative_loss(figure, after[name]) for name, figure in before.items()]
        worst = max((loss for loss in losses if loss is not None), default=Loss(0.0, 0.0))
        reached = _validate(line.at(interpolation, data.class_prompts), data, device).main[1]
        # Metrics are float32: their last digits shall choose nothing.
        return round(reached, 6), round(worst.value, 6), round(worst.error, 6)

    return score

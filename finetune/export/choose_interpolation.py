"""How far from its base a trained model is handed out, and at which temperature: chosen on validation rows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.evaluation.forgetting import Loss, relative_loss
from finetune.export.classifier import interpolate_head
from finetune.metrics import Figure, calibration_error, chance_calibration_error, fit_temperature, reliability
from finetune.model.head import Head
from finetune.model.interpolate import ALPHAS, Point, choose_alpha, interpolate
from finetune.objectives import Classification, Contrastive
from finetune.run.settings import RunSettings
from finetune.training.task import AlignTask


class Temperature(NamedTuple):
    """What the class scores are divided by.

    Attributes:
        trained: As training left it; with a head, what the head took in at its start.
        fitted: As the validation rows ask for.
    """

    trained: float
    fitted: float

    @property
    def scale(self) -> float:
        """What the class scores have to be multiplied by."""
        return self.trained / self.fitted


class Choice(NamedTuple):
    """What is handed out of a trained model.

    Attributes:
        alpha: 0 is the base, 1 all that was trained.
        temperature: None where it was not fitted.
        curve: What `auto` looked at.
        max_retention_loss: What `auto` allowed.
    """

    alpha: float
    temperature: Temperature | None = None
    curve: list[Point] | None = None
    max_retention_loss: float | None = None

    def as_metrics(self) -> dict[str, Any]:
        """`alpha` of `metrics.json`; nothing where all that was trained is handed out unasked."""
        if self.curve is not None:
            curve = [point._asdict() for point in self.curve]
            return {"alpha": {"chosen": self.alpha, "max_retention_loss": self.max_retention_loss, "curve": curve}}
        return {"alpha": {"chosen": self.alpha}} if self.alpha < 1 else {}

    def measure_calibration(self, after: Evaluation) -> dict[str, Any]:
        """`calibration` of `metrics.json`, on the test rows; nothing where no temperature was fitted.

        Args:
            after: What is handed out. At the trained temperature it would have said the same, more or less surely.
        """
        if self.temperature is None or after.class_scores is None or after.label_ids is None:
            return {}
        scores, labels = after.class_scores, after.label_ids
        errors, by_chance = {}, {}
        for name, factor in (("trained", 1 / self.temperature.scale), ("fitted", 1.0)):
            best = (factor * scores).softmax(dim=-1).max(dim=-1)
            errors[name] = float(calibration_error(best.values, best.indices == labels))
            by_chance[name] = chance_calibration_error(best.values)
        return {
            "calibration": {
                "temperature": self.temperature._asdict(),
                "expected_calibration_error": errors,
                "of_a_calibrated_model": by_chance,
                "bins": [part._asdict() for part in reliability(scores, labels)],
            }
        }


class Line:
    """The models between a base and what was trained of it, one at a time in memory.

    Args:
        checkpoint: The base: hub id, local folder, or `align-mini`.
        adapted: State dict of the base with the adapters merged, None where there are none.
        head: The trained head, None where there is none.
    """

    def __init__(self, checkpoint: str, adapted: Mapping[str, Tensor] | None, head: Head | None) -> None:
        self._task = AlignTask(checkpoint, image_lora=None, text_lora=None)
        self._base = {name: tensor.clone() for name, tensor in self._task.towers.align.state_dict().items()}
        self._adapted = adapted
        self._head = head

    @property
    def moves_towers(self) -> bool:
        """Whether the towers are the base's at alpha 0 only."""
        return self._adapted is not None

    def towers_at(self, alpha: float) -> AlignTask:
        """The towers of an alpha, with no head: what is measured elsewhere. The same object at each call."""
        if self._adapted is not None:
            self._task.towers.align.load_state_dict(interpolate(self._base, self._adapted, alpha))
        self._task.objective = Contrastive()
        return self._task

    def at(self, alpha: float) -> AlignTask:
        """The model of an alpha, with its head where there is one. The same object at each call."""
        task = self.towers_at(alpha)
        if self._head is not None:
            head, objective = interpolate_head(self._head, alpha), Classification()
            objective.weight, objective.bias = Parameter(head.weight), Parameter(head.bias)
            task.objective = objective
        return task


def check_settings(settings: RunSettings, data: ImageTextDataModule) -> None:
    """Checks that there is something to choose by.

    Args:
        settings: The recipe's.
        data: The table, and those that stand for elsewhere.

    Raises:
        RecipeError: If alpha is to be chosen, but there are no validation rows or no table stands for elsewhere.
    """
    if settings.alpha != "auto":
        return
    if not len(data.rows.indices("val")):
        raise RecipeError(
            "Expected validation rows for run.alpha auto, which chooses by them, but got none. Mark rows as val in the "
            "split column, give data.table.split.val a fraction, or set run.alpha to a number."
        )
    if not data.retention:
        raise RecipeError(
            "Expected data.retention to name a table for run.alpha auto, which bounds what is lost there, but got "
            "none. Name one that stands for what the model shall keep, or set run.alpha to a number."
        )


def choose(
    settings: RunSettings, accelerator: str, data: ImageTextDataModule, build_line: Callable[[], Line]
) -> Choice:
    """Chooses alpha where that was asked for, and fits the temperature at it where there are labels to fit it to.

    Args:
        settings: The recipe's.
        accelerator: As for Lightning's `Trainer`.
        data: The table, and those that stand for elsewhere.
        build_line: Makes the models to choose from; not called where nothing has to be measured.

    Raises:
        RecipeError: See `check_settings`.
    """
    check_settings(settings, data)
    has_one_label = bool(data.rows.classes) and data.rows.label_sets is None
    fits = settings.calibrate and has_one_label and len(data.rows.indices("val")) > 0
    if settings.alpha != "auto" and not fits:
        return Choice(settings.alpha)
    line = build_line()
    if settings.alpha == "auto":
        alpha, curve = choose_alpha(_scorer(accelerator, line, data), ALPHAS, settings.max_retention_loss)
        choice = Choice(alpha, curve=curve, max_retention_loss=settings.max_retention_loss)
    else:
        choice = Choice(settings.alpha)
    if fits:
        task = line.at(choice.alpha)
        validation = evaluate(accelerator, task, data.tested_on("val"))
        choice = choice._replace(temperature=_fit(validation, task.towers.temperature.item()))
    return choice


def _fit(validation: Evaluation, trained: float) -> Temperature:
    assert validation.class_scores is not None
    assert validation.label_ids is not None
    factor = fit_temperature(validation.class_scores, validation.label_ids)
    return Temperature(trained, torch.tensor(factor * trained).item())  # as the weights hold it


def _scorer(accelerator: str, line: Line, data: ImageTextDataModule) -> Callable[[float], tuple[float, float, float]]:
    """The score function of `choose_alpha`: the main metric on the validation rows, and the worst loss elsewhere."""
    target = data.tested_on("val")
    tables = {
        name: other.tested_on("val") if len(other.rows.indices("val")) else other
        for name, other in data.retention.items()
    }

    def elsewhere(alpha: float) -> dict[str, Figure]:
        task = line.towers_at(alpha)
        found = {name: evaluate(accelerator, task, other) for name, other in tables.items()}
        return {name: evaluation.figures[evaluation.headline] for name, evaluation in found.items()}

    before = elsewhere(0.0)

    def score(alpha: float) -> tuple[float, float, float]:
        after = elsewhere(alpha) if alpha and line.moves_towers else before
        losses = [relative_loss(figure, after[name]) for name, figure in before.items()]
        worst = max((loss for loss in losses if loss is not None), default=Loss(0.0, 0.0))
        reached = evaluate(accelerator, line.at(alpha), target).main[1]
        # Metrics are float32: their last digits shall choose nothing.
        return round(reached, 6), round(worst.value, 6), round(worst.error, 6)

    return score

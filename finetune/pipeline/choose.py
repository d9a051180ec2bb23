"""The interpolation and the temperature of what a run exports, chosen on validation rows."""

import sys
from collections.abc import Callable

import torch

from finetune.core import processes
from finetune.core.bar import Bar
from finetune.core.console import say
from finetune.core.errors import RecipeError
from finetune.core.interpolation import Interpolation
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.evaluation.forgetting import Loss, relative_loss
from finetune.evaluation.kept_answers import KeptAnswers
from finetune.export.choose_interpolation import (
    INTERPOLATIONS,
    Choice,
    Line,
    Point,
    Temperature,
    choose_point,
    list_candidates,
)
from finetune.inference.models import RowModel
from finetune.metrics.calibration import TRUSTED_ROWS, fit_temperature
from finetune.metrics.statistics import Figure, standard_error
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.model.layers import TOWERS
from finetune.model.merge import merge_adapter
from finetune.run.folder import RunFolder
from finetune.run.settings import RunSettings

MOST_BYTES = 1024**3
"""Features that are kept of a search: those of 38,000 rows with labels, or 19,000 with captions, at 640 float32."""

TOO_MANY_ROWS = (
    "run.interpolation auto keeps both towers alike: what profiles make of so many validation and retention rows does "
    f"not fit into {MOST_BYTES // 1024**3} GiB."
)


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
    choice = _search(line, data, device, settings.max_retention_loss) if fixed is None else Choice(fixed)
    if fits:
        answers = _validate(line.at(choice.interpolation, data.class_prompts), data, device).answers
        assert answers.class_scores is not None
        trained = line.towers.temperature.item()
        trusted = 0 if line.has_head else TRUSTED_ROWS
        factor = fit_temperature(answers.class_scores, answers.truth, trusted)
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


def _search(line: Line, data: ImageTextDataModule, device: torch.device, max_loss: float) -> Choice:
    """The choice of `auto` among all that it tries; among the line alone where memory could not hold more."""
    score = Score(line, data, device)
    asking, joined, _ = score.candidates
    if not score.kept_bytes and len(line.moved) == len(TOWERS) and processes.is_first():
        say(TOO_MANY_ROWS, file=sys.stderr)
    points = {interpolation: score(interpolation) for interpolation in asking}
    with Bar("profiles", len(joined), "models", "models", shown=processes.is_first()) as bar:
        for interpolation in joined:
            points[interpolation] = score(interpolation)
            bar.advance(1, 1)
    curve = tuple(points.pop(interpolation) for interpolation in INTERPOLATIONS)
    profiles = tuple(points.values())
    chosen = choose_point([*curve, *profiles], max_loss).interpolation
    return Choice(chosen, None, curve, max_loss, profiles)


class Score:
    """Measures an interpolation: by the main metric on the validation rows, and the worst retention loss.

    Args:
        line: The models.
        data: The table, and those of `data.retention`.
        device: Where the models run.

    Attributes:
        candidates: What can be tried.
        kept_bytes: How much memory takes what the towers make of the rows, as it is kept for other interpolations; 0
            where it would be too much. Then nothing is kept, and both towers stay alike.
    """

    def __init__(self, line: Line, data: ImageTextDataModule, device: torch.device) -> None:
        self._target = KeptAnswers(line, data, "val", device, "validation", by_head=True)
        self._retention = {
            name: KeptAnswers(line, other, _choosing_split(other), device, f"retention, {name}")
            for name, other in data.retention.items()
        }
        self._before: dict[str, Figure] = {}
        self._tables = (self._target, *self._retention.values())
        self.candidates = list_candidates(line.moved)
        self.kept_bytes = sum(table.count_bytes(self.candidates.weights) for table in self._tables)
        if self.kept_bytes > MOST_BYTES:
            self.kept_bytes = 0
            self.candidates = self.candidates._replace(asking=[*INTERPOLATIONS], joined=[])

    def __call__(self, interpolation: float | Interpolation) -> Point:
        """Returns the point of an interpolation. Metrics are float32: their last digits shall choose nothing."""
        before = self._before = self._before or self._measure_retention(0.0)
        after = self._measure_retention(interpolation)
        losses = [relative_loss(figure, after[name]) for name, figure in before.items()]
        worst = max((loss for loss in losses if loss is not None), default=Loss(0.0, 0.0))
        found = self._target.evaluate(interpolation)
        target, units = found.main[1], found.figures[found.headline].units
        figures = (target, worst.value, worst.error, standard_error(target, units))
        if not self.kept_bytes:
            for table in self._tables:
                table.forget()
        return Point(interpolation, *(round(figure, 6) for figure in figures))

    def _measure_retention(self, interpolation: float | Interpolation) -> dict[str, Figure]:
        measured = {name: table.evaluate(interpolation) for name, table in self._retention.items()}
        return {name: found.figures[found.headline] for name, found in measured.items()}


def _choosing_split(other: ImageTextDataModule) -> str:
    """The rows of a retention table by which an interpolation is chosen."""
    return "val" if len(other.rows.indices("val")) else "test"

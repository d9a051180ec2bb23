"""The line of models between the base and a trained one, and the calibration of the trained one.

Both are measured as the toolkit's commands do. The temperature is fitted to the validation rows at interpolation 1.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy
from transfer_data import Pictures, TaskData, base
from transfer_measure import Trained, class_scores, main_figure, measure_place, measure_retrieval

from finetune.evaluation.forgetting import relative_loss
from finetune.export.choose_interpolation import Line
from finetune.metrics.calibration import LARGEST_FACTOR, calibration_error, chance_calibration_error, fit_temperature
from finetune.metrics.retrieval import Retrieval
from finetune.metrics.statistics import Figure
from finetune.model.head import LinearHead
from finetune.training.task import AlignTask

INTERPOLATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


def line_of_task(task: AlignTask, head: LinearHead | None) -> Callable[[float], Trained]:
    """Builds the models between the base and a trained task, one at a time.

    Args:
        task: The task.
        head: Its head, where it has one.
    """
    model = task.towers.model
    merged = copy.deepcopy(model).cpu().merge_and_unload(safe_merge=True) if isinstance(model, PeftModel) else None
    line = Line(base(), merged and merged.state_dict(), head, torch.device("cpu"))

    def at(interpolation: float) -> Trained:
        towers = line.towers_at(interpolation)
        return Trained(towers.align, None if head is None else head.at(interpolation))

    return at


def every_other(pictures: Pictures, start: int) -> Pictures:
    """Takes half of a gallery."""
    kept = torch.arange(start, len(pictures), 2)
    return replace(
        pictures,
        pixels=pictures.pixels[kept.numpy()],
        texts=[pictures.texts[row] for row in kept.tolist()],
        label_ids=pictures.label_ids[kept],
        image_ids=pictures.image_ids[kept],
        caption_ids=pictures.caption_ids[kept],
    )


def measure_line(at: Callable[[float], Trained], data: TaskData) -> dict[str, Any]:
    """Measures everything by which an interpolation can be chosen and judged.

    Args:
        at: The models.
        data: The task.

    Returns:
        `rows`, the number of validation rows, and `points`: for each `interpolation` the figures on `val` and `target`,
        and `retention`, the loss of the toolkit's retrieval metric on both halves of each other domain, each with its
        `value` and `error`.
    """
    halves = {name: [every_other(data.galleries[name], start) for start in (0, 1)] for name in data.task.retention()}

    def retention(trained: Trained) -> dict[str, list[Figure]]:
        return {
            name: [measure_retrieval(trained, half).figures()[Retrieval.headline] for half in both]
            for name, both in halves.items()
        }

    rows = {"val": data.val, "target": data.galleries["target"]}
    before, points = retention(at(0.0)), []
    for interpolation in INTERPOLATIONS:
        trained = at(interpolation)
        own = {name: round(main_figure(measure_place(trained, of, True)), 5) for name, of in rows.items()}
        after = retention(trained) if interpolation else before
        lost = {
            name: [_rounded(relative_loss(*pair)._asdict()) for pair in zip(both, after[name], strict=True)]
            for name, both in before.items()
        }
        points.append({"interpolation": interpolation, **own, "retention": lost})
    return {"rows": len(data.val), "points": points}


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: round(figure, 5) for key, figure in figures.items()}


def measure_calibration(trained: Trained, data: TaskData) -> dict[str, float]:
    """Measures the calibration error on the target, as trained and at the temperature fitted to the validation rows.

    Args:
        trained: What a method left.
        data: A task with labels.
    """
    val, target = data.val, data.galleries["target"]
    return calibration_errors(
        class_scores(trained, val), class_scores(trained, target), val.label_ids, target.label_ids
    )


def calibration_errors(val: Tensor, target: Tensor, val_ids: Tensor, target_ids: Tensor) -> dict[str, float]:
    """Measures the expected calibration error of the target, as it is and at the temperature fitted to `val`.

    `by_likelihood` is the error at the temperature of plain temperature scaling, `by_chance` that of a calibrated model
    in place of the fitted one.

    Args:
        val: Logits (N, C) of the validation rows.
        target: Logits (M, C) of the target's.
        val_ids: Labels (N,).
        target_ids: Labels (M,).
    """
    fitted = target / fit_temperature(val, val_ids)
    by_chance = chance_calibration_error(fitted.softmax(dim=-1).amax(dim=-1))
    return {
        "trained": _error(target, target_ids),
        "fitted": _error(fitted, target_ids),
        "by_likelihood": _error(target / temperature_of_most_likelihood(val, val_ids), target_ids),
        "by_chance": round(by_chance, 5),
    }


def temperature_of_most_likelihood(scores: Tensor, label_ids: Tensor) -> float:
    """Fits plain temperature scaling (Guo et al. 2017, arXiv 1706.04599), within the bounds of the toolkit's own.

    Args:
        scores: Logits (N, C).
        label_ids: Labels (N,).
    """
    bound = math.log(LARGEST_FACTOR)
    logits = scores.double()
    return math.exp(
        minimize_scalar(
            lambda log_factor: float(cross_entropy(logits / math.exp(log_factor), label_ids)),
            bounds=(-bound, bound),
            method="bounded",
        ).x
    )


def _error(scores: Tensor, label_ids: Tensor) -> float:
    best = scores.softmax(dim=-1).max(dim=-1)
    return round(float(calibration_error(best.values, best.indices == label_ids)), 5)

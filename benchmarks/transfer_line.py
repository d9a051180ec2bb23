"""Models between the base and one that the toolkit trained, and what its fitted temperature makes of that one.

Both are measured as the toolkit's commands would. The temperature is fitted to the validation rows at alpha 1.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy
from transfer_data import Pictures, TaskData, load_base
from transfer_measure import Trained, class_scores, main_figure, measure_place, measure_retrieval

from finetune.evaluation.forgetting import relative_loss
from finetune.export.classifier import interpolate_head
from finetune.metrics import Figure, Retrieval, calibration_error, chance_calibration_error, fit_temperature
from finetune.metrics.calibration import LARGEST_FACTOR
from finetune.model.head import Head
from finetune.model.interpolate import interpolate
from finetune.model.merge import merge_copy
from finetune.training.task import AlignTask

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def line_of_task(task: AlignTask, head: Head | None) -> Callable[[float], Trained]:
    """The models between the base and a trained task.

    Args:
        task: It.
        head: Its head, where it has one.
    """
    model = load_base()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = merge_copy(task.towers.model).state_dict() if isinstance(task.towers.model, PeftModel) else base

    def at(alpha: float) -> Trained:
        model.load_state_dict(interpolate(base, adapted, alpha))
        return Trained(model, interpolate_head(head, alpha).logits if head is not None else None)

    return at


def every_other(pictures: Pictures, start: int) -> Pictures:
    """Half of a gallery."""
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
    """All that alpha can be chosen from and judged by.

    Args:
        at: The models.
        data: The task.

    Returns:
        `rows`, the number of validation rows, and `points`: of each alpha `alpha`, the figures on `val` and `target`,
        and `elsewhere` with what is lost of the toolkit's retrieval metric in either half of each place's pictures,
        `value` and `error`.
    """
    places = {name: data.galleries[name] for name in data.galleries if name in data.task.elsewhere()}
    halves = {name: [every_other(pictures, start) for start in (0, 1)] for name, pictures in places.items()}

    def elsewhere(trained: Trained) -> dict[str, list[Figure]]:
        return {
            name: [measure_retrieval(trained, half).figures()[Retrieval.headline] for half in both]
            for name, both in halves.items()
        }

    rows = {"val": data.val, "target": data.galleries["target"]}
    before, points = elsewhere(at(0.0)), []
    for alpha in ALPHAS:
        trained = at(alpha)
        own = {name: round(main_figure(measure_place(trained, of, True)), 5) for name, of in rows.items()}
        after = elsewhere(trained) if alpha else before
        lost = {
            name: [_rounded(relative_loss(*pair)._asdict()) for pair in zip(both, after[name], strict=True)]
            for name, both in before.items()
        }
        points.append({"interpolation": alpha, **own, "retention": lost})
    return {"rows": len(data.val), "points": points}


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: round(figure, 5) for key, figure in figures.items()}


def measure_calibration(trained: Trained, data: TaskData) -> dict[str, float]:
    """Expected calibration error on the target as trained, and with the temperature fitted to the validation rows.

    Args:
        trained: What training left.
        data: A task with labels.
    """
    val, target = data.val, data.galleries["target"]
    return calibration_errors(
        class_scores(trained, val), class_scores(trained, target), val.label_ids, target.label_ids
    )


def calibration_errors(val: Tensor, target: Tensor, val_ids: Tensor, target_ids: Tensor) -> dict[str, float]:
    """Expected calibration error of the target's scores, as they are and at the temperature that `val` asks for.

    `by_likelihood` is that at the temperature of plain temperature scaling, `by_chance` that of a calibrated model in
    the place of the fitted one.

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
    """Plain temperature scaling (Guo et al. 2017, arXiv 1706.04599), within the bounds of the toolkit's own.

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

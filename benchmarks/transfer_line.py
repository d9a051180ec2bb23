"""The line of models between the base and a trained one, and the calibration of the trained one.

Both are measured as the toolkit's commands do. The temperature is fitted to the validation rows at interpolation 1.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transfer_data import Pictures, TaskData, base
from transfer_measure import Trained, class_scores, hit_rate, image_features, text_features

from finetune.core.interpolation import as_json, parse_interpolation
from finetune.evaluation.forgetting import relative_loss
from finetune.export.choose_interpolation import Line
from finetune.inference.embed import class_embeddings
from finetune.metrics.calibration import (
    LARGEST_FACTOR,
    TRUSTED_ROWS,
    calibration_error,
    chance_calibration_error,
    fit_temperature,
)
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


class Kept:
    """What the towers make of a gallery at each weight, so that any image weight goes with any text weight.

    Args:
        pictures: The gallery.
        uses_scores: Whether its classes are those that a head answers.
    """

    def __init__(self, pictures: Pictures, uses_scores: bool) -> None:
        self.pictures = pictures
        self.uses_scores = uses_scores
        self._images: dict[float, Tensor] = {}
        self._texts: dict[float, Tensor] = {}
        self._scores: dict[float, Callable[[Tensor], Tensor] | None] = {}

    def ask(self, trained: Trained, weight: float) -> None:
        """Embeds the gallery.

        Args:
            trained: The model at a weight, which may be another one afterwards.
            weight: The weight, of both towers.
        """
        assert trained.model is not None
        self._images[weight] = image_features(trained.model, self.pictures)
        self._texts[weight] = text_features(trained.model, list(self.pictures.classes or self.pictures.texts))
        self._scores[weight] = trained.class_scores if self.uses_scores else None

    def main_figure(self, image: float, text: float) -> float:
        """Computes the accuracy, or the hit rate at 10.

        Args:
            image: Weight of the image tower, and of a head.
            text: Weight of the text tower.
        """
        if not self.pictures.classes:
            return hit_rate(self.retrieval(image, text))
        scores, images = self._scores[image], self._images[image]
        if scores is not None:
            logits = scores(images)
        else:
            classes = class_embeddings(self._texts[text], torch.arange(len(self.pictures.classes)))
            logits = normalize(images, dim=-1) @ classes.T
        return float((logits.argmax(dim=1) == self.pictures.label_ids).float().mean())

    def retrieval(self, image: float, text: float) -> Retrieval:
        """Computes the toolkit's metric of a gallery of captions.

        Args:
            image: Weight of the image tower.
            text: Weight of the text tower.
        """
        metric = Retrieval()
        metric.update(self._images[image], self._texts[text], self.pictures.image_ids, self.pictures.caption_ids)
        return metric


@torch.no_grad()
def measure_line(at: Callable[[float], Trained], data: TaskData) -> dict[str, Any]:
    """Measures everything by which an interpolation can be chosen and judged.

    Args:
        at: The models.
        data: The task.

    Returns:
        `rows`, the number of validation rows, and `points`: for each `interpolation`, as `metrics.json` writes it, the
        figures on `val` and `target`, and `retention`, the loss of the toolkit's retrieval metric on both halves of
        each other domain, each with its `value` and `error`. Where a head is trained, the text tower is the base's.
    """
    own = {"val": Kept(data.val, True), "target": Kept(data.galleries["target"], True)}
    others = {
        name: [Kept(every_other(data.galleries[name], half), False) for half in (0, 1)]
        for name in data.task.retention()
    }
    for weight in INTERPOLATIONS:
        trained = at(weight)
        for kept in (*own.values(), *itertools.chain(*others.values())):
            kept.ask(trained, weight)
    has_head = at(1.0).class_scores is not None
    pairs = [(each, each) for each in INTERPOLATIONS]
    pairs += [] if has_head else [*itertools.permutations(INTERPOLATIONS, 2)]
    points = []
    for image, text in pairs:
        lost = {
            name: [
                _rounded(relative_loss(_headline(half, 0.0, 0.0), _headline(half, image, text))._asdict())
                for half in both
            ]
            for name, both in others.items()
        }
        figures = {name: round(kept.main_figure(image, text), 5) for name, kept in own.items()}
        where = as_json(parse_interpolation({"image": image, "text": text}))
        points.append({"interpolation": where, **figures, "retention": lost})
    return {"rows": len(data.val), "points": points}


def _headline(kept: Kept, image: float, text: float) -> Figure:
    return kept.retrieval(image, text).figures()[Retrieval.headline]


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: round(figure, 5) for key, figure in figures.items()}


def measure_calibration(trained: Trained, data: TaskData) -> dict[str, float]:
    """Measures the calibration error on the target, as trained and at temperatures fitted to the validation rows.

    Args:
        trained: What a recipe left.
        data: A task with labels.
    """
    val, target = data.val, data.galleries["target"]
    return calibration_errors(
        class_scores(trained, val),
        class_scores(trained, target),
        val.label_ids,
        target.label_ids,
        TRUSTED_ROWS if trained.class_scores is None else 0,
    )


def calibration_errors(
    val: Tensor, target: Tensor, val_ids: Tensor, target_ids: Tensor, trusted_rows: int = 0
) -> dict[str, float]:
    """Measures the expected calibration error of the target, as it is and at the temperature fitted to `val`.

    `by_accuracy` is the error where the trained confidence is worth no rows; `by_likelihood` that of plain temperature
    scaling, and `by_chance` that of a calibrated model in place of the fitted one.

    Args:
        val: Logits (N, C) of the validation rows.
        target: Logits (M, C) of the target's.
        val_ids: Labels (N,).
        target_ids: Labels (M,).
        trusted_rows: As for `fit_temperature`.
    """
    fitted = target / fit_temperature(val, val_ids, trusted_rows)
    by_chance = chance_calibration_error(fitted.softmax(dim=-1).amax(dim=-1))
    return {
        "trained": _error(target, target_ids),
        "fitted": _error(fitted, target_ids),
        "by_accuracy": _error(target / fit_temperature(val, val_ids), target_ids),
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

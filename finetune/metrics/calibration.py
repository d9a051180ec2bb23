"""Whether a classifier is as sure as it is right, and the temperature that makes it so."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binned_statistic
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

BINS = 15
"""Equal parts of [0, 1] that confidences are sorted into."""

LARGEST_FACTOR = 100.0
"""How far a fitted temperature may be from the trained one, up or down."""

PRIOR = 1.0
"""How many rows the trained temperature counts as, beside those that another one is fitted to."""

DRAWS = 200
"""How often `chance_calibration_error` draws which rows are right."""


class Bin(NamedTuple):
    """The rows whose confidence lies in one part of [0, 1].

    Attributes:
        confidence: Mean probability of the predicted class, None without rows.
        accuracy: Share of the rows whose predicted class is theirs, None without rows.
        share: These rows as a share of all.
    """

    confidence: float | None
    accuracy: float | None
    share: float


def calibration_error(confidences: Tensor, correct: Tensor) -> Tensor:
    """Returns the expected calibration error: mean distance of accuracy from confidence, by bin, as rows weigh.

    Naeini et al. 2015, with the 15 bins of Guo et al. 2017 (arXiv 1706.04599).

    Args:
        confidences: Float tensor of shape (N,), probability of the predicted class.
        correct: Bool tensor of shape (N,), whether that is the row's class.

    Example:
        >>> import torch
        >>> calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([True, False]))
        tensor(0.4000)
    """
    return binary_calibration_error(confidences, correct.long(), n_bins=BINS, norm="l1")


def chance_calibration_error(confidences: Tensor) -> float:
    """Returns the calibration error that a calibrated model of these confidences would show on so many rows.

    It is far from 0 where rows are few, as the bins' accuracies are those of a few rows each: an error near it is no
    sign of a bad calibration. The mean over draws in which each row is right with its confidence (consistency
    resampling, Bröcker and Smith 2007, Weather and Forecasting 22).

    Args:
        confidences: Float tensor of shape (N,), probability of the predicted class.

    Example:
        >>> import torch
        >>> few, many = (chance_calibration_error(torch.linspace(0.2, 1, rows)) for rows in (100, 10_000))
        >>> round(few, 2), round(many, 2)
        (0.12, 0.01)
    """
    random, confidences = np.random.default_rng(0), confidences.cpu()
    draws = (torch.from_numpy(random.random(len(confidences))) for _ in range(DRAWS))
    return float(torch.stack([calibration_error(confidences, draw < confidences.double()) for draw in draws]).mean())


def reliability(scores: Tensor, label_ids: Tensor) -> list[Bin]:
    """Returns what `calibration_error` compares, bin by bin in the order of confidence.

    Args:
        scores: Float tensor of shape (N, C), logits.
        label_ids: Int64 tensor of shape (N,), in [0, C).
    """
    best = scores.float().softmax(dim=-1).max(dim=-1)
    values = np.stack([best.values.double().numpy(), (best.indices == label_ids).double().numpy()])
    means = binned_statistic(values[0], values, "mean", bins=BINS, range=(0, 1)).statistic
    shares = binned_statistic(values[0], None, "count", bins=BINS, range=(0, 1)).statistic / len(scores)
    return [
        Bin(float(confidence), float(accuracy), float(share)) if share else Bin(None, None, 0.0)
        for confidence, accuracy, share in zip(*means, shares, strict=True)
    ]


def fit_temperature(scores: Tensor, label_ids: Tensor) -> float:
    """Returns the factor on the temperature that makes the scores' probabilities fit the labels.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599): with s = 1 / factor, the least

        sum over rows of -log softmax(s scores)[label]  +  PRIOR (s - 1 - log s)

    which is convex in s and changes no ranking. The second term is the logarithm of a gamma prior with its mode at 1.
    Without it rows that are all right would ask for a temperature of 0, and a single row that is wrong for one far
    from the best on other rows; beside some hundred rows it hardly counts.

    Args:
        scores: Float tensor of shape (N, C), logits at the temperature as it is.
        label_ids: Int64 tensor of shape (N,), in [0, C).

    Example:
        >>> import torch
        >>> scores = torch.tensor([[8.0, 0.0]]).repeat(100, 1)
        >>> round(fit_temperature(scores, torch.tensor([0] * 75 + [1] * 25)), 1)
        7.0
    """
    logits = scores.double() - scores.double().amax(dim=-1, keepdim=True)
    of_labels = logits.gather(1, label_ids[:, None]).sum()

    def loss(log_scale: float) -> float:
        scale = math.exp(log_scale)
        fit = (scale * logits).logsumexp(dim=-1).sum() - scale * of_labels
        return float(fit) + PRIOR * (scale - 1 - log_scale)

    bound = math.log(LARGEST_FACTOR)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return math.exp(-found.x)

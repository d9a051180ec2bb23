"""Calibration: whether a classifier is as sure as it is right, and the temperature that makes it so."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import binned_statistic
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

BINS = 15
"""Equal parts of [0, 1] that confidences are sorted into."""

LARGEST_FACTOR = 100.0
"""Largest factor between a fitted temperature and the trained one, up or down."""

TRUSTED_ROWS = 20
"""Validation rows that the trained confidence of class prompts is worth, by the benchmark's tasks."""

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
    """Returns the expected calibration error: the bins' mean distance of accuracy from confidence, as their rows weigh.

    Naeini et al. 2015, with the 15 bins of Guo et al. 2017 (arXiv 1706.04599).

    Args:
        confidences: Float tensor of shape (N,), probability of the predicted class.
        correct: Bool tensor of shape (N,), whether that is the row's class.

    Example:
        >>> import torch
        >>> calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([True, False]))
        tensor(0.4000)
    """
    below_one = confidences.clamp_max(1 - torch.finfo(confidences.dtype).eps / 2)  # torchmetrics gives 1 its own bin
    return binary_calibration_error(below_one, correct.long(), n_bins=BINS, norm="l1")


def chance_calibration_error(confidences: Tensor) -> float:
    """Returns the calibration error that a calibrated model of these confidences would show on so many rows.

    Where rows are few this error is far from 0, as each bin's accuracy is that of a few rows: a measured error near it
    is no sign of bad calibration. It is the mean over draws in which each row is right with the probability of its
    confidence (consistency resampling, Bröcker and Smith 2007, Weather and Forecasting 22).

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
    """Returns the confidences and accuracies that `calibration_error` compares, bin by bin in the order of confidence.

    Args:
        scores: Float tensor of shape (N, C), logits.
        label_ids: Int64 tensor of shape (N,), in [0, C).
    """
    best = scores.float().softmax(dim=-1).max(dim=-1)
    rows = np.stack([best.values.double().numpy(), (best.indices == label_ids).double().numpy()])
    means = binned_statistic(rows[0], rows, "mean", bins=BINS, range=(0, 1)).statistic
    shares = binned_statistic(rows[0], None, "count", bins=BINS, range=(0, 1)).statistic / len(scores)
    return [
        Bin(float(confidence), float(accuracy), float(share)) if share else Bin(None, None, 0.0)
        for confidence, accuracy, share in zip(*means, shares, strict=True)
    ]


def fit_temperature(scores: Tensor, label_ids: Tensor, trusted_rows: int = 0) -> float:
    """Returns the factor on the temperature that makes the scores as sure as they are right; no ranking changes.

    With this factor the mean confidence equals the accuracy (expectation consistency, Clarté et al. 2023, arXiv
    2303.02644). Laplace's rule of succession estimates the accuracy from r right rows of n as (r + 1) / (n + 2), so
    rows that are all right never ask for certainty. Where the trained confidence c, the mean over the rows, is worth m
    rows, the estimate is (r + 1 + m c) / (n + 2 + m): ten rows cannot tell an accuracy by themselves. Temperature
    scaling (Guo et al. 2017, arXiv 1706.04599) maximises the likelihood instead; the few rows that are surely wrong
    rule it, and can make all others too unsure.

    Args:
        scores: Float tensor of shape (N, C), logits at the temperature as it is.
        label_ids: Int64 tensor of shape (N,), in [0, C).
        trusted_rows: How many rows the trained confidence is worth.

    Returns:
        The factor, at most 100 and at least 1 / 100; 1 where the scores tell no class from another.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[8.0, 0.0]]).repeat(98, 1)
        >>> labels = torch.tensor([0] * 74 + [1] * 24)
        >>> round(fit_temperature(scores, labels), 2), round(fit_temperature(scores, labels, trusted_rows=20), 2)
        (7.28, 5.99)
    """
    best = scores.max(dim=-1)
    logits = (scores - best.values[:, None]).double()

    def confidence(log_factor: float) -> float:
        return float((logits / math.exp(log_factor)).softmax(dim=-1).amax(dim=-1).mean())

    right = int((best.indices == label_ids).sum()) + 1 + trusted_rows * confidence(0.0)
    accuracy = right / (len(scores) + 2 + trusted_rows)
    bound = math.log(LARGEST_FACTOR)
    surest, least_sure = confidence(-bound), confidence(bound)
    if surest == least_sure:
        return 1.0
    if surest <= accuracy:
        return 1 / LARGEST_FACTOR
    if least_sure >= accuracy:
        return LARGEST_FACTOR
    return math.exp(brentq(lambda log_factor: confidence(log_factor) - accuracy, -bound, bound))

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

_OF_TRAINED_HEADS = 1.5
"""The factor that a trained head needs as a rule, by the benchmark's tasks: it is too sure, as it fits its few rows."""

EXPECTED_ROWS = 20
"""How many rows the expected factor counts for when one is fitted: ten rows cannot tell an accuracy by themselves."""

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
    return binary_calibration_error(confidences, correct.long(), n_bins=BINS, norm="l1")


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


def expected_of_heads(interpolation: float) -> float:
    """Returns the factor on the temperature that a head needs as a rule.

    A trained one is too sure, and the regularised probe that it started from as much too unsure.

    Args:
        interpolation: 1 for the trained head, 0 for its start.

    Example:
        >>> [round(expected_of_heads(interpolation), 2) for interpolation in (0, 0.5, 1)]
        [0.67, 1.0, 1.5]
    """
    return float(_OF_TRAINED_HEADS ** (2 * interpolation - 1))


def fit_temperature(scores: Tensor, label_ids: Tensor, expected: float = 1.0) -> float:
    """Returns the factor on the temperature that makes the scores as sure as they are right; no ranking changes.

    With this factor the mean confidence equals the accuracy (expectation consistency, Clarté et al. 2023, arXiv
    2303.02644). Temperature scaling (Guo et al. 2017, arXiv 1706.04599) maximises the likelihood instead; the few rows
    that are surely wrong rule it, and can make all others too unsure.

    Few rows tell little of an accuracy. It is estimated as if `EXPECTED_ROWS` more had been seen, right as often as the
    scores are sure at the expected factor: (r + 20 c) / (n + 20) for r right rows of n and that mean confidence c.

    Args:
        scores: Float tensor of shape (N, C), logits at the temperature as it is.
        label_ids: Int64 tensor of shape (N,), in [0, C).
        expected: The factor that such scores need as a rule.

    Returns:
        The factor, at most 100 and at least 1 / 100; `expected` where the scores tell no class from another.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[8.0, 0.0]]).repeat(980, 1)
        >>> round(fit_temperature(scores, torch.tensor([0] * 740 + [1] * 240)), 2)
        6.94
        >>> round(fit_temperature(scores[:4], torch.tensor([0, 0, 0, 1])), 2)
        2.56
    """
    best = scores.max(dim=-1)
    logits = (scores - best.values[:, None]).double()

    def confidence(log_factor: float) -> float:
        return float((logits / math.exp(log_factor)).softmax(dim=-1).amax(dim=-1).mean())

    right = int((best.indices == label_ids).sum())
    accuracy = (right + EXPECTED_ROWS * confidence(math.log(expected))) / (len(scores) + EXPECTED_ROWS)
    bound = math.log(LARGEST_FACTOR)
    surest, least_sure = confidence(-bound), confidence(bound)
    if surest == least_sure:
        return expected
    if surest <= accuracy:
        return 1 / LARGEST_FACTOR
    if least_sure >= accuracy:
        return LARGEST_FACTOR
    return math.exp(brentq(lambda log_factor: confidence(log_factor) - accuracy, -bound, bound))

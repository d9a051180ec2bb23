"""Whether a classifier is as sure as it is right, and the temperature that makes it so."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import binned_statistic
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import binary_calibration_error

from finetune.metrics.bootstrap import paired_difference
from finetune.metrics.figures import mean

BINS = 15
"""Equal parts of [0, 1] that confidences are sorted into."""

LARGEST_FACTOR = 100.0
"""How far a fitted temperature may be from the trained one, up or down."""

PRIOR = 0.25
"""How much the trained temperature counts beside the rows that another one is fitted to."""


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
        7.2
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


def choose_temperature(scores: Tensor, label_ids: Tensor) -> float:
    """Returns the factor of `fit_temperature` where it clearly suits the rows better than none, else 1.

    Clearly is where the paired bootstrap's 95 % interval of the mean of -log softmax(scores / factor)[label] lies below
    that without the factor. What a few rows ask for is otherwise as likely to take from a calibrated model as to give.

    Args:
        scores: As for `fit_temperature`.
        label_ids: Likewise.

    Example:
        >>> import torch
        >>> scores, labels = torch.tensor([[8.0, 0.0]]), torch.tensor([0] * 75 + [1] * 25)
        >>> round(choose_temperature(scores.repeat(100, 1), labels), 1)
        7.2
        >>> choose_temperature(scores.repeat(4, 1), torch.tensor([0, 0, 0, 1]))
        1.0
    """
    factor = fit_temperature(scores, label_ids)
    trained, fitted = (
        mean(cross_entropy(each.double(), label_ids, reduction="none")) for each in (scores, scores / factor)
    )
    return factor if paired_difference(trained, fitted).verdict == "lower" else 1.0

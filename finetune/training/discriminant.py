"""A classifier in closed form: linear discriminant analysis with a shrunk covariance."""

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

ROWS = 256
"""Rows whose losses are computed at a time, so that memory holds little beside the logits."""


def discriminant(
    features: Tensor, label_ids: Tensor, weights: Tensor, classes: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Returns the weight of shape (C, D) and the bias of shape (C,), float64, of Fisher's linear discriminant.

    With the mean m[c] and the share p[c] of each class, the scatter S within classes of n rows and the variance v of a
    feature over all rows, averaged over the D features:

        P = ((S + k v I) / (n - C + k))^-1
        logits[c] = f P m[c] - m[c] P m[c] / 2 + log p[c]

    (Hastie et al. 2009, The Elements of Statistical Learning, section 4.3). The shrunk covariance is what k more rows
    that vary alike in every direction would give. A class without rows lies at the mean of all, and is as likely as
    half a row.

    Args:
        features: Float tensor of shape (N, D).
        label_ids: Int64 tensor of shape (N,), in [0, C).
        weights: Float tensor of shape (N,): how many rows each counts for.
        classes: C.
        shrinkage: k, above 0.
    """
    features, weights = features.double(), weights.double()
    centre, variance = _centre(features, weights)
    values = features - centre
    counts = weights.new_zeros(classes).index_add(0, label_ids, weights)
    sums = values.new_zeros(classes, values.shape[1]).index_add(0, label_ids, weights[:, None] * values)
    means = _mean(sums, counts)
    within = values - means[label_ids]
    degrees = (weights.sum() - (counts > 0).sum()).clamp_min(0)
    weight = means @ _precision(within, weights, degrees, variance, shrinkage)
    bias = counts.clamp_min(0.5).log() - (weight * means).sum(1) / 2 - weight @ centre
    return weight, bias


def one_against_rest(features: Tensor, targets: Tensor, weights: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Returns weight and bias as `discriminant` does, for classes of which an image may have several.

    Each class is set against the rows without it. All classes share the covariance of all rows. That also holds the
    difference d between a class's two means; with p the class's share, dividing by 1 - p (1 - p) d P d takes it out.

    Args:
        features: Float tensor of shape (N, D).
        targets: Bool tensor of shape (N, C).
        weights: Float tensor of shape (N,): how many rows each counts for.
        shrinkage: As for `discriminant`.
    """
    features, weights = features.double(), weights.double()
    centre, variance = _centre(features, weights)
    values = features - centre
    truth = targets.to(weights) * weights[:, None]
    counts, total = truth.sum(0), weights.sum()
    sums, others = truth.T @ values, total - counts
    means, rest = _mean(sums, counts), _mean(-sums, others)
    difference = means - rest
    weight = difference @ _precision(values, weights, total, variance, shrinkage)
    share = counts / total
    weight = weight / (1 - share * (1 - share) * (weight * difference).sum(1)).clamp_min(1e-3)[:, None]
    odds = counts.clamp_min(0.5).log() - others.clamp_min(0.5).log()
    return weight, odds - (weight * (means + rest)).sum(1) / 2 - weight @ centre


def best_factor(logits: Tensor, truth: Tensor, weights: Tensor, smoothing: float) -> float:
    """Returns the factor on logits that gives the least cross-entropy with smoothed labels.

    Args:
        logits: Float64 tensor of shape (N, C).
        truth: Label ids of shape (N,), or bool targets of shape (N, C), each of which is a yes-or-no question.
        weights: Float64 tensor of shape (N,).
        smoothing: Share of the labels that is spread evenly, in (0, 1): without it the logits of rows that are all
            right would be best if they were infinite.
    """

    def row_losses(factor: float, logits: Tensor, truth: Tensor) -> Tensor:
        if truth.ndim == 2:
            smooth = truth * (1 - smoothing) + smoothing / 2
            return binary_cross_entropy_with_logits(factor * logits, smooth, reduction="none").mean(1)
        return cross_entropy(factor * logits, truth, reduction="none", label_smoothing=smoothing)

    def loss(exponent: float) -> float:
        parts = zip(logits.split(ROWS), truth.split(ROWS), strict=True)
        losses = torch.cat([row_losses(math.exp(exponent), *part) for part in parts])
        return float((losses * weights).sum())

    return math.exp(minimize_scalar(loss, bounds=(-12.0, 4.0), method="bounded").x)


def _centre(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean of the rows, and the variance of a feature averaged over the features."""
    shares = weights / weights.sum()
    centre = shares @ features
    return centre, shares @ (features - centre).square().mean(1)


def _mean(sums: Tensor, counts: Tensor) -> Tensor:
    """Divides sums by counts; 0, the mean of all, stands where nothing was counted."""
    return (sums / counts[:, None]).where(counts[:, None] > 0, 0.0)


def _precision(values: Tensor, weights: Tensor, degrees: Tensor, variance: Tensor, shrinkage: float) -> Tensor:
    scatter = values.T @ (weights[:, None] * values)
    scatter.diagonal().add_(shrinkage * variance)
    precision: Tensor = torch.linalg.inv(scatter / (degrees + shrinkage))
    return precision

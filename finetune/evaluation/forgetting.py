"""What two measurements say of each other: differences with their intervals, and what a model forgot."""

from typing import Any, NamedTuple

from finetune.evaluation.drift import drift
from finetune.metrics.bootstrap import paired_difference
from finetune.metrics.statistics import Figure
from finetune.run.measurement import Measurement, TableMeasurement


def find_differences(before: TableMeasurement, after: TableMeasurement) -> dict[str, dict[str, Any]]:
    """Returns the difference of each metric that can have an interval and that both models were measured by.

    Args:
        before: One model on the rows of a table.
        after: Another one on the same rows.

    Returns:
        By metric: `value`, `low`, `high` and `verdict`, see `finetune.metrics.paired_difference`.
    """
    found = {name: _difference(name, before, after) for name in before.figures if name in after.figures}
    return {name: difference for name, difference in found.items() if difference is not None}


def _difference(name: str, before: TableMeasurement, after: TableMeasurement) -> dict[str, Any] | None:
    """None where a single query tells nothing of chance, or no row has a label."""
    figure = before.figures[name]
    if figure.units < 2 or figure.point_estimate().isnan():
        return None
    found = paired_difference(figure, after.figures[name])
    return {**found._asdict(), "verdict": found.verdict}


def compare_retention(before: Measurement, after: Measurement) -> dict[str, Any]:
    """Returns what a model lost of what its base could do on the retention tables.

    Args:
        before: The base.
        after: The adapted model on the same rows.

    Returns:
        `tables`, with `metric`, `before`, `after`, `relative_loss` of each (below 0 for a gain, None where the base
        scored 0) and `difference`, that of the metric with its interval, or None where it can have none; and
        `mean_relative_loss` and `worst_relative_loss` over those that have one.
    """
    tables = {name: _compare_table(table, after.retention[name]) for name, table in before.retention.items()}
    losses = [loss for table in tables.values() if (loss := table["relative_loss"]) is not None]
    return {
        "tables": tables,
        "mean_relative_loss": sum(losses) / len(losses) if losses else None,
        "worst_relative_loss": max(losses, default=None),
    }


def _compare_table(before: TableMeasurement, after: TableMeasurement) -> dict[str, Any]:
    key, could = before.main
    reached = after.metrics[key]
    return {
        "metric": key,
        "before": could,
        "after": reached,
        "relative_loss": _share_lost(could, reached),
        "difference": _difference(key, before, after),
    }


class Loss(NamedTuple):
    """What a model lost of what its base could do, as a share of that.

    Attributes:
        value: The share; below 0 for a gain.
        error: Standard error of the share, as the rows are few.
    """

    value: float
    error: float


def relative_loss(before: Figure, after: Figure) -> Loss | None:
    """Returns how much of a metric is lost, and how sure that is; None where the base scored 0.

    Args:
        before: The base's metric.
        after: The adapted model's on the same rows.

    Example:
        >>> import torch
        >>> from finetune.metrics.statistics import mean
        >>> lost = relative_loss(mean(torch.ones(100)), mean((torch.arange(100) >= 20).float()))
        >>> round(lost.value, 2), round(lost.error, 2)
        (0.2, 0.04)
        >>> relative_loss(mean(torch.zeros(100)), mean(torch.ones(100))) is None
        True
    """
    could = float(before.point_estimate())
    lost = _share_lost(could, float(after.point_estimate()))
    return None if lost is None else Loss(lost, paired_difference(before, after).error / could)


def _share_lost(before: float, after: float) -> float | None:
    """None where there is nothing to lose."""
    return (before - after) / before if before > 0 else None


def compare(before: Measurement, after: Measurement) -> dict[str, Any]:
    """Returns what `metrics.json` says of an adapted model beside its base.

    Args:
        before: The base.
        after: The adapted model, both towers of it.

    Returns:
        `drift`, see `finetune.evaluation.drift.drift`, and where there are retention tables `retention`, see
        `compare_retention`.
    """
    found: dict[str, Any] = {}
    if before.probe is not None and after.probe is not None:
        found["drift"] = drift(before.probe, after.probe)
    if before.retention:
        found["retention"] = compare_retention(before, after)
    return found

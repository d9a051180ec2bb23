"""Everything that is measured of one model, and what two measurements say of each other."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.drift import Probe, drift, probe
from finetune.evaluation.evaluate import Evaluation, evaluate, find_device
from finetune.metrics import Figure, paired_difference, value
from finetune.training.task import AlignTask


class Measurement(NamedTuple):
    """One model on the user's test rows, elsewhere, and in words that are not the user's.

    Attributes:
        evaluation: The test rows.
        elsewhere: Those of each table of `data.retention`, by its name.
        probe: What the drift meter looks at.
    """

    evaluation: Evaluation
    elsewhere: dict[str, Evaluation]
    probe: Probe


def measure(
    accelerator: str, task: AlignTask, data: ImageTextDataModule, neighbours: int | None = None, floor: bool = False
) -> Measurement:
    """Measures a model everywhere.

    Args:
        accelerator: As for Lightning's `Trainer`.
        task: The model.
        data: The table, and those that stand for elsewhere.
        neighbours: As for `evaluate`.
        floor: As for `evaluate`.
    """
    evaluation = evaluate(accelerator, task, data, neighbours, floor)
    elsewhere = {name: evaluate(accelerator, task, other) for name, other in data.retention.items()}
    return Measurement(evaluation, elsewhere, probe(task.to(find_device(accelerator)), data))


def compare_evaluations(before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """The difference of each metric that can have an interval and that both models were measured by, with it.

    Args:
        before: One model on the test rows.
        after: Another one on the same rows.

    Returns:
        By metric: `value`, `low`, `high` and `verdict`, see `finetune.metrics.paired_difference`.
    """
    found = {name: _difference(name, before, after) for name in before.figures if name in after.figures}
    return {name: difference for name, difference in found.items() if difference is not None}


def _difference(name: str, before: Evaluation, after: Evaluation) -> dict[str, Any] | None:
    """None where a single query tells nothing of chance, or no row has a label."""
    figure = before.figures[name]
    if figure.units < 2 or value(figure).isnan():
        return None
    found = paired_difference(figure, after.figures[name])
    return {**found._asdict(), "verdict": found.verdict}


def compare_elsewhere(
    before: Mapping[str, tuple[str, float]], after: Mapping[str, tuple[str, float]]
) -> dict[str, Any]:
    """What a model lost of what its base could do.

    Args:
        before: Key and value of the base's main metric on each table that stands for elsewhere.
        after: Those of the adapted model.

    Returns:
        `tables`, with `metric`, `before`, `after` and `relative_loss` of each (below 0 for a gain, None where the base
        scored 0), and `mean_relative_loss` and `worst_relative_loss` over those that have one.

    Example:
        >>> before = {"photos": ("test/accuracy", 0.5), "maps": ("test/accuracy", 0.2)}
        >>> after = {"photos": ("test/accuracy", 0.375), "maps": ("test/accuracy", 0.2)}
        >>> compare_elsewhere(before, after)["worst_relative_loss"]
        0.25
    """
    tables: dict[str, dict[str, Any]] = {
        name: {
            "metric": metric,
            "before": value,
            "after": after[name][1],
            "relative_loss": _share_lost(value, after[name][1]),
        }
        for name, (metric, value) in before.items()
    }
    losses = [loss for table in tables.values() if (loss := table["relative_loss"]) is not None]
    return {
        "tables": tables,
        "mean_relative_loss": sum(losses) / len(losses) if losses else None,
        "worst_relative_loss": max(losses, default=None),
    }


class Loss(NamedTuple):
    """What a model lost of what its base could do, as a share of that.

    Attributes:
        value: It; below 0 for a gain.
        error: Its standard error, as the rows are few.
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
    could = float(value(before))
    lost = _share_lost(could, float(value(after)))
    return None if lost is None else Loss(lost, paired_difference(before, after).error / could)


def _share_lost(before: float, after: float) -> float | None:
    """None where there is nothing to lose."""
    return (before - after) / before if before > 0 else None


def compare(before: Measurement, after: Measurement) -> dict[str, Any]:
    """What `metrics.json` says of an adapted model beside its base.

    Returns:
        `drift`, see `finetune.evaluation.drift.drift`, and where tables stand for elsewhere `retention`, see
        `compare_elsewhere`;
        there each table has also `difference`, that of its metric with its interval, or None where it can have none.
    """
    found: dict[str, Any] = {"drift": drift(before.probe, after.probe)}
    if before.elsewhere:
        mains = [{name: table.main for name, table in each.elsewhere.items()} for each in (before, after)]
        found["retention"] = compare_elsewhere(*mains)
        for name, table in found["retention"]["tables"].items():
            base, adapted = before.elsewhere[name], after.elsewhere[name]
            table["difference"] = _difference(base.headline, base, adapted)
    return found

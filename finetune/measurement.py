"""Everything that is measured of one model, and what two measurements say of each other."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from finetune.data.datamodule import ImageTextDataModule
from finetune.drift import drift, vocabulary_scores
from finetune.evaluation import Evaluation, evaluate, find_device
from finetune.metrics import paired_difference
from finetune.task import AlignTask


class Measurement(NamedTuple):
    """One model on the user's test rows, elsewhere, and in words that are not the user's.

    Attributes:
        evaluation: The test rows.
        elsewhere: Of each table of `data.retention`, by its name, the key and value of its main metric.
        vocabulary: See `finetune.drift.vocabulary_scores`.
        temperature: What the model divides its similarities by.
    """

    evaluation: Evaluation
    elsewhere: dict[str, tuple[str, float]]
    vocabulary: Tensor
    temperature: float


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
    elsewhere = {name: main_value(accelerator, task, other) for name, other in data.retention.items()}
    vocabulary = vocabulary_scores(task.to(find_device(accelerator)), data)
    return Measurement(evaluation, elsewhere, vocabulary, task.towers.temperature.item())


def main_value(accelerator: str, task: AlignTask, data: ImageTextDataModule) -> tuple[str, float]:
    """Key and value of a table's main metric on its test rows.

    Args:
        accelerator: As for Lightning's `Trainer`.
        task: The model.
        data: The table.
    """
    evaluation = evaluate(accelerator, task, data)
    return evaluation.headline, evaluation.metrics[evaluation.headline]


def compare_evaluations(before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """The difference of each metric that is a mean over queries, with its interval.

    Args:
        before: One model on the test rows.
        after: Another one on the same rows.

    Returns:
        By metric: `value`, `low`, `high` and `verdict`, see `finetune.metrics.paired_difference`.
    """
    found = {name: paired_difference(values, after.hits[name]) for name, values in before.hits.items()}
    return {name: {**difference._asdict(), "verdict": difference.verdict} for name, difference in found.items()}


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
            "relative_loss": (value - after[name][1]) / value if value else None,
        }
        for name, (metric, value) in before.items()
    }
    losses = [loss for table in tables.values() if (loss := table["relative_loss"]) is not None]
    return {
        "tables": tables,
        "mean_relative_loss": sum(losses) / len(losses) if losses else None,
        "worst_relative_loss": max(losses, default=None),
    }


def compare(before: Measurement, after: Measurement) -> dict[str, Any]:
    """What `metrics.json` says of an adapted model beside its base.

    Returns:
        `retention` where tables stand for elsewhere, see `compare_elsewhere`, and `drift`, see `finetune.drift.drift`.
    """
    found: dict[str, Any] = {"drift": drift(before.vocabulary, after.vocabulary, before.temperature)}
    if before.elsewhere:
        found["retention"] = compare_elsewhere(before.elsewhere, after.elsewhere)
    return found

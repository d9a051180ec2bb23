"""The charts of a run: how training went, what each interpolation gives, how well confidence matches accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from finetune.core.interpolation import name_interpolation
from finetune.report.charts import Axis, Chart, Series, draw_chart
from finetune.report.facts import Facts
from finetune.run.results import list_tried

MOST_POINTS = 200
"""Points of a line; where more were logged, the line shows means of neighbours."""
FEW_POINTS = 12
"""Up to this number of points, as of a validation's epochs, a line marks each one."""


def draw_training(facts: Facts) -> list[Chart]:
    """Loss, validation metric, temperature, learning rate, and whatever else was logged in training.

    Args:
        facts: A run.
    """
    logged = facts.logged.replace([np.inf, -np.inf], np.nan)  # a loss that diverged is not drawn
    metric = f"val/{_main_metric(facts.metrics)}"
    names = [str(name) for name in logged]
    rates = _distinct(logged, [name for name in names if name.startswith("lr")])
    own = [name for name in names if name.startswith("train/") and name not in ("train/loss", "train/temperature")]
    charts = [
        _draw_steps("Loss", logged, ["train/loss", "val/loss"], Axis("loss")),
        _draw_steps("Validation", logged, [metric], Axis(metric.removeprefix("val/"), is_share=True)),
        _draw_steps("Temperature", logged, ["train/temperature"], Axis("temperature")),
        _draw_steps("Learning rate", logged, rates, Axis("learning rate", low=0.0)),
        *(_draw_steps(name, logged, [name], Axis(name)) for name in own),
    ]
    return [chart for chart in charts if chart is not None]


def _main_metric(metrics: dict[str, Any]) -> str:
    names = [key.removeprefix("test/") for key in metrics["after"]]
    return next((name for name in ("accuracy", "mean_R@K") if name in names), names[0])


def _distinct(logged: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns that differ from those before them: groups of parameters often share one learning rate."""
    kept: list[str] = []
    for name in names:
        if not any(logged[name].equals(logged[other]) for other in kept):
            kept.append(name)
    return kept


def _draw_steps(title: str, logged: pd.DataFrame, names: Sequence[str], axis: Axis) -> Chart | None:
    """Columns over the steps of training; None where none of them was logged."""
    lines, most = [], 1
    for name in names:
        if name not in logged:
            continue
        values = logged[["step", name]].dropna()
        together = -(-len(values) // MOST_POINTS)
        means = values.groupby(pd.RangeIndex(len(values)) // max(together, 1)).mean()
        if len(means):
            points = list(means.itertuples(index=False, name=None))
            lines.append(Series(name, points, [3.0] * len(points) if len(points) <= FEW_POINTS else None))
            most = max(most, together)
    note = f"Each point is the mean of {most} logged values." if most > 1 else ""
    return draw_chart(title, lines, Axis("step", low=0.0), axis, note) if lines else None


def draw_interpolation(interpolation: dict[str, Any]) -> Chart:
    """The target metric and the retention loss where both towers are alike, and the chosen point where it is there.

    Args:
        interpolation: `interpolation` of `metrics.json`, with its `curve`.
    """
    curve, chosen, limit = (interpolation[key] for key in ("curve", "chosen", "max_retention_loss"))
    lines = []
    for name, key in (("target", "target"), ("retention loss", "retention_loss")):
        points = [(point["interpolation"], point[key]) for point in curve if point[key] is not None]
        if points:
            lines.append(Series(name, points, [3.0] * len(points)))
    values = [y for line in lines for _, y in line.points]
    if not isinstance(chosen, dict):
        ends = [(chosen, min(0.0, *values)), (chosen, max(values))]
        lines.append(Series(f"chosen: {name_interpolation(chosen)}", ends, is_reference=True))
    if limit is not None:
        name = f"retention loss limit: {100 * limit:g} %"
        lines.append(Series(name, [(0.0, limit), (1.0, limit)], is_reference=True))
    return draw_chart("Interpolation", lines, Axis("interpolation"), Axis("share", is_share=True))


def draw_profiles(interpolation: dict[str, Any]) -> Chart:
    """The target metric over the retention loss of all that was tried, and the one that was chosen.

    Args:
        interpolation: `interpolation` of `metrics.json`, with its `profiles`.
    """
    tried, limit = list_tried(interpolation), interpolation["max_retention_loss"]
    alike, profiles = (
        [(point["retention_loss"], point["target"]) for point in interpolation[key]] for key in ("curve", "profiles")
    )
    chosen = next(point for point in tried if point["interpolation"] == interpolation["chosen"])
    targets = [point["target"] for point in tried]
    lines = [  # what comes later lies on top
        Series(
            f"chosen: {name_interpolation(chosen['interpolation'])}",
            [(chosen["retention_loss"], chosen["target"])],
            [7.0],
            is_reference=True,
        ),
        Series("both towers alike, from the base to what was trained", alike, [3.0] * len(alike)),
        Series("profiles", profiles, [2.0] * len(profiles), is_joined=False),
        Series(
            f"retention loss limit: {100 * limit:g} %",
            [(limit, min(targets)), (limit, max(targets))],
            is_reference=True,
        ),
    ]
    axes = Axis("retention loss", is_share=True), Axis("target", is_share=True)
    return draw_chart("Profiles", lines, *axes, "Further up and further left is better.")


def find_unbeaten(interpolation: dict[str, Any]) -> list[Mapping[str, Any]]:
    """The points than which no other one has a higher target and loses less, the smallest loss first.

    Args:
        interpolation: `interpolation` of `metrics.json`.
    """
    found: list[Mapping[str, Any]] = []
    for point in sorted(list_tried(interpolation), key=lambda point: (point["retention_loss"], -point["target"])):
        if not found or point["target"] > found[-1]["target"]:
            found.append(point)
    return found


def draw_reliability(calibration: dict[str, Any]) -> Chart:
    """Accuracy over confidence; the size of a circle shows the share of rows.

    Args:
        calibration: With `bins`: `confidence`, `accuracy` and `share` of each.
    """
    bins = [it for it in calibration["bins"] if it["share"]]
    share = Axis("accuracy", is_share=True, low=0.0, high=1.0)
    lines = [
        Series("perfect calibration", [(0.0, 0.0), (1.0, 1.0)], is_reference=True),
        Series(
            "this model",
            [(it["confidence"], it["accuracy"]) for it in bins],
            [2.0 + 10.0 * it["share"] ** 0.5 for it in bins],
        ),
    ]
    return draw_chart("Reliability", lines, share._replace(title="confidence"), share)

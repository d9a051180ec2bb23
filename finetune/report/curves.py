"""The charts of a run: how training went, what each share of the adaptation gives, how far a score can be trusted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from finetune.report.charts import Axis, Chart, Line, draw_chart
from finetune.report.facts import Facts

MOST_POINTS = 200
"""Points of a line; of more, neighbours are drawn as their mean."""
FEW_POINTS = 12
"""Points that are marked one by one, as the epochs of a validation."""


def draw_training(facts: Facts) -> list[Chart]:
    """Loss, the validation metric, the temperature, the learning rate where it was logged, and whatever else was.

    Args:
        facts: A run.
    """
    logged = facts.logged.replace([np.inf, -np.inf], np.nan)  # a loss that left all bounds is not drawn
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
    """Columns over the steps of training; None where nothing of them was logged."""
    lines, most = [], 1
    for name in names:
        if name not in logged:
            continue
        values = logged[["step", name]].dropna()
        together = -(-len(values) // MOST_POINTS)
        means = values.groupby(pd.RangeIndex(len(values)) // max(together, 1)).mean()
        if len(means):
            points = list(means.itertuples(index=False, name=None))
            lines.append(Line(name, points, [3.0] * len(points) if len(points) <= FEW_POINTS else None))
            most = max(most, together)
    note = f"Each point is the mean of {most} logged values." if most > 1 else ""
    return draw_chart(title, lines, Axis("step", low=0.0), axis, note) if lines else None


def draw_alpha(alpha: dict[str, Any]) -> Chart:
    """What the target and elsewhere make of each alpha, and the one that was chosen.

    Args:
        alpha: `chosen`, `max_retention_loss`, and `curve` with `alpha`, `target` and `retention_loss` of each.
    """
    lines = []
    for name, key in (("target", "target"), ("loss elsewhere", "retention_loss")):
        points = [(point["alpha"], point[key]) for point in alpha["curve"] if point[key] is not None]
        if points:
            lines.append(Line(name, points, [3.0] * len(points)))
    values = [y for line in lines for _, y in line.points]
    chosen = alpha["chosen"]
    lines.append(Line(f"chosen: {chosen:g}", [(chosen, min(0.0, *values)), (chosen, max(values))], is_reference=True))
    if (most := alpha["max_retention_loss"]) is not None:
        low, high = (limit(point["alpha"] for point in alpha["curve"]) for limit in (min, max))
        lines.append(Line(f"largest loss allowed: {100 * most:g} %", [(low, most), (high, most)], is_reference=True))
    return draw_chart("Alpha", lines, Axis("alpha"), Axis("share", is_share=True))


def draw_reliability(calibration: dict[str, Any]) -> Chart:
    """How often the model is right where it is so and so sure; the size of a circle is the share of rows.

    Args:
        calibration: With `bins`: `confidence`, `accuracy` and `share` of each.
    """
    bins = [it for it in calibration["bins"] if it["share"]]
    share = Axis("accuracy", is_share=True, low=0.0, high=1.0)
    lines = [
        Line("perfect", [(0.0, 0.0), (1.0, 1.0)], is_reference=True),
        Line(
            "this model",
            [(it["confidence"], it["accuracy"]) for it in bins],
            [2.0 + 10.0 * it["share"] ** 0.5 for it in bins],
        ),
    ]
    return draw_chart("Reliability", lines, share._replace(title="confidence"), share)

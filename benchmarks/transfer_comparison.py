"""The recipes beside each other method: differences on the target by task, their mean over tasks, and elsewhere."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import t
from transfer_measure import main_figure
from transfer_methods.method import Method
from transfer_results import Cell, Results
from transfer_table import markdown
from transfer_tasks import Task

OURS = ("retrieval-lora", "classify-head")
"""The recipe for captions and the one for labels."""


class Difference(NamedTuple):
    """A mean difference, ours less theirs.

    Attributes:
        mean: It, above 0 where ours is higher.
        variance: Variance of the mean; 0 where nothing tells it.
        freedom: Degrees of freedom of the variance; 0 where nothing tells it.
    """

    mean: float
    variance: float
    freedom: float

    @property
    def half_width(self) -> float:
        """Of Student's 95 % interval; NaN where nothing tells the variance."""
        return float(t.ppf(0.975, self.freedom)) * math.sqrt(self.variance) if self.freedom else math.nan


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """The mean over the seeds that both have, paired, as a seed draws the same rows for both.

    A method of one seed draws nothing; its figure stands for each seed.

    Args:
        ours: Figure by seed.
        theirs: Figure by seed.

    Example:
        >>> difference({0: 0.5, 1: 0.7}, {0: 0.4})
        Difference(mean=0.2, variance=0.01, freedom=1)
    """
    if len(theirs) == 1:
        (only,) = theirs.values()
        theirs = dict.fromkeys(ours, only)
    found = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    variance = statistics.variance(found) / len(found) if len(found) > 1 else 0.0
    return Difference(round(statistics.mean(found), 9), round(variance, 12), len(found) - 1)


def mean_difference(found: Sequence[Difference]) -> Difference:
    """The mean over tasks, these tasks being all there are: its variance is that of the seeds alone.

    Degrees of freedom are Welch's and Satterthwaite's (Satterthwaite 1946, Biometrics Bulletin 2).

    Args:
        found: Differences by task.

    Example:
        >>> mean_difference([Difference(0.2, 0.01, 2), Difference(0.0, 0.01, 2)])
        Difference(mean=0.1, variance=0.005, freedom=4.0)
    """
    total = sum(each.variance for each in found)
    known = [each for each in found if each.variance]
    freedom = total**2 / sum(each.variance**2 / each.freedom for each in known) if known else 0.0
    return Difference(statistics.mean(each.mean for each in found), total / len(found) ** 2, freedom)


def format_comparison(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """A line for each other method: by task, and the means over the tasks it was run in.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order, ours among them.
    """
    own = [method for method in methods if method.name in OURS]
    lines = []
    for other in methods:
        if other in own or other.title.startswith("ours") or other.name == "zero-shot":
            continue
        targets: dict[str, Difference] = {}
        elsewhere = []
        for task in tasks:
            ours = next((method for method in own if method.handles(task)), None)
            if ours is None or not other.handles(task):
                continue
            mine, theirs = _figures(results, task, ours), _figures(results, task, other)
            if not mine["target"] or not theirs["target"]:
                continue
            targets[task.name] = difference(mine["target"], theirs["target"])
            elsewhere.append(difference(mine["elsewhere"], theirs["elsewhere"]))
        if targets:
            cells = [_points(targets[task.name]) if task.name in targets else "-" for task in tasks]
            means = [_points(mean_difference(each)) for each in ([*targets.values()], elsewhere)]
            lines.append([other.title, *cells, *means])
    return markdown(("ours less", *(task.name for task in tasks), "mean", "elsewhere"), 1, lines)


def _figures(results: Results, task: Task, method: Method) -> dict[str, dict[int, float]]:
    """The target's figure and the mean of those elsewhere, by seed."""
    setting = results.choose(task, method).setting
    records = {seed: results.read(Cell(task, method, setting, seed)) for seed in range(method.seeds(task))}
    found: dict[str, dict[int, float]] = {"target": {}, "elsewhere": {}}
    for seed, record in records.items():
        if record is not None:
            found["target"][seed] = main_figure(record["metrics"]["target"])
            found["elsewhere"][seed] = _mean_elsewhere(record["metrics"], task)
    return found


def _mean_elsewhere(metrics: Mapping[str, Any], task: Task) -> float:
    return statistics.mean(main_figure(metrics[name]) for name in task.elsewhere())


def _points(found: Difference) -> str:
    half = "" if math.isnan(found.half_width) else f" ± {100 * found.half_width:.1f}"
    return f"{100 * found.mean:+.1f}{half}"

"""The recipes beside each other method: differences on the target by task, their mean over tasks, and elsewhere."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transfer_means import Mean, mean_of, mean_of_means
from transfer_methods.method import Method
from transfer_results import Results
from transfer_table import figures, markdown
from transfer_tasks import Task

OURS = ("retrieval-lora", "classify-head")
"""The recipe for captions and the one for labels."""


class BySeed(NamedTuple):
    """Figures of a method in a task, by seed.

    Attributes:
        target: On the target.
        elsewhere: Mean over the places elsewhere.
    """

    target: dict[int, float]
    elsewhere: dict[int, float]


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Mean:
    """The mean of ours less theirs over the seeds that both have, paired, as a seed draws the same rows for both.

    A method of one seed draws nothing; its figure stands for each seed.

    Args:
        ours: Figure by seed.
        theirs: Figure by seed.

    Example:
        >>> difference({0: 0.5, 1: 0.75}, {0: 0.25})
        Mean(mean=0.375, variance=0.015625, freedom=1)
    """
    if len(theirs) == 1:
        (only,) = theirs.values()
        theirs = dict.fromkeys(ours, only)
    return mean_of([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def format_comparison(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """A line for each other method: by task, and the means over the tasks it was run in.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order, ours among them.
    """
    own = [method for method in methods if method.name in OURS]
    ours = {task.name: _figures(results, task, method) for task in tasks for method in own if method.handles(task)}
    lines = []
    for other in methods:
        if other.title.startswith("ours") or other.name == "zero-shot":
            continue
        targets: dict[str, Mean] = {}
        elsewhere = []
        for task in tasks:
            if task.name not in ours or not other.handles(task):
                continue
            mine, theirs = ours[task.name], _figures(results, task, other)
            if mine.target and theirs.target:
                targets[task.name] = difference(mine.target, theirs.target)
                elsewhere.append(difference(mine.elsewhere, theirs.elsewhere))
        if targets:
            cells = [targets[task.name].describe("+") if task.name in targets else "-" for task in tasks]
            means = [mean_of_means(each).describe("+") for each in ([*targets.values()], elsewhere)]
            lines.append([other.title, *cells, *means])
    return markdown(("ours less", *(task.name for task in tasks), "mean", "elsewhere"), 1, lines)


def _figures(results: Results, task: Task, method: Method) -> BySeed:
    records = results.repeats(task, method, results.choose(task, method).setting)
    places = {seed: figures(record) for seed, record in records.items()}
    return BySeed(
        target={seed: found["target"] for seed, found in places.items()},
        elsewhere={seed: statistics.mean(found[name] for name in task.elsewhere()) for seed, found in places.items()},
    )

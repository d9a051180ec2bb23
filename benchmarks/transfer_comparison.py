"""The recipes beside each other method: differences on the target by task, their mean over tasks, and elsewhere."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transfer_means import Mean, mean_of, mean_of_means
from transfer_methods.method import Method, Setting
from transfer_results import Results
from transfer_table import figures, markdown
from transfer_tasks import Task

OURS = ("retrieval-lora", "classify-head", "few-shot")
"""The recipe for captions, the one for labels, and in its place the one for few of them."""


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

    Args:
        ours: Figure by seed.
        theirs: Figure by seed.

    Example:
        >>> difference({0: 0.5, 1: 0.75, 2: 0.1}, {0: 0.25, 1: 0.25})
        Mean(mean=0.375, variance=0.015625, freedom=1)
    """
    return mean_of([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


class Compared(NamedTuple):
    """Ours less another method in one task.

    Attributes:
        theirs: The other's mean on the target.
        target: The difference there.
        elsewhere: The difference elsewhere.
    """

    theirs: float
    target: Mean
    elsewhere: Mean


def format_comparison(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """A line for each other method: by task, and the means over the tasks it was run in.

    Ours are the recipes as shipped in each task, the others at the setting that suits the task's validation rows best.
    The last line takes the other method with the highest mean on the target in each task. That it was picked after
    the fact is to its advantage.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order, ours among them.
    """
    own = [method for method in methods if method.name in OURS]
    ours = {
        task.name: _figures(results, task, method, method.trials[0])
        for task in tasks
        for method in own
        if method.handles(task)
    }
    others = [method for method in methods if not method.title.startswith("ours") and method.name != "zero-shot"]
    lines = {other.title: _compare(results, tasks, ours, other) for other in others}
    best: dict[str, Compared] = {}
    for found in lines.values():
        for name, compared in found.items():
            best[name] = max(best.get(name, compared), compared, key=lambda each: each.theirs)
    lines["the best of these in each task"] = best
    header = ("ours less", *(task.name for task in tasks), "mean", "elsewhere")
    return markdown(header, 1, [_line(title, tasks, found) for title, found in lines.items() if found])


def _compare(results: Results, tasks: Sequence[Task], ours: Mapping[str, BySeed], other: Method) -> dict[str, Compared]:
    """By the task's name, where both were run."""
    found = {}
    for task in tasks:
        if task.name not in ours or not other.handles(task):
            continue
        mine, theirs = ours[task.name], _figures(results, task, other, results.choose(task, other).setting)
        if mine.target.keys() & theirs.target.keys():
            found[task.name] = Compared(
                theirs=statistics.mean(theirs.target.values()),
                target=difference(mine.target, theirs.target),
                elsewhere=difference(mine.elsewhere, theirs.elsewhere),
            )
    return found


def _line(title: str, tasks: Sequence[Task], found: Mapping[str, Compared]) -> list[str]:
    cells = [found[task.name].target.describe("+") if task.name in found else "-" for task in tasks]
    target = mean_of_means([compared.target for compared in found.values()])
    elsewhere = mean_of_means([compared.elsewhere for compared in found.values()])
    return [title, *cells, target.describe("+"), elsewhere.describe("+")]


def _figures(results: Results, task: Task, method: Method, setting: Setting) -> BySeed:
    """The figures of a method; what a method that draws nothing found, each seed would."""
    records = results.repeats(task, method, setting)
    if method.seeds(task) == 1 and records:
        records = dict.fromkeys(range(task.seeds), records[0])
    places = {seed: figures(record) for seed, record in records.items()}
    return BySeed(
        target={seed: found["target"] for seed, found in places.items()},
        elsewhere={seed: statistics.mean(found[name] for name in task.elsewhere()) for seed, found in places.items()},
    )

"""The recipes minus each other method: by task on the target, and on average on the target and on other domains."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from transfer_left_out import CAPTIONS, LABELS, OURS, chosen_on_others
from transfer_means import Mean, mean_of, mean_of_means
from transfer_methods.method import Method, Setting
from transfer_methods.toolkit import Toolkit
from transfer_results import Results
from transfer_table import figures, markdown
from transfer_tasks import Task


class BySeed(NamedTuple):
    """Figures of a method in a task, by seed.

    Attributes:
        target: The figure on the target.
        retention: The mean over the other domains.
    """

    target: dict[int, float]
    retention: dict[int, float]


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Mean:
    """Takes the mean of ours minus theirs over the seeds that both have; a seed draws the same rows for both.

    Args:
        ours: Figure by seed.
        theirs: Figure by seed.

    Example:
        >>> difference({0: 0.5, 1: 0.75, 2: 0.1}, {0: 0.25, 1: 0.25})
        Mean(mean=0.375, variance=0.015625, freedom=1)
    """
    return mean_of([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


class Compared(NamedTuple):
    """Ours minus another method in one task.

    Attributes:
        theirs: The other's mean on the target.
        target: The difference on the target.
        retention: The difference on other domains.
    """

    theirs: float
    target: Mean
    retention: Mean


def format_comparison(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """Prints a line for each other method: by task, and the means over the tasks in which it was run.

    Ours are the recipes as shipped, the others have the setting that suits the task's validation rows best. The last
    lines take the other method with the highest target in each task, picked after the fact, which is to its advantage.
    In the second of them ours is the variant of the recipe that the other tasks would choose, in the third one recipe
    stands for all tables of labels.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order, ours and their variants among them.
    """
    own = {task.name: method for task, method in _pairs(tasks, methods) if method.name in OURS}
    alone = {task.name: method for task, method in _pairs(tasks, methods) if method.name in (CAPTIONS, LABELS)}
    chosen = {
        task.name: chosen_on_others(results, tasks, methods, own[task.name], task) or own[task.name]
        for task in tasks
        if task.name in own
    }
    others = [method for method in methods if not isinstance(method, Toolkit) and method.name != "zero-shot"]

    def less_others(ours: Mapping[str, Method]) -> dict[str, dict[str, Compared]]:
        return {other.title: _compare(results, tasks, ours, other) for other in others}

    lines = less_others(own)
    lines["the best of these in each task"] = _best(lines)
    lines["the same, ours as the other tasks choose"] = _best(less_others(own | chosen))
    lines["the same, `classify_head` for few images too"] = _best(less_others(alone))
    header = ("ours less", *(task.name for task in tasks), "mean", "other domains")
    return markdown(header, 1, [_line(title, tasks, found) for title, found in lines.items() if found])


def _pairs(tasks: Sequence[Task], methods: Sequence[Method]) -> Iterator[tuple[Task, Method]]:
    """Pairs each task with each method that can learn it."""
    return ((task, method) for task, method in itertools.product(tasks, methods) if method.handles(task))


def _compare(results: Results, tasks: Sequence[Task], ours: Mapping[str, Method], other: Method) -> dict[str, Compared]:
    """Compares ours with another method in each task that has both, by the task's name."""
    found = {}
    for task in tasks:
        if task.name not in ours or not other.handles(task):
            continue
        mine = _figures(results, task, ours[task.name], {})
        theirs = _figures(results, task, other, results.choose(task, other).setting)
        if mine.target.keys() & theirs.target.keys():
            found[task.name] = Compared(
                theirs=statistics.mean(theirs.target.values()),
                target=difference(mine.target, theirs.target),
                retention=difference(mine.retention, theirs.retention),
            )
    return found


def _best(lines: Mapping[str, Mapping[str, Compared]]) -> dict[str, Compared]:
    """Takes the other method with the highest target in each task."""
    best: dict[str, Compared] = {}
    for name, compared in (item for found in lines.values() for item in found.items()):
        best[name] = max(best.get(name, compared), compared, key=lambda each: each.theirs)
    return best


def _line(title: str, tasks: Sequence[Task], found: Mapping[str, Compared]) -> list[str]:
    cells = [found[task.name].target.describe("+") if task.name in found else "-" for task in tasks]
    target = mean_of_means([compared.target for compared in found.values()])
    retention = mean_of_means([compared.retention for compared in found.values()])
    return [title, *cells, target.describe("+"), retention.describe("+")]


def _figures(results: Results, task: Task, method: Method, setting: Setting) -> BySeed:
    """Collects the figures of a method; each seed would find what a method that draws nothing found."""
    records = results.repeats(task, method, setting)
    if method.seeds(task) == 1 and records:
        records = dict.fromkeys(range(task.seeds), records[0])
    places = {seed: figures(record) for seed, record in records.items()}
    return BySeed(
        target={seed: found["target"] for seed, found in places.items()},
        retention={seed: statistics.mean(found[name] for name in task.retention()) for seed, found in places.items()},
    )

"""The recipes beside each other method: differences on the target by task, their mean over tasks, and elsewhere."""

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
    The last lines take the other method with the highest mean on the target in each task. That it was picked after the
    fact is to its advantage. In the second of them ours is the variant of the recipe that the other tasks would choose,
    in the third one recipe stands for all tables of labels.

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
    header = ("ours less", *(task.name for task in tasks), "mean", "elsewhere")
    return markdown(header, 1, [_line(title, tasks, found) for title, found in lines.items() if found])


def _pairs(tasks: Sequence[Task], methods: Sequence[Method]) -> Iterator[tuple[Task, Method]]:
    """Each task with each method that can learn it."""
    return ((task, method) for task, method in itertools.product(tasks, methods) if method.handles(task))


def _compare(results: Results, tasks: Sequence[Task], ours: Mapping[str, Method], other: Method) -> dict[str, Compared]:
    """By the task's name, where both were run."""
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
                elsewhere=difference(mine.elsewhere, theirs.elsewhere),
            )
    return found


def _best(lines: Mapping[str, Mapping[str, Compared]]) -> dict[str, Compared]:
    """By the task's name, the other method with the highest target there."""
    best: dict[str, Compared] = {}
    for name, compared in (item for found in lines.values() for item in found.items()):
        best[name] = max(best.get(name, compared), compared, key=lambda each: each.theirs)
    return best


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

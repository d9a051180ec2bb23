"""Base to new: classes that were learned beside classes that have only a name."""

from collections.abc import Sequence
from statistics import harmonic_mean

from transfer_methods.method import Method
from transfer_results import Results
from transfer_table import figures, format_interval, markdown
from transfer_tasks import Task

HEADER = ("task", "method", "seeds", "known classes", "new classes", "harmonic mean", "photographs")


def format_new(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """Prints a line for each task with new classes and each method that was run.

    Known classes compete among themselves, and so do new ones, which have only names (Zhou et al. 2022, arXiv
    2203.05557). The harmonic mean of both accuracies is taken within each seed.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order.
    """
    lines = []
    for task in tasks:
        for method in methods if task.new else ():
            if not method.handles(task):
                continue
            records = results.repeats(task, method, results.choose(task, method).setting).values()
            found = [figures(record) for record in records]
            if found:
                both = [harmonic_mean([places["target"], places["new"]]) for places in found]
                columns = [[places[name] for places in found] for name in ("target", "new")]
                columns += [both, [places["photographs"] for places in found]]
                lines.append([task.title, method.title, str(len(found)), *map(format_interval, columns)])
    return markdown(HEADER, 2, lines)

"""The results as Markdown tables: target and retention side by side, mean and 95 % interval over the seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transfer_means import mean_of
from transfer_measure import main_figure
from transfer_methods import METHODS
from transfer_methods.method import Method
from transfer_results import Cell, Results
from transfer_tasks import Task

HEADER = ("task", "method", "setting", "seeds", "target", "other vendor", "photographs", "other domains", "train s")


def format_table(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """Prints a line for each task and method that was run.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order.
    """
    lines = []
    for task in tasks:
        zero_shot = zero_shot_figures(results, task)
        found = [_line(results, task, method, zero_shot) for method in methods if method.handles(task)]
        lines += [line for line in found if line]
    return markdown(HEADER, 3, lines)


CALIBRATION = {
    "trained": "as trained",
    "fitted": "fitted",
    "by_accuracy": "by accuracy alone",
    "by_likelihood": "temperature scaling",
    "by_chance": "by chance",
}


def format_calibration(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """Prints the expected calibration error of each recipe as shipped, before and after fitting the temperature.

    The figures are means over the seeds that have all of them; the last line of a method is its mean over the tasks.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order.
    """
    lines = []
    for method in methods:
        by_task = []
        for task in tasks:
            found = [part for part in results.parts(task, method, "calibration") if part.keys() >= CALIBRATION.keys()]
            if found:
                by_task.append([statistics.mean(each[name] for each in found) for name in CALIBRATION])
                lines.append([task.title, method.title, str(len(found)), *_in_per_cent(by_task[-1])])
        if by_task:
            lines.append(["mean", method.title, "", *_in_per_cent(map(statistics.mean, zip(*by_task, strict=True)))])
    return markdown(("task", "method", "seeds", *CALIBRATION.values()), 2, lines)


def _in_per_cent(values: Iterable[float]) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def markdown(header: Sequence[str], words: int, lines: Sequence[Sequence[str]]) -> str:
    """Writes a table whose first columns hold words and the others numbers."""
    aligned = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, aligned, *lines))


def _line(results: Results, task: Task, method: Method, zero_shot: Mapping[str, float]) -> list[str]:
    setting, tried, budget = results.choose(task, method)
    records = [*results.repeats(task, method, setting).values()]
    if not records:
        return []
    places = [figures(record) for record in records]
    others = [name for name in places[0] if name in task.retention() and name in zero_shot]
    changes = [statistics.mean(place[name] - zero_shot[name] for name in others) for place in places if others]
    words = ", ".join(f"{key} {value:g}" for key, value in setting.items()) or "as shipped"
    words += f" ({tried} of {budget} tried)" if tried < budget else ""
    return [
        task.title,
        method.title,
        words if budget > 1 else "",
        str(len(records)),
        format_interval([place["target"] for place in places]),
        format_interval([place["shift"] for place in places if "shift" in place]),
        format_interval([place["photographs"] for place in places if "photographs" in place]),
        format_interval(changes, "+"),
        f"{statistics.median(record['train_seconds'] for record in records):.0f}",
    ]


def zero_shot_figures(results: Results, task: Task) -> dict[str, float]:
    """Reads the main figure of each place before anything is learned.

    Args:
        results: The cells.
        task: The task.
    """
    return figures(results.read(Cell(task, METHODS[0], METHODS[0].trials[0], 0)))


def figures(record: Mapping[str, Any] | None) -> dict[str, float]:
    """Reads the main figure of each place from a cell's record; none where the cell was not run.

    Args:
        record: The record.
    """
    return {name: main_figure(metrics) for name, metrics in record["metrics"].items()} if record else {}


def format_interval(values: Sequence[float], sign: str = "") -> str:
    """Writes the mean in per cent, and the half-width of Student's 95 % interval where there are several values.

    Args:
        values: One figure a seed.
        sign: "+" to show the sign of a change.

    Example:
        >>> format_interval([0.5, 0.52, 0.54]), format_interval([0.25]), format_interval([])
        ('52.0 ± 5.0', '25.0', '-')
    """
    return mean_of(values).describe(sign) if values else "-"

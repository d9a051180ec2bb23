"""What `--interpolation auto` chooses on the lines that were measured, what it keeps and what it costs."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from transfer_methods.method import Method
from transfer_results import Results
from transfer_table import markdown, zero_shot_figures
from transfer_tasks import Task

from finetune.core.interpolation import Interpolation, name_interpolation, parse_interpolation
from finetune.export.choose_interpolation import Point, choose_point
from finetune.metrics.statistics import standard_error

MAX_LOSS = 0.05
LOST = "lost on other domains"
HEADER = ("task", "method", "seeds", "interpolation", "gain kept", LOST, "largest", "at interpolation 1")
Where = float | Interpolation
Rule = Callable[[Sequence[Point], int], Where]
"""Chooses an interpolation from the points and the number of validation rows."""


class Chosen(NamedTuple):
    """One choice, judged on the half that did not make it.

    Attributes:
        interpolation: The choice.
        kept: The gain on the target as a share of that at interpolation 1; None where that is below two points.
        lost: The largest loss on another domain, below 0 where all domains gained.
        lost_at_1: The same at interpolation 1.
    """

    interpolation: Where
    kept: float | None
    lost: float
    lost_at_1: float


def as_shipped(points: Sequence[Point], rows: int) -> Where:
    """Chooses as `--interpolation auto` does: what loses least among those that are about as good as the best."""
    unsure = [point._replace(target_error=standard_error(point.target, rows)) for point in points]
    return choose_point(unsure, MAX_LOSS).interpolation


def surely(points: Sequence[Point], rows: int) -> Where:
    """Chooses in the same way, but a loss below its standard error counts as none."""
    small = [point._replace(retention_loss=0.0) if _may_be_none(point) else point for point in points]
    return as_shipped(small, rows)


def _may_be_none(point: Point) -> bool:
    return point.retention_loss <= min(point.retention_error, MAX_LOSS)


def best(points: Sequence[Point], rows: int) -> Where:  # noqa: ARG001
    """Chooses the best on the validation rows among those that lose little, of equal ones the one that loses least."""
    allowed = [point for point in points if point.retention_loss <= MAX_LOSS]
    return max(allowed, key=lambda point: (point.target, -point.retention_loss)).interpolation


def alike(rule: Rule) -> Rule:
    """Leaves out what weighs the towers differently before a rule chooses."""

    def choose(points: Sequence[Point], rows: int) -> Where:
        return rule([point for point in points if not isinstance(point.interpolation, Interpolation)], rows)

    return choose


RULES: Mapping[str, Rule] = {
    "as shipped: within a standard error of the best, what loses least": as_shipped,
    "the same, both towers alike": alike(as_shipped),
    "the same, a loss below its standard error counts as none": surely,
    "the same, a loss below its standard error counts as none, both towers alike": alike(surely),
    "the best on the validation rows": best,
    "the best, both towers alike": alike(best),
}


def choose_on_half(line: Mapping[str, Any], before: float, half: int, rule: Rule) -> Chosen:
    """Chooses by the validation rows and one half of the other domains; the target and the other half judge.

    Args:
        line: `line` of a cell's record.
        before: Zero-shot on the target.
        half: The half that chooses, 0 or 1.
        rule: How to choose.
    """
    at = {parse_interpolation(point["interpolation"]): point for point in line["points"]}

    def largest_loss(interpolation: Where, half: int) -> Mapping[str, float]:
        return max((halves[half] for halves in at[interpolation]["retention"].values()), key=lambda loss: loss["value"])

    losses = {each: largest_loss(each, half) for each in at}
    points = [Point(each, at[each]["val"], loss["value"], loss["error"]) for each, loss in losses.items()]
    chosen = rule(points, line["rows"])
    gain, whole = (at[each]["target"] - before for each in (chosen, 1.0))
    lost, lost_at_1 = (largest_loss(each, 1 - half)["value"] for each in (chosen, 1.0))
    return Chosen(chosen, gain / whole if whole >= 0.02 else None, lost, lost_at_1)


def format_lines(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """Prints a line for each task and recipe that was measured between base and trained: means over seeds and halves.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order.
    """
    lines = []
    for (task, method), found in _choices(results, tasks, methods, as_shipped).items():
        chosen = "; ".join(sorted({name_interpolation(choice.interpolation) for choice in found}))
        at_1 = f"{100 * statistics.mean(choice.lost_at_1 for choice in found):.1f} %"
        lines.append([task, method, str(len(found) // 2), chosen, *_kept_and_lost(found), at_1])
    return markdown(HEADER, 2, lines)


def format_rules(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """Prints what each rule makes of the same points, and how often it exceeds the bound on the half that judges.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order.
    """
    lines = []
    for title, rule in RULES.items():
        found = [choice for some in _choices(results, tasks, methods, rule).values() for choice in some]
        if found:
            beyond = sum(choice.lost > MAX_LOSS for choice in found)
            lines.append([title, *_kept_and_lost(found), f"{beyond} of {len(found)}"])
    return markdown(("interpolation", "gain kept", LOST, "largest", "beyond the bound"), 1, lines)


def _choices(
    results: Results, tasks: Sequence[Task], methods: Sequence[Method], rule: Rule
) -> dict[tuple[str, str], list[Chosen]]:
    """Lists the choices of each seed and half, by titles of task and method."""
    found = {}
    for task, method in itertools.product(tasks, methods):
        measured = results.parts(task, method, "line")
        if measured:
            before = zero_shot_figures(results, task)["target"]
            judged = [choose_on_half(line, before, half, rule) for line in measured for half in (0, 1)]
            found[task.title, method.title] = judged
    return found


def _kept_and_lost(found: Sequence[Chosen]) -> list[str]:
    """Formats the mean gain kept, the mean loss and the largest loss."""
    kept = [choice.kept for choice in found if choice.kept is not None]
    losses = [choice.lost for choice in found]
    return [
        f"{100 * statistics.mean(kept):.0f} %" if kept else "-",
        f"{100 * statistics.mean(losses):.1f} %",
        f"{100 * max(losses):.1f} %",
    ]

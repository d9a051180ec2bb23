"""What `--alpha auto` chooses on the lines that were measured, what it keeps and what it costs."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from transfer_methods.method import Method
from transfer_results import Results
from transfer_table import markdown, zero_shot_figures
from transfer_tasks import Task

from finetune.model.interpolate import Point, choose_alpha

MAX_LOSS = 0.05
HEADER = ("task", "method", "seeds", "alpha", "gain kept", "lost elsewhere", "largest", "at alpha 1")
Rule = Callable[[Sequence[Point], int], float]
"""From the points and the number of validation rows to an alpha."""


class Chosen(NamedTuple):
    """One choice, judged where it was not made.

    Attributes:
        alpha: It.
        kept: The gain on the target as a share of that at alpha 1; None where that is less than two points.
        lost: The largest loss of the places elsewhere, below 0 where each gained.
        lost_at_1: That at alpha 1.
    """

    alpha: float
    kept: float | None
    lost: float
    lost_at_1: float


def as_shipped(points: Sequence[Point], rows: int) -> float:  # noqa: ARG001
    """What `--alpha auto` does: the best on the validation rows, of those that lose little on the rows there are."""
    scores = {point.alpha: point[1:] for point in points}
    return choose_alpha(scores.__getitem__, scores, MAX_LOSS)[0]


def largest(points: Sequence[Point], rows: int) -> float:
    """The largest within a standard error of the best, of the same."""
    allowed = [point for point in points if point.retention_loss <= MAX_LOSS]
    highest = max(point.target for point in allowed)
    least = highest - math.sqrt(highest * (1 - highest) / rows)
    return max(point.alpha for point in allowed if point.target >= least)


def surely(rule: Rule) -> Rule:
    """A rule for which a standard error is on top of each loss."""

    def choose(points: Sequence[Point], rows: int) -> float:
        raised = [point._replace(retention_loss=point.retention_loss + point.retention_error) for point in points]
        return rule(raised, rows)

    return choose


RULES: Mapping[str, Rule] = {
    "the best on the validation rows, as shipped": as_shipped,
    "the best, with a standard error on top of the loss": surely(as_shipped),
    "the largest within a standard error of the best": largest,
    "the same, with a standard error on top of the loss": surely(largest),
}


def choose_on_half(line: Mapping[str, Any], before: float, half: int, rule: Rule) -> Chosen:
    """Chooses by the validation rows and one half of the pictures elsewhere, and judges by the target and the other.

    Args:
        line: Of a cell's record.
        before: Zero-shot on the target.
        half: Which half chooses, 0 or 1.
        rule: How.
    """
    at = {point["interpolation"]: point for point in line["points"]}

    def worst(alpha: float) -> dict[str, float]:
        places = [place[half] for place in at[alpha]["retention"].values()]
        return max(places, key=lambda place: place["value"])

    def lost(alpha: float) -> float:
        return max(float(place[1 - half]["value"]) for place in at[alpha]["retention"].values())

    points = [Point(alpha, at[alpha]["val"], worst(alpha)["value"], worst(alpha)["error"]) for alpha in at]
    alpha = rule(points, line["rows"])
    gain, whole = (at[each]["target"] - before for each in (alpha, 1.0))
    return Chosen(alpha, gain / whole if whole >= 0.02 else None, lost(alpha), lost(1.0))


def format_lines(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """A line for each task and recipe whose way to the base was measured: means over seeds and halves.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order.
    """
    lines = []
    for (task, method), found in _choices(results, tasks, methods, as_shipped).items():
        alphas = ", ".join(f"{alpha:g}" for alpha in sorted({each.alpha for each in found}))
        at_1 = f"{100 * statistics.mean(each.lost_at_1 for each in found):.1f} %"
        lines.append([task, method, str(len(found) // 2), alphas, *_kept_and_lost(found), at_1])
    return markdown(HEADER, 2, lines)


def format_rules(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """What each rule makes of the same points, over all of them, and how often it exceeds the bound where it is judged.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order.
    """
    lines = []
    for words, rule in RULES.items():
        found = [each for some in _choices(results, tasks, methods, rule).values() for each in some]
        if found:
            beyond = sum(each.lost > MAX_LOSS for each in found)
            lines.append([words, *_kept_and_lost(found), f"{beyond} of {len(found)}"])
    return markdown(("alpha", "gain kept", "lost elsewhere", "largest", "beyond the bound"), 1, lines)


def _choices(
    results: Results, tasks: Sequence[Task], methods: Sequence[Method], rule: Rule
) -> dict[tuple[str, str], list[Chosen]]:
    """By titles of task and method, the choices of each seed and half."""
    found = {}
    for task, method in itertools.product(tasks, methods):
        measured = results.parts(task, method, "line")
        if measured:
            before = zero_shot_figures(results, task)["target"]
            judged = [choose_on_half(line, before, half, rule) for line in measured for half in (0, 1)]
            found[task.title, method.title] = judged
    return found


def _kept_and_lost(found: Sequence[Chosen]) -> list[str]:
    """Mean gain kept, mean loss and the largest."""
    kept = [each.kept for each in found if each.kept is not None]
    losses = [each.lost for each in found]
    return [
        f"{100 * statistics.mean(kept):.0f} %" if kept else "-",
        f"{100 * statistics.mean(losses):.1f} %",
        f"{100 * max(losses):.1f} %",
    ]

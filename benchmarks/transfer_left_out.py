"""Which settings of a recipe the other tasks would have chosen: each task left out in turn."""

import statistics
from collections.abc import Sequence

from transfer_comparison import OURS
from transfer_methods.method import Method
from transfer_methods.toolkit import Toolkit
from transfer_results import Results
from transfer_table import figures, markdown
from transfer_tasks import Task


def format_left_out(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """For each recipe and task, the variant with the best validation rows on the other tasks, and its target there.

    The variants are the recipe as shipped and its others that were run in each of its tasks.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order, ours and their variants among them.
    """
    lines = []
    recipes = [method for method in methods if isinstance(method, Toolkit) and method.name in OURS]
    for shipped in recipes:
        own = [task for task in tasks if results.repeats(task, shipped, shipped.trials[0])]
        variants = [method for method in methods if isinstance(method, Toolkit) and method.recipe == shipped.recipe]
        run = [variant for variant in variants if all(results.repeats(task, variant, {}) for task in own)]
        for left_out in own:
            others = [task for task in own if task is not left_out]
            if others and len(run) > 1:
                best = max(run, key=lambda variant: _mean(results, others, variant, "val"))
                lines.append([left_out.title, shipped.title, best.title, *_targets(results, left_out, [best, shipped])])
    return markdown(("task left out", "recipe", "chosen on the others", "its target", "as shipped"), 3, lines)


def _targets(results: Results, task: Task, methods: Sequence[Method]) -> list[str]:
    return [f"{100 * _mean(results, [task], method, 'target'):.1f}" for method in methods]


def _mean(results: Results, tasks: Sequence[Task], method: Method, place: str) -> float:
    """Mean over tasks of the mean over seeds."""
    return statistics.mean(
        statistics.mean(figures(record)[place] for record in results.repeats(task, method, {}).values())
        for task in tasks
    )

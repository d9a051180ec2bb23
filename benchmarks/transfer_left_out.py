"""Which variant of a recipe the other tasks would have chosen, leaving out each task in turn."""

import statistics
from collections.abc import Sequence

from transfer_methods.method import Method
from transfer_methods.toolkit import Toolkit
from transfer_results import Results
from transfer_table import figures, markdown
from transfer_tasks import Task

CAPTIONS, LABELS, FEW_LABELS = "retrieval-lora", "classify-head", "few-shot"
OURS = (CAPTIONS, LABELS, FEW_LABELS)
"""The recipes for captions, for labels, and for few labels."""


def format_left_out(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """Prints, for each recipe and task, the variant that the other tasks choose, and its target on the task.

    Args:
        results: The cells.
        tasks: Tasks in order.
        methods: Methods in order, ours and their variants among them.
    """
    lines = []
    for shipped in methods:
        for task in tasks if shipped.name in OURS else ():
            best = chosen_on_others(results, tasks, methods, shipped, task)
            if best is not None:
                lines.append([task.title, shipped.title, best.title, *_targets(results, task, [best, shipped])])
    return markdown(("task left out", "recipe", "chosen on the others", "its target", "as shipped"), 3, lines)


def chosen_on_others(
    results: Results, tasks: Sequence[Task], methods: Sequence[Method], shipped: Method, left_out: Task
) -> Method | None:
    """Chooses the variant of a recipe with the best validation rows on all tasks but one.

    Args:
        results: The cells.
        tasks: Tasks.
        methods: Methods; the recipe itself and the variants that were run in each of its tasks are candidates.
        shipped: The recipe as it is shipped.
        left_out: The task that has no say.

    Returns:
        The variant; None where the recipe was not run in the task, or there is nothing to choose from.
    """
    assert isinstance(shipped, Toolkit)
    own = [task for task in tasks if results.repeats(task, shipped, {})]
    variants = [method for method in methods if isinstance(method, Toolkit) and method.recipe == shipped.recipe]
    run = [variant for variant in variants if all(results.repeats(task, variant, {}) for task in own)]
    others = [task for task in own if task is not left_out]
    if left_out not in own or not others or len(run) < 2:
        return None
    return max(run, key=lambda variant: _mean(results, others, variant, "val"))


def _targets(results: Results, task: Task, methods: Sequence[Method]) -> list[str]:
    return [f"{100 * _mean(results, [task], method, 'target'):.1f}" for method in methods]


def _mean(results: Results, tasks: Sequence[Task], method: Method, place: str) -> float:
    """Takes the mean over tasks of the mean over seeds."""
    return statistics.mean(
        statistics.mean(figures(record)[place] for record in results.repeats(task, method, {}).values())
        for task in tasks
    )

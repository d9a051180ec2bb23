"""Which settings of a recipe the other tasks would have chosen: each task left out in turn."""

import statistics
from collections.abc import Sequence

from transfer_methods.method import Method
from transfer_methods.toolkit import Toolkit
from transfer_results import Results
from transfer_table import figures, markdown
from transfer_tasks import Task

CAPTIONS, LABELS, FEW_LABELS = "retrieval-lora", "classify-head", "few-shot"
OURS = (CAPTIONS, LABELS, FEW_LABELS)
"""The recipe for captions, the one for labels, and in its place the one for few of them."""


def format_left_out(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> str:
    """For each recipe and task, the variant with the best validation rows on the other tasks, and its target there.

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
    """The variant of a recipe with the best validation rows on all tasks but one, the recipe itself among them.

    Args:
        results: The cells.
        tasks: Tasks.
        methods: Methods; variants count that were run in each task of the recipe.
        shipped: The recipe as it is shipped.
        left_out: The task that has no say.

    Returns:
        It; None where the recipe was not run in the task, or there is nothing to choose from.
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
    """Mean over tasks of the mean over seeds."""
    return statistics.mean(
        statistics.mean(figures(record)[place] for record in results.repeats(task, method, {}).values())
        for task in tasks
    )

"""What align-mini learns of a task and what it forgets: the toolkit beside what a user would run instead.

    finetune prepare digits && finetune prepare emoji && finetune prepare stamps
    python benchmarks/transfer.py            # runs each cell that is not there yet; all of them take hours on 2 cores
    python benchmarks/transfer.py --quick    # two tasks, one seed, little training: ten minutes, kept apart
    python benchmarks/transfer.py --table    # prints what is there, runs nothing

A cell is one task, method, setting and seed. Its figures are a line of `benchmarks/results/transfer/TASK.jsonl`, with
the settings that led to them. When a setting changes, its cells are run anew and the others stay. If the code of a
method changes but not its settings, give them a new `version`. If a table is prepared in another way, delete its file.

A recipe runs as it is shipped. Each other method may try the same number of settings on the validation rows of the
first seed; the best is repeated with the other seeds. The benchmark tests mechanisms, on small tables and on a small
stand-in for ALIGN.
"""

import argparse
import dataclasses
import itertools
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transfer_comparison import format_comparison
from transfer_data import task_data
from transfer_interpolation import format_lines, format_rules
from transfer_left_out import format_left_out
from transfer_line import measure_calibration, measure_line
from transfer_measure import measure
from transfer_methods import METHODS
from transfer_methods.method import Method
from transfer_methods.toolkit import Toolkit
from transfer_new import format_new
from transfer_results import Cell, Results, deciders, trials
from transfer_table import format_calibration, format_table, zero_shot_figures
from transfer_tasks import TASKS, Task
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).parent
QUICK_TASKS = {"digits-4": 8, "names-google": 1}  # epochs
QUICK_METHODS = (
    *("zero-shot", "logistic-regression", "tip-adapter-f", "tuned", "clip-lora"),
    *("retrieval-lora", "classify-prompts", "few-shot"),
)


def run_cell(cell: Cell, results: Results, data: Path) -> None:
    """Learns, measures and keeps one cell.

    Args:
        cell: The cell.
        results: The results to add it to.
        data: The folder of data.
    """
    rows = task_data(cell.task, data, cell.seed)
    start = time.perf_counter()
    trained = cell.method.learn(rows, cell.setting, cell.seed)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"metrics": measure(trained, rows)}
    if trained.at is not None and cell.seed == 0:
        found["line"] = measure_line(trained.at, rows)
    if trained.at is not None and rows.train.classes:
        found["calibration"] = measure_calibration(trained, rows)
    results.write(cell, found, seconds)


def missing_cells(results: Results, tasks: Sequence[Task], methods: Sequence[Method]) -> Iterator[Cell]:
    """Yields the cells to run, in order; the setting to repeat is chosen once its trials have run.

    Args:
        results: The cells that are there already.
        tasks: Tasks in order.
        methods: Methods in order.
    """
    for task, method in itertools.product(tasks, methods):
        if not method.handles(task):
            continue
        tried = trials(task, method) if deciders(task, method) == (task, method) else []
        yield from (cell for cell in tried if results.read(cell) is None)
        setting = results.choose(task, method).setting
        repeated = [Cell(task, method, setting, seed) for seed in range(method.seeds(task))]
        yield from (cell for cell in repeated if cell not in tried and results.read(cell) is None)


def quick_tasks() -> list[Task]:
    """Builds the tasks of `--quick`: fewer epochs, one setting."""
    chosen = [task for task in TASKS if task.name in QUICK_TASKS]
    return [dataclasses.replace(task, epochs=QUICK_TASKS[task.name], trials=1) for task in chosen]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the results there are as Markdown, run nothing")
    parser.add_argument("--quick", action="store_true", help="a check of all parts in ten minutes, kept in data/")
    parser.add_argument("--list", action="store_true", help="name the cells that are missing, run nothing")
    parser.add_argument("--task", nargs="+", default=[task.name for task in TASKS], help="tasks (all)")
    parser.add_argument("--method", nargs="+", default=[method.name for method in METHODS], help="methods (all)")
    parser.add_argument("--trials", type=int, help="settings each method may try (as the task says)")
    parser.add_argument("--seeds", type=int, help="most seeds of a method (as the task says)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the prepared data (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "transfer", help="folder (%(default)s)")
    return parser


def quieten() -> None:
    """Silences progress bars and the libraries' remarks."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def main() -> None:
    options = build_parser().parse_args()
    quieten()
    torch.set_num_threads(options.threads)
    tasks = [task for task in TASKS if task.name in options.task]
    if options.trials:
        tasks = [dataclasses.replace(task, trials=options.trials) for task in tasks]
    if options.seeds:
        tasks = [dataclasses.replace(task, seeds=min(task.seeds, options.seeds)) for task in tasks]
    methods = [method for method in METHODS if method.name in options.method]
    results = Results(options.results)
    if options.quick:
        tasks, results = quick_tasks(), Results(options.data / "transfer" / "quick")
        methods = [method for method in METHODS if method.name in QUICK_METHODS]
    if not options.table:
        for cell in missing_cells(results, tasks, methods):
            if options.quick and cell.seed:
                continue
            print(cell.name, flush=True)
            if not options.list:
                run_cell(cell, results, options.data)
    known = [task for task in tasks if not task.new and zero_shot_figures(results, task)]
    shipped = [method for method in methods if not (isinstance(method, Toolkit) and method.words)]
    if known:
        print(format_table(results, known, methods), end="\n\n")
        print(format_comparison(results, known, methods), end="\n\n")
        for form in (format_lines, format_rules, format_calibration):
            print(form(results, known, shipped), end="\n\n")
        print(format_left_out(results, known, methods), end="\n\n")
    print(format_new(results, tasks, methods))


if __name__ == "__main__":
    main()

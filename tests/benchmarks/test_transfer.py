import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    """The benchmark's modules, found as its command finds them."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import transfer
        import transfer_results
        import transfer_table
        import transfer_tasks
    finally:
        sys.path.remove(str(BENCHMARKS))
    return {"run": transfer, "results": transfer_results, "table": transfer_table, "tasks": transfer_tasks}


@pytest.fixture
def logistic(modules):
    return next(method for method in modules["run"].METHODS if method.name == "logistic-regression")


@pytest.fixture
def digits(modules):
    return next(task for task in modules["run"].TASKS if task.name == "digits-4")


def record(figure):
    return {place: {"accuracy": figure} for place in ("val", "target")}


def test_shots_are_drawn_of_each_class_by_the_seed_and_test_rows_stay(modules):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "image": [f"{number}.png" for number in range(300)],
            "label": rng.choice(["a", "b", "c"], 300),
            "split": rng.choice(["train", "val", "test"], 300),
        }
    )
    drawn = [modules["tasks"].draw_shots(rows, "label", "split", 4, seed) for seed in (0, 0, 1)]
    for each in drawn:
        counts = each[each["split"] != "test"].groupby(["label", "split"]).size()
        assert counts.tolist() == [4] * 6
        assert each[each["split"] == "test"].equals(rows[rows["split"] == "test"])
    assert drawn[0].equals(drawn[1])
    assert not drawn[0].equals(drawn[2])


def test_interval_is_students(modules):
    values = [0.41, 0.47, 0.45, 0.50, 0.44]
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    mean, half = (float(word) for word in modules["table"].format_interval(values).split(" ± "))
    assert mean == pytest.approx(100 * np.mean(values), abs=0.05)
    assert half == pytest.approx(100 * (high - low) / 2, abs=0.05)


def test_a_cell_is_stale_when_one_of_its_settings_changes(modules, logistic, digits, tmp_path):
    results = modules["results"].Results(tmp_path)
    cell = modules["results"].Cell(digits, logistic, logistic.trials[0], 0)
    results.write(cell, {"metrics": record(0.5)}, 1.0)
    assert results.read(cell)["metrics"] == record(0.5)
    path = tmp_path / f"{cell.name}.json"
    stored = json.loads(path.read_text())
    stored["settings"]["task"]["epochs"] += 1
    path.write_text(json.dumps(stored))
    assert results.read(cell) is None


def test_the_best_setting_of_the_first_seed_is_repeated_and_the_first_wins_a_tie(modules, logistic, digits, tmp_path):
    results, cells = modules["results"].Results(tmp_path), modules["results"].Cell
    for setting, figure in zip(logistic.trials, (0.5, 0.7, 0.7), strict=True):
        results.write(cells(digits, logistic, setting, 0), {"metrics": record(figure)}, 1.0)
    missing = list(modules["run"].missing_cells(results, [digits], [logistic]))
    assert [(cell.setting, cell.seed) for cell in missing] == [(logistic.trials[1], seed) for seed in (1, 2, 3, 4)]


def test_what_was_not_run_is_a_dash(modules, logistic, digits, tmp_path):
    results = modules["results"].Results(tmp_path)
    zero_shot = modules["run"].METHODS[0]
    lines = modules["table"].format_table(results, [digits], [zero_shot, logistic]).splitlines()
    assert [set(line.split(" | ")[2:-1]) for line in lines[2:]] == [{"-"}, {"-"}]


def test_the_line_to_the_base_tells_gain_kept_and_the_worst_place(modules, logistic, digits, tmp_path):
    results, cell = modules["results"].Results(tmp_path), modules["results"].Cell
    zero_shot = modules["run"].METHODS[0]
    results.write(cell(digits, zero_shot, {}, 0), {"metrics": record(0.1)}, 0.0)
    places = {"0": (0.4, 0.20), "0.5": (0.38, 0.21), "1": (0.2, 0.22)}
    target = {"0": 0.6, "0.5": 0.82, "1": 0.9}
    at = {
        alpha: {"target": target[alpha], "photographs": photographs, "names": names}
        for alpha, (photographs, names) in places.items()
    }
    found = {"metrics": record(0.9), "line": {"alpha": 0.5, "at": at}, "calibration": {"trained": 0.2, "fitted": 0.05}}
    results.write(cell(digits, logistic, logistic.trials[0], 0), found, 1.0)
    *_, line = modules["table"].format_lines(results, [digits], [zero_shot, logistic]).splitlines()
    assert line.split(" | ")[2:] == ["0.5", "90 %", "5.0 %", "50.0 %", "20.0", "5.0 |"]

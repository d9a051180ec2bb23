import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import torch
from PIL import Image
from torch.nn.functional import normalize

from finetune.core.interpolation import Interpolation


@pytest.fixture(scope="module")
def modules(load_benchmarks):
    """The benchmark's modules."""
    return load_benchmarks(
        run="transfer",
        comparison="transfer_comparison",
        interpolation="transfer_interpolation",
        left_out="transfer_left_out",
        line="transfer_line",
        means="transfer_means",
        new="transfer_new",
        plot="transfer_plot",
        results="transfer_results",
        table="transfer_table",
        tasks="transfer_tasks",
    )


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


def test_the_halves_of_a_gallery_share_no_label_and_lose_no_row(modules, tmp_path):
    labels = [f"{letter}'s" for letter in "edcba" for _ in range(2)]
    files = [f"{number}.png" for number in range(len(labels))]
    for name in files:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    pd.DataFrame({"image": files, "label": labels, "split": "test"}).to_csv(tmp_path / "table.csv", index=False)
    whole = modules["tasks"].Gallery("table.csv", "split", 4, label="label")
    read = [replace(whole, half=half).read(tmp_path).read(required=()) for half in (0, 1)]
    assert [list(rows.classes) for rows in read] == [["a's", "c's", "e's"], ["b's", "d's"]]
    assert [len(rows.indices("test")) for rows in read] == [6, 4]


def test_known_and_new_classes_are_joined_by_the_harmonic_mean_within_a_seed(modules, logistic, tmp_path):
    task = next(task for task in modules["run"].TASKS if task.new)
    results = modules["results"].Results(tmp_path)
    known, new = [0.9, 0.5], [0.3, 0.5]
    method = next(method for method in modules["run"].METHODS if method.name == "classify-prompts")
    for seed, (one, other) in enumerate(zip(known, new, strict=True)):
        places = {"val": 0.5, "target": one, "new": other, "photographs": 0.25}
        metrics = {name: {"accuracy": figure} for name, figure in places.items()}
        results.write(modules["results"].Cell(task, method, {}, seed), {"metrics": metrics}, 1.0)
    line = modules["new"].format_new(results, [task], [logistic, method]).splitlines()[2]
    assert line.split(" | ")[2:6] == ["2", *map(modules["table"].format_interval, (known, new, [0.45, 0.5]))]
    assert scipy.stats.hmean([known, new]).tolist() == pytest.approx([0.45, 0.5])


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
    path = tmp_path / "digits-4.jsonl"
    stored = json.loads(path.read_text())
    stored["settings"]["task"]["epochs"] += 1
    path.write_text(json.dumps(stored) + "\n")
    assert results.read(cell) is None


def test_a_cell_is_a_line_of_its_task_and_replaces_the_line_it_had(modules, logistic, tmp_path):
    results, cell = modules["results"].Results(tmp_path), modules["results"].Cell
    four, sixteen = (next(t for t in modules["run"].TASKS if t.name == name) for name in ("digits-4", "digits-16"))
    zero_shot = modules["run"].METHODS[0]
    written = [(four, zero_shot, {}, 0)]
    written += [(four, logistic, setting, seed) for seed in (1, 0) for setting in reversed(logistic.trials)]
    written += [(sixteen, logistic, logistic.trials[0], 0)]
    for number, key in enumerate(written):
        results.write(cell(*key), {"metrics": record(number / 7)}, 1.0)
    before = {path.name: path.read_text().splitlines() for path in tmp_path.glob("*.jsonl")}
    lines = {name: [json.loads(line) for line in text] for name, text in before.items()}
    keys = [(line["method"], line["setting"], line["seed"]) for line in lines["digits-4.jsonl"]]
    strengths = (10.0, 100.0, 1000.0)
    assert keys == [
        *(("logistic-regression", {"C": strength}, seed) for strength in strengths for seed in (0, 1)),
        ("zero-shot", {}, 0),
    ]
    assert {name: {line["task"] for line in found} for name, found in lines.items()} == {
        "digits-4.jsonl": {"digits-4"},
        "digits-16.jsonl": {"digits-16"},
    }
    assert [results.read(cell(*key))["metrics"] for key in written] == [record(place / 7) for place in range(8)]

    again = cell(four, logistic, {"C": 100.0}, 1)
    results.write(again, {"metrics": record(0.123456789012345678)}, 2.0)
    assert results.read(again)["metrics"] == record(0.123456789012345678)
    assert results.read(again)["train_seconds"] == 2.0
    after = {path.name: path.read_text().splitlines() for path in tmp_path.glob("*.jsonl")}
    changed = {name: [a != b for a, b in zip(before[name], after[name], strict=True)] for name in before}
    assert changed == {"digits-4.jsonl": [False, False, False, True, False, False, False], "digits-16.jsonl": [False]}


def test_a_cell_that_cannot_be_written_leaves_the_file_as_it_was(modules, logistic, digits, tmp_path):
    results, cell = modules["results"].Results(tmp_path), modules["results"].Cell
    results.write(cell(digits, logistic, logistic.trials[0], 0), {"metrics": record(0.5)}, 1.0)
    before = (tmp_path / "digits-4.jsonl").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        results.write(cell(digits, logistic, logistic.trials[0], 0), {"metrics": record(float("nan"))}, 1.0)
    assert (tmp_path / "digits-4.jsonl").read_bytes() == before


def test_two_writers_of_one_task_lose_no_cell(modules, logistic, digits, tmp_path):
    results, cell = modules["results"].Results(tmp_path), modules["results"].Cell
    cells = [cell(digits, logistic, setting, seed) for seed in range(10) for setting in logistic.trials[:2]]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: results.write(each, {"metrics": record(0.5)}, 1.0), cells))
    assert all(results.read(each) for each in cells)


@pytest.mark.parametrize("tasks", [slice(1), pytest.param(slice(1, None), marks=pytest.mark.slow)], ids=["one", "rest"])
def test_the_results_in_the_repository_are_those_of_the_recipes_and_settings_there_are(modules, tasks):
    results, cell = modules["results"].Results(modules["run"].HERE / "results" / "transfer"), modules["results"].Cell
    methods = {method.name: method for method in modules["run"].METHODS}
    known = {path.stem for path in results.folder.glob("*.jsonl")}
    assert len(known) >= 8
    for task in [task for task in modules["run"].TASKS if task.name in known][tasks]:
        lines = [json.loads(line) for line in (results.folder / f"{task.name}.jsonl").read_text().splitlines()]
        cells = [cell(task, methods[each["method"]], each["setting"], each["seed"]) for each in lines]
        assert [results.read(each) for each in cells] == lines, task.name


@pytest.mark.slow
def test_the_picture_is_that_of_the_results(modules):
    results = modules["results"].Results(modules["run"].HERE / "results" / "transfer")
    found = modules["plot"].find_tasks(results)
    assert len(found) >= 8
    picture = modules["run"].HERE.parent / "docs" / "pictures" / "transfer.svg"
    assert picture.read_text(encoding="utf-8") == modules["plot"].draw(found)
    table = (modules["run"].HERE.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for title, points in found.items():
        for point in points[1:]:
            assert re.search(
                rf"^\| {title} \| {re.escape(point.title)} \|.*\| {point.learned:.1f}( ± |  ?\|)", table, re.M
            )


def test_the_best_setting_of_the_first_seed_is_repeated_and_the_first_wins_a_tie(modules, logistic, digits, tmp_path):
    results, cells = modules["results"].Results(tmp_path), modules["results"].Cell
    for setting, figure in zip(logistic.trials, (0.5, 0.7, 0.7), strict=True):
        results.write(cells(digits, logistic, setting, 0), {"metrics": record(figure)}, 1.0)
    missing = list(modules["run"].missing_cells(results, [digits], [logistic]))
    assert [(cell.setting, cell.seed) for cell in missing] == [(logistic.trials[1], seed) for seed in (1, 2, 3, 4)]


def test_a_cell_that_is_missing_is_named_once(modules, digits, tmp_path):
    results = modules["results"].Results(tmp_path)
    full = next(method for method in modules["run"].METHODS if method.name == "full")
    cells = [(cell.setting, cell.seed) for cell in modules["run"].missing_cells(results, [digits], [full])]
    first, second = full.trials[:2]
    assert cells == [(first, 0), (second, 0), *((first, seed) for seed in (1, 2, 3, 4))]


def test_what_was_not_run_has_no_line(modules, logistic, digits, tmp_path):
    results = modules["results"].Results(tmp_path)
    results.write(modules["results"].Cell(digits, logistic, logistic.trials[0], 0), {"metrics": record(0.5)}, 1.0)
    zero_shot = modules["run"].METHODS[0]
    lines = modules["table"].format_table(results, [digits], [zero_shot, logistic]).splitlines()
    assert [line.split(" | ")[1:5] for line in lines[2:]] == [[logistic.title, "C 100 (1 of 2 tried)", "1", "50.0"]]


def test_interpolation_is_chosen_on_one_half_of_the_other_domains_and_judged_on_the_other_half(
    modules, logistic, digits, tmp_path
):
    results, cell = modules["results"].Results(tmp_path), modules["results"].Cell
    zero_shot = modules["run"].METHODS[0]
    results.write(cell(digits, zero_shot, {}, 0), {"metrics": record(0.1)}, 0.0)

    def point(interpolation, val, target, *losses):
        places = {"photographs": losses[:2], "names": losses[2:]}
        retention = {name: [{"value": loss, "error": 0.01} for loss in both] for name, both in places.items()}
        return {"interpolation": interpolation, "val": val, "target": target, "retention": retention}

    points = [
        point(0.0, 0.7, 0.6, 0.0, 0.0, 0.0, 0.0),
        point(0.5, 0.8, 0.82, 0.04, 0.02, -0.3, 0.03),
        point(0.75, 0.9, 0.86, 0.045, 0.06, 0.0, 0.041),  # too much by the second half
        point(1.0, 0.99, 0.9, 0.3, 0.2, 0.1, 0.5),
        point({"image": [1.0, 1.0], "text": [0.5, 0.5]}, 0.88, 0.88, 0.005, 0.02, 0.0, 0.025),
    ]
    found = {"metrics": record(0.9), "line": {"rows": 40, "points": points}}
    results.write(cell(digits, logistic, logistic.trials[0], 0), found, 1.0)
    module = modules["interpolation"]
    profile = Interpolation((1.0, 1.0), (0.5, 0.5))

    def choose(rule, **others):
        return [module.choose_on_half(found["line"] | others, 0.1, half, rule) for half in (0, 1)]

    judged = choose(module.as_shipped)
    assert [each.interpolation for each in judged] == [profile, profile]
    assert [each.lost for each in judged] == [0.025, 0.005]
    judged = choose(module.alike(module.as_shipped))
    assert [each.interpolation for each in judged] == [0.75, 0.5]
    assert [each.lost for each in judged] == [0.06, 0.04]
    assert [each.interpolation for each in choose(module.best)] == [0.75, profile]
    few = choose(module.alike(module.as_shipped), rows=5)[0]
    assert few.interpolation == 0.5  # 0.8 of the validation rows, and 0.9 within a standard error of 0.134
    *_, row = module.format_lines(results, [digits], [zero_shot, logistic]).splitlines()
    assert row.split(" | ")[2:] == ["1", "image=1,text=0.5", "98 %", "1.5 %", "2.5 %", "40.0 % |"]
    table = module.format_rules(results, [digits], [zero_shot, logistic])
    rules = [row.split(" | ")[1:] for row in table.splitlines()]
    assert rules[2:] == [
        ["98 %", "1.5 %", "2.5 %", "0 of 2 |"],
        ["92 %", "5.0 %", "6.0 %", "1 of 2 |"],
        ["98 %", "1.5 %", "2.5 %", "0 of 2 |"],
        ["92 %", "5.0 %", "6.0 %", "1 of 2 |"],
        ["96 %", "3.2 %", "6.0 %", "1 of 2 |"],
        ["92 %", "5.0 %", "6.0 %", "1 of 2 |"],
    ]


def test_halves_of_a_line_are_those_of_models_that_were_built_with_each_weight(modules):
    """Kept features give what the towers give together."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(2, 12, 8, generator=generator) for _ in range(2))
    ids = torch.arange(12)
    pictures = SimpleNamespace(classes=(), image_ids=ids, caption_ids=ids)
    kept = modules["line"].Kept(pictures, True)
    kept._images, kept._texts = ({0.0: both[0], 0.5: both[1]} for both in (images, texts))
    for image, text in itertools.product((0.0, 0.5), repeat=2):
        logits = (normalize(kept._images[image], dim=-1) @ normalize(kept._texts[text], dim=-1).T).numpy()
        ranks = [(each > np.diag(each)[:, None]).sum(1) for each in (logits, logits.T)]
        assert kept.main_figure(image, text) == pytest.approx(np.mean([rank < 10 for rank in ranks]))


def test_labels_of_a_line_are_told_by_the_halves_or_by_the_head_of_the_image_weight(modules):
    generator = torch.Generator().manual_seed(0)
    images, texts, head = (torch.randn(2, rows, 8, generator=generator) for rows in (40, 5, 5))
    labels = torch.randint(5, (40,), generator=generator)
    kept = modules["line"].Kept(SimpleNamespace(classes=tuple("abcde"), label_ids=labels), True)
    kept._images, kept._texts = ({0.0: both[0], 0.5: both[1]} for both in (images, texts))
    kept._scores = {0.0: None, 0.5: None}
    pairs = [*itertools.product((0, 1), repeat=2)]

    def measured() -> list[float]:
        return [kept.main_figure(image / 2, text / 2) for image, text in pairs]

    def counted(logits: list[torch.Tensor]) -> list[float]:
        return [np.mean(each.numpy().argmax(1) == labels.numpy()) for each in logits]

    by_names = [images[image] @ normalize(texts[text], dim=-1).T for image, text in pairs]
    assert measured() == pytest.approx(counted(by_names))
    assert len(set(measured())) > 2
    kept._scores = {weight / 2: lambda features, weight=weight: features @ head[weight].T for weight in (0, 1)}
    assert measured() == pytest.approx(counted([images[image] @ head[image].T for image, _ in pairs]))


def test_calibration_is_the_mean_over_the_seeds_and_then_over_the_tasks(modules, logistic, digits, tmp_path):
    results, cell = modules["results"].Results(tmp_path), modules["results"].Cell
    kinds = next(task for task in modules["run"].TASKS if task.name == "kinds")
    for task, seed, error in ((digits, 0, 0.2), (digits, 1, 0.4), (digits, 2, 0.9), (kinds, 0, 0.1)):
        errors = {"trained": error, "by_accuracy": error / 5, "by_likelihood": error / 2, "by_chance": 0.03}
        if seed < 2:
            errors["fitted"] = error / 4
        found = {"metrics": record(0.9), "calibration": errors}
        results.write(cell(task, logistic, logistic.trials[0], seed), found, 1.0)
    results.write(cell(digits, logistic, logistic.trials[0], 3), {"metrics": record(0.9)}, 1.0)
    lines = modules["table"].format_calibration(results, [digits, kinds], [logistic]).splitlines()
    assert [line.split(" | ")[2:] for line in lines[2:]] == [
        ["2", "30.0", "7.5", "6.0", "15.0", "3.0 |"],
        ["1", "10.0", "2.5", "2.0", "5.0", "3.0 |"],
        ["", "20.0", "5.0", "4.0", "10.0", "3.0 |"],
    ]


@pytest.mark.parametrize("sharpness", [0.3, 4.0])
def test_a_temperature_fitted_on_the_same_kind_of_rows_calibrates_the_target(modules, sharpness):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (3000, 8))
    labels = np.array([rng.choice(8, p=scipy.special.softmax(row)) for row in logits])
    scores, label_ids = torch.from_numpy(sharpness * logits).float(), torch.from_numpy(labels)
    found = modules["line"].calibration_errors(scores[:1500], scores[1500:], label_ids[:1500], label_ids[1500:])

    probabilities = scipy.special.softmax(sharpness * logits[1500:], axis=1)
    confidences, correct = probabilities.max(1), probabilities.argmax(1) == labels[1500:]
    bins = np.minimum((confidences * 15).astype(int), 14)
    gaps = [abs((correct[bins == part] - confidences[bins == part]).sum()) for part in range(15)]
    assert found["trained"] == pytest.approx(sum(gaps) / 1500, abs=1e-4)
    assert found["trained"] > 0.1
    assert max(found[way] for way in ("fitted", "by_accuracy", "by_likelihood")) < 0.04


def test_differences_are_paired_by_seed_and_their_mean_has_the_interval_of_the_seeds(modules):
    rng = np.random.default_rng(0)
    ours, theirs = ({seed: rng.normal(0.6, 0.1) for seed in range(5)} for _ in range(2))
    found = modules["comparison"].difference(ours, {**theirs, 9: 0.0})
    pairs = np.array([ours[seed] - theirs[seed] for seed in range(5)])
    low, high = scipy.stats.ttest_1samp(pairs, 0).confidence_interval()
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high), abs=1e-5)

    half = 0.5 * pairs + 0.02
    other = modules["comparison"].difference(dict(enumerate(half)), dict.fromkeys(range(5), 0.0))
    both = modules["means"].mean_of_means([found, other])
    welch = scipy.stats.ttest_ind(pairs, -half, equal_var=False).confidence_interval()
    assert (both.mean - both.half_width, both.mean + both.half_width) == pytest.approx(
        (welch.low / 2, welch.high / 2), abs=1e-5
    )


def test_a_recipe_is_compared_where_both_were_run(modules, logistic, digits, tmp_path):
    results, cell = modules["results"].Results(tmp_path), modules["results"].Cell
    ours, once = (
        next(method for method in modules["run"].METHODS if method.name == name)
        for name in ("classify-head", "head-once")
    )

    def both(target, photographs, val=0.5):
        return {
            "val": {"accuracy": val},
            "target": {"accuracy": target},
            "photographs": {"hit@10": photographs},
            "names": {"hit@10": 0.2},
        }

    tip = next(method for method in modules["run"].METHODS if method.name == "tip-adapter-f")
    kinds = next(task for task in modules["run"].TASKS if task.name == "kinds")
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        for task in (digits, kinds):
            results.write(cell(task, ours, ours.trials[0], seed), {"metrics": both(0.6 + gain, 0.5)}, 1.0)
            results.write(cell(task, once, once.trials[0], seed), {"metrics": both(0.65, 0.5, val=0.6)}, 1.0)
        results.write(cell(digits, logistic, logistic.trials[0], seed), {"metrics": both(0.6, 0.4)}, 1.0)
    results.write(cell(kinds, logistic, logistic.trials[0], 0), {"metrics": both(0.9, 0.4)}, 1.0)
    results.write(cell(kinds, tip, tip.trials[0], 1), {"metrics": both(0.7, 0.4)}, 1.0)
    other = next(task for task in modules["run"].TASKS if task.name == "digits-1")
    table = modules["comparison"].format_comparison(results, [digits, kinds, other], [ours, once, logistic, tip])
    assert table.splitlines()[2:] == [
        f"| {logistic.title} | +20.0 ± 24.8 | -10.0 ± 24.8 | - | +5.0 ± 11.3 | +7.5 |",
        f"| {tip.title} | - | +10.0 | - | +10.0 | +10.0 |",
        "| the best of these in each task | +20.0 ± 24.8 | -10.0 ± 24.8 | - | +5.0 ± 11.3 | +7.5 |",
        "| the same, ours as the other tasks choose | +5.0 ± 0.0 | -25.0 ± 0.0 | - | -10.0 | +7.5 |",
        "| the same, `classify_head` for few images too | +20.0 ± 24.8 | -10.0 ± 24.8 | - | +5.0 ± 11.3 | +7.5 |",
    ]


def test_a_task_left_out_takes_the_variant_that_the_others_choose(modules, tmp_path):
    results = modules["results"].Results(tmp_path)
    by_name = {method.name: method for method in modules["run"].METHODS}
    methods = shipped, once, longer = [by_name[name] for name in ("few-shot", "few-once", "few-longer")]
    one, four = (next(task for task in modules["run"].TASKS if task.name == name) for name in ("digits-1", "digits-4"))
    for task, method, val, target in (
        (one, shipped, 0.9, 0.91),
        (one, once, 0.8, 0.81),
        (one, longer, 0.99, 0.98),  # not run in the other task, so it is not to be chosen
        (four, shipped, 0.5, 0.51),
        (four, once, 0.6, 0.61),
    ):
        found = {"metrics": {"val": {"accuracy": val}, "target": {"accuracy": target}}}
        results.write(modules["results"].Cell(task, method, {}, 0), found, 1.0)
    table = modules["left_out"].format_left_out(results, modules["run"].TASKS, methods)
    assert table.splitlines()[2:] == [
        f"| {one.title} | {shipped.title} | {once.title} | 81.0 | 91.0 |",
        f"| {four.title} | {shipped.title} | {shipped.title} | 51.0 | 51.0 |",
    ]

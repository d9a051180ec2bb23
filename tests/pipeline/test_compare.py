"""Models side by side: intervals as NumPy draws them from the predictions, and what is not comparable."""

import csv
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune.commands.cli import main
from finetune.core.errors import CheckpointError, RecipeError
from finetune.export.merged import write_checkpoint
from finetune.model.base import Base
from finetune.pipeline.compare import compare_models
from finetune.pipeline.measure_again import measure_checkpoint
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.run_recipe import run_recipe
from finetune.run.measurement import TEST

from ..conftest import NAMES, calibrated_align

pytestmark = pytest.mark.usefixtures("share_opener")

TEST_ROWS = 60


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Squares whose colours are plain or hard to see: 60 to test on, 12 for each other split."""
    folder = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    lines = ["image,caption,label,split"]
    for index in range(TEST_ROWS + 24):
        pixels = random.integers(0, 60, (24, 24, 3), dtype=np.uint8)
        pixels[:, :, index % 3] += 25 * (1 + index % 7)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        split = "test" if index < TEST_ROWS else ("train", "val")[index % 2]
        lines.append(f"{index}.png,a {NAMES[index % 3]} square number {index},{NAMES[index % 3]},{split}")
    path = folder / "squares.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def checkpoints(tiny, tmp_path_factory) -> dict[str, str]:
    """Three models that differ by chance."""
    found = {"a": tiny, "mini": "align-mini"}
    for seed, name in enumerate("bc", start=1):
        folder = tmp_path_factory.mktemp("checkpoint") / name
        folder.mkdir()
        write_checkpoint(calibrated_align(seed), Base.open(tiny).processor(), folder)
        found[name] = str(folder)
    return found


@pytest.fixture(scope="module")
def write_recipe(tmp_path_factory, table) -> Callable[..., Path]:
    def write(checkpoint: str, text: str = "label: label", retention: bool = True) -> Path:
        path = tmp_path_factory.mktemp("recipe") / "squares.yaml"
        path.write_text(
            f"model: {{checkpoint: {checkpoint}, image_lora: {{rank: 2}}}}\n"
            f"data:\n  table: {{path: {table}, {text}, split: split}}\n"
            + (f"  retention: [{{path: {table}, caption: caption, split: split}}]\n" if retention else "")
            + "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}\n"
            f"run: {{linear_probe: false, folder: {path.parent / 'runs'}}}\n"
        )
        return path

    return write


@pytest.fixture(scope="module")
def measure(tmp_path_factory, checkpoints, write_recipe) -> Callable[..., str]:
    """Measures one of the checkpoints, each in a way once, and returns the measurement's folder."""

    @cache
    def run(name: str, *words: str, **settings: object) -> str:
        folder = tmp_path_factory.mktemp("measured") / name
        measure_checkpoint(read_recipe(write_recipe(checkpoints[name], **settings), words), folder)
        return str(folder)

    return run


@pytest.fixture(scope="module")
def measured(measure) -> list[str]:
    return [measure(name) for name in "abc"]


@pytest.fixture(scope="module")
def run(write_recipe, tiny) -> Path:
    return run_recipe(read_recipe(write_recipe(tiny))).path


def draw(metric: Callable[[np.ndarray], np.ndarray], rows: int) -> tuple[float, float]:
    """The percentile interval of a metric of rows that are drawn with replacement, 20,000 times."""
    drawn = np.random.default_rng(1).integers(0, rows, (20_000, rows))
    return tuple(np.nanquantile(metric(drawn), [0.025, 0.975]))


def predictions(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "predictions.csv")


def test_intervals_of_labels_are_those_that_numpy_draws_from_the_predictions(measure):
    """A model that knows colours, asked in two ways."""
    words = ("--data.image_size", "64")
    first = measure("mini", *words, retention=False)
    second = measure("mini", *words, "--data.templates", "['{}']", retention=False)
    differences = compare_models([first, second]).differences[TEST][second]
    before, after = (predictions(folder) for folder in (first, second))
    hits = [(one["prediction"] == one["label"]).to_numpy(float) for one in (before, after)]
    labels = before["label"].to_numpy()
    assert len(labels) == TEST_ROWS

    def recall(drawn: np.ndarray) -> np.ndarray:
        change = (hits[1] - hits[0])[drawn]
        of_class = [
            np.where(labels[drawn] == name, change, 0).sum(1) / (labels[drawn] == name).sum(1) for name in NAMES
        ]
        return np.nanmean(of_class, axis=0)

    everything = np.arange(TEST_ROWS)[None]
    for key, metric in (
        ("accuracy", lambda drawn: (hits[1] - hits[0])[drawn].mean(1)),
        ("mean_per_class_recall", recall),
    ):
        found = differences[f"test/{key}"]
        assert found["value"] == pytest.approx(float(metric(everything)[0]), abs=1e-6)
        assert (found["low"], found["high"]) == pytest.approx(draw(metric, TEST_ROWS), abs=1.01 / TEST_ROWS)
        assert found["low"] < found["value"] < found["high"]
        excludes_zero = {"higher": found["low"] > 0, "lower": found["high"] < 0}
        assert found["verdict"] == next((word for word, is_so in excludes_zero.items() if is_so), "no clear difference")


def test_intervals_of_captions_are_those_that_numpy_draws_from_the_ranks(measure):
    first, second = (measure(name, text="caption: caption", retention=False) for name in "ab")
    differences = compare_models([first, second]).differences[TEST][second]
    before, after = (predictions(folder) for folder in (first, second))
    for way in ("image_to_text", "text_to_image"):
        ranks = [one[f"{way}_rank"].to_numpy() for one in (before, after)]
        for key, score in (
            *((f"R@{k}", lambda ranks, k=k: (ranks <= k).mean(-1)) for k in (1, 5, 10)),
            ("median_rank", lambda ranks: np.median(ranks, axis=-1)),
        ):
            found = differences[f"test/{way}/{key}"]
            assert found["value"] == pytest.approx(float(score(ranks[1]) - score(ranks[0])), abs=1e-6)

            def change(drawn: np.ndarray, ranks=ranks, score=score) -> np.ndarray:
                return score(ranks[1][drawn]) - score(ranks[0][drawn])

            step = 1.01 if key == "median_rank" else 1.01 / TEST_ROWS
            assert (found["low"], found["high"]) == pytest.approx(draw(change, TEST_ROWS), abs=step)


def test_each_of_three_models_is_compared_with_the_first(measured, capsys, tmp_path):
    comparison = compare_models(measured)
    first, second, third = measured
    for table in (TEST, "squares"):
        assert list(comparison.metrics[table]) == measured
        assert list(comparison.differences[table]) == [second, third]
        for other in (second, third):
            assert comparison.differences[table][other] == compare_models([first, other]).differences[table][other]
    assert main(["compare", *measured, "--output", str(tmp_path / "found.json")]) == 0
    screen = capsys.readouterr().out
    assert "\nRetention table squares:\n" in screen
    assert screen.count(f"{second} against {first}:") == screen.count(f"{third} against {first}:") == 2
    assert "difference, 95 % interval" not in screen  # of which there would be two
    row = next(line.split("|")[2:5] for line in screen.splitlines() if "| test/accuracy " in line)
    accuracies = [comparison.metrics[TEST][name]["test/accuracy"] for name in measured]
    assert [cell.strip() for cell in row] == [f"{100 * value:.1f} %" for value in accuracies]
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["differences"] == comparison.differences
    assert written["metrics"] == comparison.metrics


def test_verdicts_are_listed_and_two_models_have_their_differences_beside_them(measured, capsys):
    first, second, _ = measured
    assert main(["compare", first, second]) == 0
    screen = capsys.readouterr().out
    differences = compare_models([first, second]).differences
    assert screen.count("difference, 95 % interval") == 2
    for table in differences.values():
        grades: dict[str, list[str]] = {}
        for key, found in table[second].items():
            gain = -found["value"] if "median_rank" in key else found["value"]
            clear = found["low"] > 0 or found["high"] < 0
            grades.setdefault(("better" if gain > 0 else "worse") if clear else "no clear difference", []).append(key)
        for name, keys in grades.items():
            assert f"  {name}: {', '.join(keys)}\n" in screen
    accuracy = differences[TEST][second]["test/accuracy"]
    assert f"{100 * accuracy['value']:+.1f} ({100 * accuracy['low']:+.1f} to {100 * accuracy['high']:+.1f})" in screen


def test_a_run_its_folder_and_its_base_are_compared_from_their_files(run, measured):
    """`metrics.json` holds the same differences, and a copy differs in nothing."""
    base, merged = measured[0], shutil.copytree(run / "merged", run.parent / "copied")
    comparison = compare_models([base, str(run), str(merged)])
    metrics = json.loads((run / "metrics.json").read_text())
    assert comparison.metrics[TEST][base] == metrics["before"]
    assert comparison.metrics[TEST][str(run)] == comparison.metrics[TEST][str(merged)] == metrics["after"]
    assert comparison.differences[TEST][str(run)] == metrics["difference"]
    retention = metrics["retention"]["tables"]["squares"]
    assert comparison.differences["squares"][str(run)][retention["metric"]] == retention["difference"]
    for table in compare_models([run, merged]).differences.values():
        for found in table[str(merged)].values():
            assert (found["value"], found["low"], found["high"]) == (0, 0, 0)
            assert found["verdict"] == "no clear difference"


def test_a_run_with_a_head_keeps_on_retention_tables_what_its_merged_checkpoint_keeps(run, measure, measured, tmp_path):
    with_head = Path(shutil.copytree(run, tmp_path / "with_head"))
    for name, folder in (("after", measure("b", retention=False)), ("zero-shot-after", measured[0])):
        shutil.copytree(folder, with_head / "measurements" / name, dirs_exist_ok=True)
    comparison = compare_models([*measured[:2], str(with_head)])
    assert comparison.left_out == ()
    assert comparison.metrics[TEST][str(with_head)] == comparison.metrics[TEST][measured[1]]
    assert comparison.metrics["squares"][str(with_head)] == comparison.metrics["squares"][measured[0]]


# ---- what is refused


def name(table: Path, row: int) -> str:
    with table.open() as file:
        line = list(csv.DictReader(file))[row]
    return f"squares.csv:{row + 2} ({line['image']}, {line['label']!r})"


def test_other_rows_are_refused_with_the_first_that_differs(measure, measured, table):
    other = measure("b", "--data.table.filter", "image != '4.png'")
    with pytest.raises(RecipeError) as refused:
        compare_models([measured[0], other])
    assert str(refused.value) == (
        f"Expected {measured[0]} and {other} to be measured on the same test rows, but got {name(table, 4)} and "
        f"{name(table, 5)} in place 5. Measure both with the same recipe: finetune test --config RECIPE --output FOLDER"
    )


def test_fewer_rows_are_refused(measure, measured, table):
    other = measure("b", "--data.table.filter", "image != '59.png'")
    for models, found in (
        ((measured[0], other), f"{name(table, 59)} and no row in place 60"),
        ((other, measured[0]), f"no row and {name(table, 59)} in place 60"),
    ):
        with pytest.raises(RecipeError, match="on the same test rows") as refused:
            compare_models(models)
        assert found in str(refused.value)


def test_other_rows_of_a_retention_table_are_refused(measure, measured, table, tmp_path):
    (tmp_path / "squares.csv").write_text(table.read_text().replace("a green square number 7", "a frog"))
    retention = f"[{{path: {tmp_path / 'squares.csv'}, caption: caption, split: split, images: {table.parent}}}]"
    other = measure("b", "--data.retention", retention)
    with pytest.raises(RecipeError) as refused:
        compare_models([measured[0], other])
    assert (
        "on the same rows of the retention table squares, but got squares.csv:9 (7.png, 'a green square number 7')"
        in (str(refused.value))
    )
    assert "and squares.csv:9 (7.png, 'a frog') in place 8" in str(refused.value)


def test_a_retention_table_that_one_lacks_is_left_out_aloud(measure, measured):
    other = measure("b", retention=False)
    comparison = compare_models([measured[0], other])
    assert list(comparison.metrics) == list(comparison.differences) == [TEST]
    assert comparison.left_out == ("squares",)
    assert comparison.lines()[-1] == "Left out, as not all were measured there: squares."
    assert compare_models([other, measured[0]]).left_out == ("squares",)


def test_the_same_rows_by_other_metrics_are_refused(measure):
    labels = measure("a", text="label: label, caption: caption", retention=False)
    captions = measure("a", text="caption: caption", retention=False)
    with pytest.raises(
        RecipeError, match=r"got test/accuracy and test/mean_R@K for metrics\. Measure both with the same"
    ):
        compare_models([labels, captions])


def test_the_same_rows_in_another_number_of_queries_are_refused(measure):
    merged = measure("a", text="caption: label", retention=False)
    single = measure("a", "--data.merge_equal_captions", "false", text="caption: label", retention=False)
    with pytest.raises(RecipeError, match=r"the same test rows, but got (3|60) and (3|60) queries of test/"):
        compare_models([merged, single])


def test_what_was_not_measured_is_refused_with_the_repair(run, measured, tiny, capsys, tmp_path):
    assert main(["compare", measured[0], tiny]) == 2
    error = capsys.readouterr().err
    assert (
        f"Expected {tiny} to be a run, or an exported folder that carries its measurement, but it holds none." in error
    )
    assert f"finetune test --config RECIPE --model.checkpoint {tiny} --output FOLDER" in error
    stopped = shutil.copytree(run, tmp_path / "stopped")
    (stopped / "finished.json").unlink()
    with pytest.raises(CheckpointError, match=f"is unfinished: it has no finished.json. .*: finetune resume {stopped}"):
        compare_models([measured[0], stopped])


def test_a_damaged_measurement_is_refused(measured, tmp_path):
    damaged = shutil.copytree(measured[1], tmp_path / "damaged")
    file = damaged / "figures.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"damaged to be a measurement, but got: .*\. Measure again\."):
        compare_models([measured[0], damaged])


@pytest.mark.parametrize(
    ("models", "named"), [([], "none"), (["a"], "a"), ("a", "a"), (Path("a"), "a"), (["a", "b", "a"], "a, b, a")]
)
def test_fewer_than_two_models_are_no_comparison(models, named):
    with pytest.raises(RecipeError, match=f"Expected two models or more, each named once, but got {named}"):
        compare_models(models)

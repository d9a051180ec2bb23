"""The scripts of `examples/`, run as they stand there, on a part of the data that they name."""

import ast
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from finetune import Base, prepare, read_vectors
from finetune.run.folder import RunFolder

EXAMPLES = Path(__file__).parents[2] / "examples"
LONGEST = 22
"""Lines of a script, of which ten or so are the job."""


def prepare_digits(folder: Path, train: int, val: int, test: int) -> Path:
    """Prepares `data/digits` as it is, but so many pictures of each digit alone."""
    prepare("digits", "--output", str(folder / "data" / "digits"))
    table = folder / "data" / "digits" / "digits.csv"
    rows = pd.read_csv(table)
    kept = rows[
        rows.groupby(["label", "split"]).cumcount() < rows["split"].map({"train": train, "val": val, "test": test})
    ]
    kept.to_csv(table, index=False)
    for name in {*rows["image"]} - {*kept["image"]}:
        (table.parent / name).unlink()
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """A folder with 40 pictures."""
    return prepare_digits(tmp_path_factory.mktemp("few"), 2, 1, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with 110 pictures, and what scripts have made of them."""
    return prepare_digits(tmp_path_factory.mktemp("examples"), 6, 2, 3)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script in a folder, and returns what it prints."""

    def run(name: str, place: Path) -> str:
        monkeypatch.chdir(place)
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_scripts_are_short_and_say_what_they_are_for():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 9
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert text.count("\n") <= LONGEST, script
        assert "First: `" in (ast.get_docstring(ast.parse(text)) or ""), script


@pytest.mark.slow
def test_a_folder_is_searched(run, few):
    shown = run("search_folder", few)
    assert shown.count("a handwritten digit zero") == 3
    assert read_vectors("digits.npy").facts.rows == 40
    assert shown.split("image 1")[1].split()[:2] == ["1", "0005.png"]  # nothing is more like a picture than itself


@pytest.mark.slow
def test_shards_are_embedded(run, few):
    shown = run("embed_shards", few)
    assert shown.startswith("40 images in 1 of 1 parts, ")
    found = read_vectors("vectors")
    assert found.vectors.dtype == np.float16
    assert shown.splitlines()[1].startswith(f"{found.vectors.shape} float16 ")


@pytest.mark.slow
def test_captions_are_retrieved_and_the_run_is_compared_and_used_alone(run, place):
    shown = run("retrieval", place)
    results = RunFolder(place / "runs" / "retrieval").read_results()
    metric, *figures = shown.splitlines()[-2].split()
    assert [*map(float, figures)] == pytest.approx(results.loc[metric].tolist(), abs=1e-5)
    assert metric == "test/text_to_image/R@1"
    compared = run("compare", place)
    assert f"{100 * results.loc['test/mean_R@K', 'after']:.1f} %" in compared
    assert "runs/retrieval against base:" in compared

    shutil.copy(EXAMPLES / "adapter_alone.py", place)  # away from this library
    words = ["runs/retrieval/adapter", str(Base.open("align-mini").folder), "data/digits/images/0000.png"]
    command = [sys.executable, "-c", f"import sys; sys.modules['finetune'] = None; sys.argv[1:] = {words}; "]
    command[-1] += "import runpy; runpy.run_path('adapter_alone.py', run_name='__main__')"
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ((zero, one),) = ast.literal_eval(done.stdout)
    assert zero + one == pytest.approx(1)


@pytest.mark.slow
def test_classes_are_told_apart_and_measured_by_another_metric(run, place):
    shown = run("classes", place)
    results = RunFolder(place / "runs" / "classes").read_results()
    (after,) = (line.split()[1] for line in shown.splitlines() if line.startswith("after "))
    assert float(after) == pytest.approx(results.loc["test/accuracy", "after"], abs=1e-5)
    rows = pd.read_csv(place / "runs" / "classes" / "predictions.csv")
    classes = sorted({*rows["label"]})
    scores = f1_score(rows["label"], rows["prediction"], labels=classes, average=None, zero_division=0)
    found = dict(line.split() for line in run("own_metric", place).splitlines()[1:-1])
    assert {name: float(found[name]) for name in classes} == {
        name: pytest.approx(score, abs=0.006) for name, score in zip(classes, scores, strict=True)
    }


@pytest.mark.slow
def test_a_rare_class_is_found(run, place):
    shown = run("rare_class", place)
    frame = pd.read_parquet(place / "runs" / "rare" / "frame.parquet")
    assert (frame.query("split == 'train'")["label"].value_counts() == [*[6] * 9, 5]).all()
    rows = pd.read_csv(place / "runs" / "rare" / "predictions.csv").query("label == 'nine'")
    assert shown.splitlines()[-1] == f"{(rows['prediction'] == 'nine').mean():.0%} of the nines are found"


@pytest.mark.slow
def test_a_loss_of_ones_own_is_trained_by(run, place):
    assert run("own_loss", place).splitlines()[-1].startswith("('test/mean_R@K', 0.")

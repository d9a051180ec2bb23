"""A measurement written and read again is the same, and gives the same intervals."""

import csv
import io

import pandas as pd
import pytest

from finetune.core.csv_text import format_frame, shield, shield_frame
from finetune.core.errors import CheckpointError
from finetune.evaluation.drift import drift
from finetune.evaluation.forgetting import compare_retention, find_differences
from finetune.metrics.bootstrap import paired_difference
from finetune.run.measurement import (
    TEST,
    Measurement,
    TableMeasurement,
    read_measurement,
    write_measurement,
)

from .measured import ODD, build_measurement

FILES = ["figures.safetensors", "measurement.json", "predictions.csv", "rows.csv"]


@pytest.fixture
def written(tmp_path):
    measurement = build_measurement()
    write_measurement(measurement, tmp_path / "after")
    return measurement, tmp_path / "after"


def test_everything_comes_back(written):
    before, folder = written
    assert sorted(path.name for path in folder.iterdir()) == FILES
    after = read_measurement(folder)
    assert list(after.tables) == list(before.tables) == [TEST, "test", "labels 2"]
    for name, table in before.tables.items():
        found = after.tables[name]
        assert (found.metrics, found.headline, found.main) == (table.metrics, table.headline, table.main)
        pd.testing.assert_frame_equal(found.rows, table.rows)
        assert list(found.figures) == list(table.figures)
        for key, figure in table.figures.items():
            assert type(found.figures[key]) is type(figure)
            for field, tensor in vars(figure).items():
                assert getattr(found.figures[key], field).equal(tensor)
                assert getattr(found.figures[key], field).dtype == tensor.dtype
    assert after.test.rows["text"].tolist() == ODD
    assert list(after.retention) == ["test", "labels 2"]
    assert (after.linear_probe, after.calibration) == (before.linear_probe, before.calibration)
    assert all(found.equal(tensor) for found, tensor in zip(after.probe, before.probe, strict=True))


def test_intervals_are_the_same_from_the_files(written):
    before, folder = written
    after = read_measurement(folder)
    for name, table in before.tables.items():
        for key, figure in table.figures.items():
            other = table.figures[key]
            assert paired_difference(after.tables[name].figures[key], other) == paired_difference(figure, other)
        assert find_differences(table, after.tables[name]) == find_differences(table, table) != {}
    assert compare_retention(before, after) == compare_retention(before, before)
    assert drift(before.probe, after.probe) == 0


def test_predictions_are_the_same_text(written):
    before, folder = written
    text = (folder / "predictions.csv").read_bytes().decode()
    head, *lines = csv.reader(io.StringIO(text, newline=""))
    assert head == list(before.predictions)
    assert lines == [[str(shield(cell)) for cell in row] for row in before.predictions.itertuples(index=False)]
    found = read_measurement(folder).predictions
    assert found["label"].tolist() == ODD
    assert format_frame(shield_frame(found)) == format_frame(shield_frame(before.predictions)) == text


def test_written_read_and_written_again_it_is_the_same_bytes(written, tmp_path):
    _, folder = written
    write_measurement(read_measurement(folder), tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_classifier_has_neither_probe_nor_retention_and_a_measurement_may_have_no_figure(tmp_path):
    rows = pd.read_csv(io.StringIO("file,row,image,text\nt.csv,2,a.png,a\n"), dtype=str)
    table = TableMeasurement({"test/accuracy": 1.0}, "test/accuracy", {}, rows)
    write_measurement(Measurement({TEST: table}, rows), tmp_path / "after")
    found = read_measurement(tmp_path / "after")
    assert (found.probe, found.linear_probe, found.calibration, found.retention) == (None, None, None, {})
    assert found.test.figures == {}


def test_a_measurement_takes_the_place_of_the_one_before(written):
    before, folder = written
    write_measurement(before._replace(linear_probe=None), folder)
    assert read_measurement(folder).linear_probe is None
    assert [path.name for path in folder.parent.iterdir()] == ["after"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(written, name):
    _, folder = written
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"Expected \S+after to be a measurement, but got: .*Measure again\."):
        read_measurement(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("measurement.json", b"{"),
        ("measurement.json", b"[]"),
        ("measurement.json", b"{}"),
        ("measurement.json", b'{"tables": null}'),
        ("measurement.json", b"\xff"),
        ("figures.safetensors", b"nothing"),
        ("predictions.csv", b""),
        ("rows.csv", b""),
        ("rows.csv", b"file,row\n1,2\n"),
    ],
)
def test_a_damaged_file_is_refused(written, name, content):
    _, folder = written
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"Expected \S+after to be a measurement, but got: .*Measure again\."):
        read_measurement(folder)


def test_a_figure_that_lacks_a_tensor_is_refused(written):
    _, folder = written
    path = folder / "measurement.json"
    path.write_text(path.read_text().replace('"Median"', '"MeanOfMeans"'))
    with pytest.raises(CheckpointError, match="the tensors of MeanOfMeans to be values, unit_ids, group_ids"):
        read_measurement(folder)
    path.write_text(path.read_text().replace('"test/accuracy": "MeanOfMeans"', '"test/accuracy": "Meen"'))
    with pytest.raises(CheckpointError, match="name to be a kind of figure, but got 'Meen'"):
        read_measurement(folder)

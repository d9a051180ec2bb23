"""Two measurements compared, on the test rows and on retention tables."""

import copy

import pandas as pd
import pytest
import torch

from finetune.core.errors import TableError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.forgetting import compare, compare_retention, find_differences, relative_loss
from finetune.evaluation.measure import measure_towers
from finetune.metrics.bootstrap import paired_difference
from finetune.metrics.statistics import MeanAveragePrecision, mean
from finetune.run.measurement import TEST, Measurement, TableMeasurement


@pytest.fixture
def data(colour_table, tiny) -> ImageTextDataModule:
    """Captions, with the same pictures as a retention table of labels."""
    return ImageTextDataModule(
        Table(str(colour_table), caption="caption", split="split"),
        tiny,
        retention=[Table(str(colour_table), label="label", split="split")],
        batch_size=5,
        templates=("never read for {}",),
    )


def test_a_model_that_did_not_change_lost_nothing(data, towers, cpu):
    found, _ = measure_towers(towers, data, cpu)
    same = compare(found, found)
    assert same["drift"] == 0
    assert same["retention"]["worst_relative_loss"] == 0
    difference = same["retention"]["tables"]["colours"]["difference"]
    assert difference == {"value": 0, "low": 0, "high": 0, "verdict": "no clear difference"}
    differences = find_differences(found.test, found.test)
    assert differences.keys() == found.test.metrics.keys()
    assert {difference["verdict"] for difference in differences.values()} == {"no clear difference"}


def test_a_model_that_was_broken_is_seen_to_be(data, towers, cpu):
    broken = copy.deepcopy(towers)
    with torch.no_grad():
        broken.align.text_projection.weight.mul_(-1)
    before, after = (measure_towers(each, data, cpu)[0] for each in (towers, broken))
    assert compare(before, after)["drift"] > 0.001


def test_without_probe_and_retention_there_is_nothing_to_compare():
    measured = measurement(0.5)
    assert compare(measured, measured) == {}


def measurement(main: float, retention: dict[str, tuple[str, float]] | None = None) -> Measurement:
    """A measurement by hand, of two rows a table."""

    def table(key, reached):
        figure = mean(torch.tensor([2 * reached, 0.0]))
        return TableMeasurement({key: reached}, key, {key: figure}, pd.DataFrame())

    tables = {TEST: table("test/accuracy", main)}
    return Measurement(tables | {name: table(*each) for name, each in (retention or {}).items()}, pd.DataFrame())


def test_difference_is_of_the_same_queries():
    hits = [mean(torch.tensor(values)) for values in ([0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0])]
    before, after = (TableMeasurement({}, "test/accuracy", {"test/accuracy": each}, None) for each in hits)
    found = find_differences(before, after)["test/accuracy"]
    assert found["value"] == 0.5
    assert found["low"] == 0.0
    expected = paired_difference(*hits)
    assert found == {**expected._asdict(), "verdict": expected.verdict}


def test_metrics_of_one_model_alone_have_no_difference():
    """A classifier's folder has no neighbours, and a calibration error no interval."""
    both = {"test/accuracy": mean(torch.tensor([0.0, 1.0]))}
    before = TableMeasurement(
        {"test/expected_calibration_error": 0.1}, "", both | {"test/knn_accuracy": mean(torch.ones(2))}, None
    )
    after = TableMeasurement({"test/expected_calibration_error": 0.2}, "", both, None)
    assert list(find_differences(before, after)) == ["test/accuracy"]


@pytest.mark.parametrize(
    "figure",
    [MeanAveragePrecision(torch.rand(3, 2), torch.zeros(3, 2).bool()), mean(torch.ones(1)), mean(torch.ones(0))],
)
def test_without_any_label_or_of_a_single_query_there_is_no_difference(figure):
    table = TableMeasurement({}, "test/accuracy", {"test/accuracy": figure}, None)
    assert find_differences(table, table) == {}


def test_losses_on_retention_tables():
    before = {"a": ("test/accuracy", 0.5), "b": ("test/mean_R@K", 0.2), "c": ("test/accuracy", 0.0)}
    after = {"a": ("test/accuracy", 0.25), "b": ("test/mean_R@K", 0.3), "c": ("test/accuracy", 0.1)}
    found = compare_retention(measurement(0.1, before), measurement(0.2, after))
    assert [table["relative_loss"] for table in found["tables"].values()] == [0.5, pytest.approx(-0.5), None]
    assert [(table["metric"], table["before"], table["after"]) for table in found["tables"].values()] == [
        ("test/accuracy", 0.5, 0.25),
        ("test/mean_R@K", 0.2, 0.3),
        ("test/accuracy", 0.0, 0.1),
    ]
    assert [table["difference"]["value"] for table in found["tables"].values()] == pytest.approx([-0.25, 0.1, 0.1])
    assert found["mean_relative_loss"] == pytest.approx(0)
    assert found["worst_relative_loss"] == 0.5


def test_a_retention_table_of_a_single_row_has_a_loss_and_no_interval():
    figures = {"test/accuracy": mean(torch.ones(1))}
    table = TableMeasurement({"test/accuracy": 1.0}, "test/accuracy", figures, pd.DataFrame())
    measured = Measurement({TEST: table, "one": table}, pd.DataFrame())
    found = compare_retention(measured, measured)
    assert found["tables"]["one"]["difference"] is None
    assert found["tables"]["one"]["relative_loss"] == 0


def test_tables_on_which_the_base_could_nothing_have_no_mean_loss():
    measured = measurement(0.5, {"a": ("test/accuracy", 0.0)})
    found = compare_retention(measured, measured)
    assert (found["mean_relative_loss"], found["worst_relative_loss"]) == (None, None)


def test_error_of_a_loss_is_that_of_the_mean_of_row_losses():
    hits = torch.arange(200) % 4 > 0, torch.arange(200) % 3 > 0
    before, after = (each.double() for each in hits)
    found = relative_loss(mean(before), mean(after))
    rows = (before - after).numpy() / before.mean().item()
    assert found.value == pytest.approx(rows.mean())
    assert found.error == pytest.approx(rows.std(ddof=1) / len(rows) ** 0.5, rel=0.1)


def test_a_fault_of_a_retention_table_is_named(tiny, colour_table, tmp_path):
    (tmp_path / "other.csv").write_text("image,label\nnone.png,a\n")
    data = ImageTextDataModule(
        Table(str(colour_table), label="label"), tiny, retention=[Table(str(tmp_path / "other.csv"), label="label")]
    )
    with pytest.raises(TableError, match="other.csv:2:image: Expected an image file"):
        data.retention["other"].rows.require("test")

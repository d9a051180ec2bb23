"""One model measured everywhere, and two measurements compared."""

import pytest
import torch

from finetune.core.errors import TableError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.evaluation.forgetting import compare, compare_elsewhere, compare_evaluations, measure
from finetune.metrics import value
from finetune.metrics.statistics import MeanAveragePrecision, mean
from finetune.training.task import AlignTask


@pytest.fixture
def data(colour_table, tiny) -> ImageTextDataModule:
    """Captions, with the same pictures as a table of labels for elsewhere."""
    return ImageTextDataModule(
        Table(str(colour_table), caption="caption", split="split"),
        tiny,
        retention=[Table(str(colour_table), label="label", split="split")],
        batch_size=5,
        templates=("never read for {}",),
    )


def test_elsewhere_is_measured_as_a_test_of_that_table_would(data, tiny, colour_table):
    task = AlignTask(tiny, None, None)
    found = measure("cpu", task, data)
    alone = ImageTextDataModule(Table(str(colour_table), label="label", split="split"), tiny)
    assert list(found.elsewhere) == ["colours"]
    expected = evaluate("cpu", task, alone).metrics["test/accuracy"]
    assert found.elsewhere["colours"].main == ("test/accuracy", pytest.approx(expected))
    assert found.evaluation.metrics == pytest.approx(evaluate("cpu", task, data).metrics)


def test_a_model_that_did_not_change_lost_nothing(data, tiny):
    found = measure("cpu", AlignTask(tiny, None, None), data)
    same = compare(found, found)
    assert same["drift"] == 0
    assert same["retention"]["worst_relative_loss"] == 0
    difference = same["retention"]["tables"]["colours"]["difference"]
    assert difference == {"value": 0, "low": 0, "high": 0, "verdict": "no clear difference"}
    differences = compare_evaluations(found.evaluation, found.evaluation)
    assert {difference["verdict"] for difference in differences.values()} == {"no clear difference"}


def test_a_model_that_was_broken_is_seen_to_be(data, tiny):
    whole, broken = AlignTask(tiny, None, None), AlignTask(tiny, None, None)
    with torch.no_grad():
        broken.towers.align.text_projection.weight.mul_(-1)
    before, after = (measure("cpu", task, data) for task in (whole, broken))
    assert compare(before, after)["drift"] > 0.001


def test_every_metric_has_a_figure_that_gives_its_value(data, tiny):
    found = evaluate("cpu", AlignTask(tiny, None, None), data)
    assert {name: float(value(figure)) for name, figure in found.figures.items()} == found.metrics


def test_a_calibration_error_has_no_interval_and_neighbours_have(labels, tiny):
    found = evaluate("cpu", AlignTask(tiny, None, None), labels, neighbours=3)
    assert found.metrics.keys() - found.figures.keys() == {"test/expected_calibration_error"}
    assert float(value(found.figures["test/knn_accuracy"])) == found.metrics["test/knn_accuracy"]
    without = evaluate("cpu", AlignTask(tiny, None, None), labels)
    assert "test/knn_accuracy" not in compare_evaluations(found, without)  # a classifier's folder has no neighbours


def test_difference_is_of_the_same_queries():
    hits = [mean(torch.tensor(values)) for values in ([0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0])]
    before, after = (Evaluation({}, None, {"test/accuracy": each}, "test/accuracy") for each in hits)
    found = compare_evaluations(before, after)["test/accuracy"]
    assert found["value"] == 0.5
    assert found["low"] == 0.0


@pytest.mark.parametrize(
    "figure",
    [MeanAveragePrecision(torch.rand(3, 2), torch.zeros(3, 2).bool()), mean(torch.ones(1)), mean(torch.ones(0))],
)
def test_without_any_label_or_of_a_single_query_there_is_no_difference(figure):
    evaluation = Evaluation({}, None, {"test/accuracy": figure}, "test/accuracy")
    assert compare_evaluations(evaluation, evaluation) == {}


def test_losses_elsewhere():
    before = {"a": ("test/accuracy", 0.5), "b": ("test/mean_R@K", 0.2), "c": ("test/accuracy", 0.0)}
    after = {"a": ("test/accuracy", 0.25), "b": ("test/mean_R@K", 0.3), "c": ("test/accuracy", 0.1)}
    found = compare_elsewhere(before, after)
    assert [table["relative_loss"] for table in found["tables"].values()] == [0.5, pytest.approx(-0.5), None]
    assert found["mean_relative_loss"] == pytest.approx(0)
    assert found["worst_relative_loss"] == 0.5


def test_a_fault_of_an_elsewhere_table_is_told(tiny, colour_table, tmp_path):
    (tmp_path / "other.csv").write_text("image,label\nnone.png,a\n")
    data = ImageTextDataModule(
        Table(str(colour_table), label="label"), tiny, retention=[Table(str(tmp_path / "other.csv"), label="label")]
    )
    with pytest.raises(TableError, match="other.csv:2:image: Expected an image file"):
        data.retention["other"].rows.require("test")

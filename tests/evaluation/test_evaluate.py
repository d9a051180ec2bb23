"""A model measured on the rows of a loader, against plain transformers and NumPy."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AlignModel, AlignProcessor

from finetune.core.errors import RecipeError
from finetune.core.shipped import shipped_recipes
from finetune.core.types import Answers
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.inference.models import RowModel, ZeroShot
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.retrieval import Retrieval
from finetune.pipeline.measure_again import measure_checkpoint
from finetune.pipeline.recipe import read_recipe


def score_by_hand(tiny, path, split) -> tuple[np.ndarray, list[str], list[str]]:
    """Zero-shot logits of a split's rows by transformers alone, the class names, and the rows' own."""
    model, processor = AlignModel.from_pretrained(tiny).eval(), AlignProcessor.from_pretrained(tiny)
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    names = sorted({row["label"] for row in rows})
    texts = [f"a photo of a {name}." for name in names]
    images = [Image.open(path.parent / row["image"]).convert("RGB") for row in rows]
    with torch.no_grad():
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
        return model(**inputs).logits_per_image.numpy(), names, [row["label"] for row in rows]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_rows_are_those_of_the_loader_in_its_order(ask, tiny, labels, colour_table, split):
    found, predictions = ask(labels, split)
    logits, names, truth = score_by_hand(tiny, colour_table, split)
    np.testing.assert_allclose(found.answers.class_scores.numpy(), logits, atol=1e-4 * np.abs(logits).max())
    assert found.answers.rows.tolist() == labels.rows.indices(split).tolist()
    predicted = [names[index] for index in logits.argmax(axis=1)]
    assert predictions["prediction"].tolist() == predicted
    assert predictions["label"].tolist() == truth
    assert found.metrics["test/accuracy"] == pytest.approx(np.mean(np.array(predicted) == truth))
    assert found.main == ("test/accuracy", found.metrics["test/accuracy"])


def test_any_rows_in_any_order(towers, labels, cpu):
    metric, chosen = labels.kind.metric(), np.array([7, 3, 11])
    found = evaluate(ZeroShot(towers, labels.class_prompts), labels.loader(chosen), metric, cpu)
    assert found.answers.rows.tolist() == [7, 3, 11]
    assert float(metric.compute()["accuracy"]) == found.metrics["test/accuracy"]


def test_one_file_is_not_named(ask, labels):
    assert list(ask(labels)[1]) == ["row", "label", "prediction", "score"]


def test_every_metric_that_has_a_figure_is_its_point_estimate(ask, labels):
    found, _ = ask(labels)
    assert found.metrics.keys() - found.figures.keys() == {"test/expected_calibration_error"}
    assert {name: found.metrics[name] for name in found.figures} == {
        name: float(figure.point_estimate()) for name, figure in found.figures.items()
    }


class Constant(RowModel):
    """Answers every row with the same."""

    def __init__(self, **answers):
        self.answers = answers
        self.device = None

    def to(self, device):
        self.device = device
        return self

    def __call__(self, batch):
        return Answers(batch.rows, batch.rows, batch.rows, batch.truth, **self.answers)


def test_rows_are_told_apart_however_many_there_are(batch, cpu):
    """Positions that float32 would round, beside features in half precision."""
    rows = torch.arange(2**24 + 1, 2**24 + 7)
    ones = torch.eye(6, 8, dtype=torch.bfloat16)
    model = Constant(image_features=ones, text_features=ones)
    found = evaluate(model, [batch._replace(rows=rows)], Retrieval(), cpu)
    assert found.answers.rows.equal(rows)
    assert found.answers.image_features.dtype == torch.float32
    assert model.device == cpu
    assert found.metrics["test/image_to_text/R@1"] == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["image_features", "text_features", "class_scores"])
def test_numbers_that_no_metric_can_rank_are_refused(batch, cpu, name, number):
    broken = torch.ones(6, 3)
    broken[2, 1] = number
    with pytest.raises(RecipeError, match="Expected finite numbers .* training has diverged"):
        evaluate(Constant(**{name: broken}), [batch], ClassAccuracy(), cpu)


def test_without_rows_there_is_nothing_to_measure(towers, labels, cpu):
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(ZeroShot(towers, labels.class_prompts), [], ClassAccuracy(), cpu)


def test_headline_names_the_metric_of_an_evaluation():
    found = Evaluation({"test/a": 0.25, "test/b": 0.5}, "test/b", {}, None)
    assert found.main == ("test/b", 0.5)


def test_neighbours_need_training_rows_and_a_number(colour_table, tiny, tmp_path):
    words = ["--model.checkpoint", tiny, "--data.table.caption", "null", "--data.table.label", "label"]
    words += ["--data.table.images", str(colour_table.parent), "--data.num_workers", "0", "--data.table.path"]
    path = tmp_path / "test.csv"
    frame = pd.read_csv(colour_table)
    frame[frame["split"] == "test"].to_csv(path, index=False)
    with pytest.raises(RecipeError, match=r"training rows in .*test.csv for run.neighbours 1, .*--run.neighbours null"):
        measure_checkpoint(read_recipe(shipped_recipes()["zero_shot"], [*words, str(path), "--run.neighbours", "1"]))
    with pytest.raises(RecipeError, match=r"Expected run\.neighbours to be at least 1 or null, but got 0\."):
        read_recipe(shipped_recipes()["zero_shot"], [*words, str(path), "--run.neighbours", "0"])

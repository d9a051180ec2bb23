"""A classifier's folder measured on a table."""

import pytest
import torch
from transformers import EfficientNetForImageClassification

from finetune.core.errors import TableError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.classifier_task import ClassifierTask
from finetune.evaluation.evaluate import evaluate
from finetune.export.classifier import build_classifier
from finetune.metrics import ClassAccuracy
from finetune.model.base import load_model
from finetune.model.head import Head


@pytest.fixture
def labels(colour_table, tiny) -> ImageTextDataModule:
    return ImageTextDataModule(Table(str(colour_table), label="label", split="split"), tiny, batch_size=8)


def write_classifier(tiny, folder, classes) -> EfficientNetForImageClassification:
    torch.manual_seed(0)
    weight = torch.randn(len(classes), 64)
    model = build_classifier(
        load_model(tiny), Head(weight, torch.zeros(len(classes)), classes, weight, torch.zeros(len(classes)))
    )
    model.save_pretrained(folder)
    return model


def test_metrics_and_predictions_are_those_of_the_folder(tmp_path, tiny, labels):
    model, metric, predicted = write_classifier(tiny, tmp_path, labels.rows.classes), ClassAccuracy(), []
    with torch.no_grad():
        for batch in labels.test_dataloader():
            logits = model(batch.pixel_values).logits
            metric.update(logits, batch.label_ids)
            predicted += [labels.rows.classes[index] for index in logits.argmax(dim=1)]
    found = evaluate("cpu", ClassifierTask(tmp_path), labels)
    assert found.metrics == pytest.approx({f"test/{name}": float(value) for name, value in metric.compute().items()})
    assert list(found.predictions["prediction"]) == predicted
    assert list(found.predictions.columns) == ["row", "label", "prediction", "score"]


def test_refuses_a_table_with_other_classes(tmp_path, tiny, labels):
    write_classifier(tiny, tmp_path, ("red", "green", "blue", "black", "white", "grey"))
    with pytest.raises(TableError, match=r"the classifier's 6 classes, red, .*, white, \.\.\., but got 3: "):
        evaluate("cpu", ClassifierTask(tmp_path), labels)

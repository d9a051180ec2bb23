"""Everything that is measured of a model: against scikit-learn, plain transformers and NumPy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from transformers import AlignModel, AlignProcessor, EfficientNetForImageClassification

from finetune.core.errors import TableError
from finetune.core.types import Answers
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.forgetting import find_differences
from finetune.evaluation.measure import KNN, measure_calibration, measure_rows, measure_towers
from finetune.export.choose_interpolation import Choice, Temperature
from finetune.inference.models import PlainClassifier
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.calibration import chance_calibration_error
from finetune.model.base import Base
from finetune.model.efficientnet import build_classifier
from finetune.model.head import LinearHead, require_classes
from finetune.run.measurement import TEST, read_measurement, write_measurement

from ..pixels import scaled


def embed(checkpoint, paths) -> np.ndarray:
    """Unit image embeddings by transformers alone."""
    model, processor = AlignModel.from_pretrained(checkpoint).eval(), AlignProcessor.from_pretrained(checkpoint)
    inputs = processor(images=[Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(**inputs).pooler_output.numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_neighbours_and_linear_probe_equal_scikit_learn_on_transformers_embeddings(
    colour_table, tiny, towers, labels, cpu
):
    frame = pd.read_csv(colour_table)
    embeds = {
        split: embed(tiny, [colour_table.parent / image for image in frame["image"][frame["split"] == split]])
        for split in ("train", "test")
    }
    known, truth = (frame["label"][frame["split"] == split] for split in ("train", "test"))
    found, answers = measure_towers(towers, labels, cpu, neighbours=3, with_linear_probe=True)
    voters = KNeighborsClassifier(3, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
    expected = (voters.fit(embeds["train"], known).predict(embeds["test"]) == truth).mean()
    assert found.test.metrics[KNN] == pytest.approx(expected)
    assert float(found.test.figures[KNN].point_estimate()) == found.test.metrics[KNN]
    linear = LogisticRegression(C=100.0, max_iter=2000).fit(embeds["train"], known)
    assert found.linear_probe["test/accuracy"] == pytest.approx(linear.score(embeds["test"], truth))
    assert answers.rows.tolist() == labels.rows.indices("test").tolist()
    plain, _ = measure_towers(towers, labels, cpu)
    assert plain.linear_probe is None
    assert plain.test.metrics == {key: value for key, value in found.test.metrics.items() if key != KNN}
    assert KNN not in find_differences(found.test, plain.test)  # nor has a classifier's folder neighbours


def test_a_calibration_error_has_no_interval_and_neighbours_have(towers, labels, cpu):
    found, _ = measure_towers(towers, labels, cpu, neighbours=3)
    assert found.test.metrics.keys() - found.test.figures.keys() == {"test/expected_calibration_error"}


def test_an_image_on_several_rows_has_one_vote(colour_table, tiny, towers, cpu, tmp_path):
    """Ten more rows of one training image would outvote the others."""
    frame = pd.read_csv(colour_table).assign(
        image=lambda table: [str(colour_table.parent / it) for it in table["image"]]
    )
    metrics = []
    for repeated in (0, 10):
        path = tmp_path / f"{repeated}.csv"
        pd.concat([frame, *[frame[frame["split"] == "train"][:1]] * repeated]).to_csv(path, index=False)
        data = ImageTextDataModule(Table(str(path), label="label", split="split", outside=True), tiny, batch_size=8)
        metrics.append(measure_towers(towers, data, cpu, neighbours=5)[0].test.metrics)
    assert metrics[0] == metrics[1]


@pytest.fixture
def captions(colour_table, tiny) -> ImageTextDataModule:
    """Captions, with the same pictures as a retention table of labels."""
    return ImageTextDataModule(
        Table(str(colour_table), caption="caption", split="split"),
        tiny,
        retention=[Table(str(colour_table), label="label", split="split")],
        batch_size=5,
        templates=("never read for {}",),
    )


def test_retention_is_measured_as_a_test_of_that_table_would_be(captions, ask, tiny, towers, colour_table, cpu):
    found, _ = measure_towers(towers, captions, cpu)
    alone = ImageTextDataModule(Table(str(colour_table), label="label", split="split"), tiny)
    assert list(found.retention) == ["colours"]
    expected = ask(alone)[0].metrics["test/accuracy"]
    assert found.retention["colours"].main == ("test/accuracy", pytest.approx(expected))
    assert found.test.metrics == pytest.approx(ask(captions)[0].metrics)


def test_captions_have_neither_neighbours_nor_linear_probe(captions, towers, cpu):
    found, _ = measure_towers(towers, captions, cpu, neighbours=3, with_linear_probe=True, with_probe=False)
    assert (found.linear_probe, found.probe) == (None, None)
    assert KNN not in found.test.metrics
    every = {name: float(figure.point_estimate()) for name, figure in found.test.figures.items()}
    assert every == found.test.metrics


def test_a_retention_table_may_be_called_test(colour_table, tiny, towers, cpu, tmp_path):
    frame = pd.read_csv(colour_table)
    frame["image"] = [str(colour_table.parent / image) for image in frame["image"]]
    frame[:7].assign(split="test").to_csv(tmp_path / "test.csv", index=False)
    retention = [Table(str(tmp_path / "test.csv"), label="label", split="split", outside=True)]
    table = Table(str(colour_table), label="label", split="split")
    found, _ = measure_towers(towers, ImageTextDataModule(table, tiny, retention=retention), cpu)
    alone, _ = measure_towers(towers, ImageTextDataModule(table, tiny), cpu)
    assert list(found.tables) == [TEST, "test"]
    assert found.test.metrics == alone.test.metrics
    assert (len(found.test.rows), len(found.retention["test"].rows)) == (9, 7)


def test_rows_say_what_was_measured(captions, towers, colour_table, cpu):
    found, _ = measure_towers(towers, captions, cpu)
    frame = pd.read_csv(colour_table, dtype=str)
    expected = frame[frame["split"] == "test"]
    for name, column in ((TEST, "caption"), ("colours", "label")):
        rows = found.tables[name].rows
        assert rows["image"].tolist() == expected["image"].tolist()
        assert rows["text"].tolist() == expected[column].tolist()
        assert rows["row"].tolist() == [str(index + 2) for index in expected.index]
        assert set(rows["file"]) == {"colours.csv"}


def test_predictions_name_the_file_where_there_are_several(colour_table, tiny, towers, cpu, tmp_path):
    frame = pd.read_csv(colour_table)
    halves = {"one.csv": frame[:20], "two.csv": frame[20:]}
    for name, half in halves.items():
        half.to_csv(tmp_path / name, index=False)
    table = Table(str(tmp_path / "*.csv"), label="label", split="split", images=str(colour_table.parent))
    measured, _ = measure_towers(towers, ImageTextDataModule(table, tiny), cpu)
    found = measured.predictions
    assert list(found) == ["row", "label", "prediction", "score", "file"]
    places = list(zip(found["row"], found["file"], strict=True))
    named = [halves[Path(file).name].iloc[row - 2]["label"] for row, file in places]
    assert found["label"].tolist() == named == frame["label"][frame["split"] == "test"].tolist()
    rows = measured.test.rows
    assert list(zip(rows["row"], rows["file"], strict=True)) == [(str(row), Path(file).name) for row, file in places]


def test_a_measurement_comes_back_from_its_files(captions, towers, cpu, tmp_path):
    found, _ = measure_towers(towers, captions, cpu)
    write_measurement(found, tmp_path / "after")
    again = read_measurement(tmp_path / "after")
    assert again.test.metrics == found.test.metrics
    assert find_differences(again.test, found.test) == find_differences(found.test, found.test)
    for name, table in found.tables.items():
        pd.testing.assert_frame_equal(again.tables[name].rows, table.rows)


def test_towers_in_training_are_measured_in_evaluation(towers, labels, cpu):
    found, _ = measure_towers(towers, labels, cpu)
    again, _ = measure_towers(towers.train(), labels, cpu)
    assert again.test.metrics == found.test.metrics
    assert not any(module.training for module in towers.modules())


def write_classifier(tiny, folder, classes) -> EfficientNetForImageClassification:
    torch.manual_seed(0)
    head = LinearHead(torch.randn(len(classes), 64), torch.zeros(len(classes)), classes)
    model = build_classifier(Base.open(tiny).load(), head)
    model.save_pretrained(folder)
    Base.open(tiny).processor().image_processor.save_pretrained(folder)
    return model


def test_metrics_and_predictions_of_a_classifier_are_those_of_its_folder(tmp_path, tiny, labels, cpu):
    model, metric, predicted = write_classifier(tiny, tmp_path, labels.rows.classes), ClassAccuracy(), []
    with torch.no_grad():
        for batch in labels.test_dataloader():
            logits = model(scaled(batch.pixel_values, labels.processor.image_processor)).logits
            metric.update(logits, batch.label_ids)
            predicted += [labels.rows.classes[index] for index in logits.argmax(dim=1)]
    found, answers = measure_rows(PlainClassifier(tmp_path), labels, cpu)
    expected = {f"test/{name}": float(value) for name, value in metric.compute().items()}
    assert found.test.metrics == pytest.approx(expected)
    assert list(found.predictions["prediction"]) == predicted
    assert list(found.predictions.columns) == ["row", "label", "prediction", "score"]
    assert (found.probe, found.linear_probe, found.retention) == (None, None, {})
    assert answers.class_scores.argmax(dim=1).tolist() == [labels.rows.classes.index(name) for name in predicted]


def test_a_table_with_other_classes_is_refused(tmp_path, tiny, labels):
    write_classifier(tiny, tmp_path, ("red", "green", "blue", "black", "white", "grey"))
    with pytest.raises(TableError, match=r"the classifier's 6 classes, red, .*, white, \.\.\., but got 3: "):
        require_classes(PlainClassifier(tmp_path).classes, labels.kind.classes)


def answer(scores, labels) -> Answers:
    """What a model with class scores says of rows with one label."""
    ids = torch.arange(len(labels))
    return Answers(ids, ids, ids, torch.from_numpy(labels), class_scores=torch.from_numpy(scores).float())


def test_calibration_is_measured_on_the_same_scores_at_both_temperatures():
    random = np.random.default_rng(0)
    scores, labels = random.normal(size=(200, 4)) * 3, random.integers(0, 4, 200)
    choice = Choice(1.0, Temperature(trained=0.02, fitted=0.05))
    found = measure_calibration(choice, answer(scores, labels))

    def error(logits):
        powers = np.exp(logits)
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        parts = [(sure >= low / 15) & (sure < (low + 1) / 15) for low in range(15)]
        return sum(part.mean() * abs(right[part].mean() - sure[part].mean()) for part in parts if part.any())

    assert found["temperature"] == {"trained": 0.02, "fitted": 0.05}
    assert "fitted_on" not in found
    counted = measure_calibration(Choice(1.0, Temperature(0.02, 0.05, rows=10)), answer(scores, labels))
    assert counted == {**found, "fitted_on": 10}
    assert found["expected_calibration_error"]["fitted"] == pytest.approx(error(scores), abs=1e-5)
    assert found["expected_calibration_error"]["trained"] == pytest.approx(error(scores * 0.05 / 0.02), abs=1e-5)
    for name, logits in {"fitted": scores, "trained": scores * 0.05 / 0.02}.items():
        sure = torch.from_numpy(logits).float().softmax(dim=1).amax(dim=1)
        assert found["of_a_calibrated_model"][name] == pytest.approx(chance_calibration_error(sure))
    assert len(found["bins"]) == 15
    assert found["bins"][-1].keys() == {"confidence", "accuracy", "share"}


def test_without_a_fitted_temperature_or_scores_there_is_no_calibration():
    answers = answer(np.zeros((3, 2)), np.zeros(3, dtype=int))
    assert measure_calibration(Choice(1.0), answers) is None
    fitted = Choice(1.0, Temperature(0.02, 0.05))
    assert measure_calibration(fitted, answers._replace(class_scores=None)) is None
    assert measure_calibration(fitted, answers) is not None

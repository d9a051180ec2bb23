"""The linear probe where classes are alone, or where training rows lack some: of one label a row, and of several."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from transformers import AlignModel

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.measure import measure_towers

from ..pixels import scaled


@pytest.mark.filterwarnings("ignore:Label .* is present in all training examples")
@pytest.mark.parametrize("classes", [["red"], ["all", "late", "red"]])
def test_each_label_has_a_classifier_of_its_own(tiny, towers, cpu, colour_table, tmp_path, classes):
    """`all` is on every training row, and `late` on none: such a class scores all images alike."""
    frame = pd.read_csv(colour_table, dtype=str)
    is_test = frame["split"] == "test"
    truth = pd.DataFrame({"all": ~is_test | (frame.index % 2 == 0), "late": is_test, "red": frame["label"] == "red"})
    cells = truth[classes].apply(lambda row: " ".join(name for name in classes if row[name]), axis=1)
    frame.assign(labels=cells).to_csv(tmp_path / "t.csv", index=False)
    images = str(colour_table.parent)
    table = Table(str(tmp_path / "t.csv"), label="labels", label_separator=" ", split="split", images=images)
    data = ImageTextDataModule(table, tiny)
    found = measure_towers(towers, data, cpu, with_linear_probe=True)[0].linear_probe

    model = AlignModel.from_pretrained(tiny)
    embeds = {}
    for split in ("train", "test"):
        pixels = scaled(torch.cat([batch.pixel_values for batch in data.loader(split)]), data.processor.image_processor)
        with torch.no_grad():
            features = model.get_image_features(pixel_values=pixels).pooler_output
        embeds[split] = torch.nn.functional.normalize(features, dim=-1).numpy()
    expected = {}
    for name in classes:
        train, test = (truth[name][frame["split"] == split].to_numpy() for split in ("train", "test"))
        scores = np.zeros(len(test))
        if train.any() and not train.all():
            scores = (
                LogisticRegression(C=100.0, max_iter=2000).fit(embeds["train"], train).decision_function(embeds["test"])
            )
        expected[f"test/average_precision/{name}"] = average_precision_score(test, scores)
    assert {name: value for name, value in found.items() if "/average_" in name} == pytest.approx(expected, abs=1e-4)
    assert found["test/mean_average_precision"] == pytest.approx(np.mean(list(expected.values())), abs=1e-4)


@pytest.mark.parametrize("known", [["blue", "red"], ["red"]])
def test_a_class_that_no_training_row_has_is_never_predicted(tiny, towers, cpu, colour_table, tmp_path, known):
    frame = pd.read_csv(colour_table, dtype=str)
    kept = frame[(frame["split"] != "train") | frame["label"].isin(known)]
    kept.to_csv(tmp_path / "t.csv", index=False)
    table = Table(str(tmp_path / "t.csv"), label="label", split="split", images=str(colour_table.parent))
    data = ImageTextDataModule(table, tiny)
    found = measure_towers(towers, data, cpu, with_linear_probe=True)[0].linear_probe

    model, embeds, truth = AlignModel.from_pretrained(tiny), {}, {}
    for split in ("train", "test"):
        pixels = scaled(torch.cat([batch.pixel_values for batch in data.loader(split)]), data.processor.image_processor)
        with torch.no_grad():
            features = model.get_image_features(pixel_values=pixels).pooler_output
        embeds[split] = torch.nn.functional.normalize(features, dim=-1).numpy()
        truth[split] = kept["label"][kept["split"] == split].to_numpy()
    predicted = np.full(len(truth["test"]), known[0])
    if len(known) > 1:
        model = LogisticRegression(C=100.0, max_iter=2000).fit(embeds["train"], truth["train"])
        predicted = model.predict(embeds["test"])
    assert len({*truth["test"]}) > len(known)
    assert found["test/accuracy"] == pytest.approx((predicted == truth["test"]).mean())

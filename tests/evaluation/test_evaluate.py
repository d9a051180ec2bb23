"""A checkpoint measured on tables: in several files, with neighbours, with several captions for each image."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from transformers import AlignModel, AlignProcessor

from finetune.core.errors import RecipeError
from finetune.core.shipped import shipped_recipes
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.evaluate import Collect, evaluate
from finetune.pipeline.experiment import measure_checkpoint
from finetune.pipeline.recipe import read_recipe
from finetune.training.task import AlignTask


def embed(checkpoint, paths) -> np.ndarray:
    """Unit image embeddings by transformers alone."""
    model, processor = AlignModel.from_pretrained(checkpoint).eval(), AlignProcessor.from_pretrained(checkpoint)
    inputs = processor(images=[Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(**inputs).pooler_output.numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_neighbours_and_floor_equal_scikit_learn_on_transformers_embeddings(colour_table, tiny, labels):
    frame = pd.read_csv(colour_table)
    embeds = {
        split: embed(tiny, [colour_table.parent / image for image in frame["image"][frame["split"] == split]])
        for split in ("train", "test")
    }
    known, truth = (frame["label"][frame["split"] == split] for split in ("train", "test"))
    found = evaluate("cpu", AlignTask(tiny, None, None), labels, neighbours=3, floor=True)
    voters = KNeighborsClassifier(3, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
    expected = (voters.fit(embeds["train"], known).predict(embeds["test"]) == truth).mean()
    assert found.metrics["test/knn_accuracy"] == pytest.approx(expected)
    linear = LogisticRegression(C=100.0, max_iter=2000).fit(embeds["train"], known)
    assert found.floor["test/accuracy"] == pytest.approx(linear.score(embeds["test"], truth))
    plain = evaluate("cpu", AlignTask(tiny, None, None), labels)
    assert plain.floor is None
    assert plain.metrics == {key: value for key, value in found.metrics.items() if key != "test/knn_accuracy"}


def test_an_image_on_several_rows_has_one_vote(colour_table, tiny, tmp_path):
    """Ten more rows of one training image would outvote the others."""
    frame = pd.read_csv(colour_table).assign(
        image=lambda table: [str(colour_table.parent / it) for it in table["image"]]
    )
    metrics = []
    for repeated in (0, 10):
        path = tmp_path / f"{repeated}.csv"
        pd.concat([frame, *[frame[frame["split"] == "train"][:1]] * repeated]).to_csv(path, index=False)
        data = ImageTextDataModule(Table(str(path), label="label", split="split"), tiny, batch_size=8)
        metrics.append(evaluate("cpu", AlignTask(tiny, None, None), data, neighbours=5).metrics)
    assert metrics[0] == metrics[1]


def test_predictions_name_the_file_where_there_are_several(colour_table, tiny, tmp_path):
    frame = pd.read_csv(colour_table)
    halves = {"one.csv": frame[:20], "two.csv": frame[20:]}
    for name, half in halves.items():
        half.to_csv(tmp_path / name, index=False)
    table = Table(str(tmp_path / "*.csv"), label="label", split="split", images=str(colour_table.parent))
    found = evaluate("cpu", AlignTask(tiny, None, None), ImageTextDataModule(table, tiny)).predictions
    assert list(found) == ["row", "label", "prediction", "score", "file"]
    places = zip(found["row"], found["file"], strict=True)
    told = [halves[Path(file).name].iloc[row - 2]["label"] for row, file in places]
    assert found["label"].tolist() == told == frame["label"][frame["split"] == "test"].tolist()


def test_one_file_is_not_named(tiny, labels):
    found = evaluate("cpu", AlignTask(tiny, None, None), labels).predictions
    assert list(found) == ["row", "label", "prediction", "score"]


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


def test_rows_are_told_apart_however_many_there_are():
    collect, rows = Collect(), torch.tensor([2**24 + 1, 2**24 + 3])  # which float32 would round
    collect.on_test_batch_end(None, None, {"rows": rows, "image_features": torch.ones(2, 4, dtype=torch.bfloat16)})
    assert torch.equal(collect.joined("rows"), rows)
    assert collect.joined("image_features").dtype == torch.float32

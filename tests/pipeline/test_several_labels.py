"""A whole run on a table with several labels an image: its figures, computed again from the folders it exports."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score
from torch.optim import AdamW
from transformers import AlignModel, AlignProcessor, AutoImageProcessor, AutoModelForImageClassification, pipeline

from finetune import classify
from finetune.commands.cli import main
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.lora import TowerLora
from finetune.run.folder import RunFolder
from finetune.training.classification_task import ClassificationTask
from finetune.training.head_start import FromProbe
from finetune.training.task import AlignTask

pytestmark = pytest.mark.usefixtures("share_opener")

CLASSES = ("blue", "green", "red")
SPLITS = ("train", "train", "val", "test")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """48 pictures that are noise with red, green and blue quarters, every eighth without any."""
    folder = tmp_path_factory.mktemp("quarters")
    random = np.random.default_rng(0)
    lines = ["image,colours,split"]
    for index in range(48):
        pixels = random.integers(0, 80, (32, 32, 3), dtype=np.uint8)
        shown = random.permutation(3)[: index // 4 % 4]
        for corner, colour in zip(random.permutation(4), shown, strict=False):
            y, x = 16 * (corner // 2), 16 * (corner % 2)
            pixels[y : y + 16, x : x + 16, colour] += 170
        Image.fromarray(pixels).save(folder / f"{index}.png")
        labels = ";".join(("red", "green", "blue")[colour] for colour in shown)
        lines.append(f"{index}.png,{labels},{SPLITS[index % 4]}")
    path = folder / "quarters.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def run(tiny, table, tmp_path_factory) -> RunFolder:
    """A run of a head on the tower as it is."""
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "several.yaml"
    recipe.write_text(
        f"model:\n  class_path: finetune.ClassificationTask\n  init_args:\n"
        f"    checkpoint: {tiny}\n    image_lora: null\n"
        f'data:\n  table:\n    path: {table}\n    label: colours\n    label_separator: ";"\n    split: split\n'
        "  batch_size: 8\n"
        f"trainer:\n  max_epochs: 3\n  accelerator: cpu\nrun:\n  folder: {folder}\n"
    )
    assert main(["fit", "--config", str(recipe)]) == 0
    return RunFolder(folder / "several")


def images_and_targets(table: Path, split: str) -> tuple[list[Image.Image], np.ndarray]:
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    frame = frame[frame["split"] == split]
    images = [Image.open(table.parent / name).convert("RGB") for name in frame["image"]]
    return images, np.array([[name in cell.split(";") for name in CLASSES] for cell in frame["colours"]])


def figures(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    by_class = average_precision_score(targets, scores, average=None)
    has_label = targets.any(axis=1)
    by_image = label_ranking_average_precision_score(targets[has_label], scores[has_label])
    return {
        "test/mean_average_precision": float(by_class.mean()),
        "test/label_ranking_average_precision": float(by_image),
        **{f"test/average_precision/{name}": float(value) for name, value in zip(CLASSES, by_class, strict=True)},
    }


@torch.no_grad()
def classifier_logits(run: RunFolder, table: Path) -> np.ndarray:
    images, _ = images_and_targets(table, "test")
    processor = AutoImageProcessor.from_pretrained(run.classifier, backend="pil")
    model = AutoModelForImageClassification.from_pretrained(run.classifier)
    return model(**processor(images=images, return_tensors="pt")).logits.numpy()


def test_after_is_what_scikit_learn_makes_of_the_classifiers_logits(run, table):
    metrics = json.loads(run.metrics.read_text())
    assert list(metrics) == ["before", "linear probe", "after", "difference"]
    expected = figures(classifier_logits(run, table), images_and_targets(table, "test")[1])
    assert metrics["after"] == pytest.approx(expected, abs=1e-6)


def test_classify_measures_the_run_by_the_labels_of_a_table(run, table, tmp_path, capsys):
    """An empty cell says that an image has none; one whose rows differ is not counted."""
    own = shutil.copytree(table.parent, tmp_path / "own")
    rows = pd.read_csv(table, dtype=str, keep_default_na=False).query("split == 'test'")
    more = pd.DataFrame({"image": "0.png", "colours": ["red", "blue"]})
    pd.concat([rows, more]).to_csv(own / "test.csv", index=False)
    assert main(["classify", str(run.path), str(own / "test.csv"), "--truth", "colours"]) == 0
    shown = capsys.readouterr().out
    after = json.loads(run.metrics.read_text())["after"]
    assert "\nnot counted 1 image of which rows say different things\n" in shown
    assert f"\nmean_average_precision {after['test/mean_average_precision']:.4f} of 12 labelled images\n" in shown
    rows["image"] = [str(table.parent / name) for name in rows["image"]]
    truth = [set(cell.split(";")) - {""} for cell in rows["colours"]]
    found = classify(run.classifier, rows["image"].tolist(), truth=truth)
    assert {f"test/{name}": figure for name, figure in found.metrics.items()} == pytest.approx(after, abs=1e-6)
    assert found.metrics == classify(run.classifier, rows, truth="colours", label_separator=";").metrics


@torch.no_grad()
def test_before_is_what_scikit_learn_makes_of_plain_transformers(run, table, tiny):
    images, targets = images_and_targets(table, "test")
    model, processor = AlignModel.from_pretrained(tiny), AlignProcessor.from_pretrained(tiny, backend="pil")
    texts = [f"a photo of a {name}." for name in CLASSES]
    logits = model(**processor(images=images, text=texts, return_tensors="pt")).logits_per_image.numpy()
    assert json.loads(run.metrics.read_text())["before"] == pytest.approx(figures(logits, targets), abs=1e-6)


@torch.no_grad()
def test_linear_probe_is_one_logistic_regression_for_each_label(run, table, tiny):
    model, processor = AlignModel.from_pretrained(tiny), AlignProcessor.from_pretrained(tiny, backend="pil")

    def embed(split: str) -> tuple[np.ndarray, np.ndarray]:
        images, targets = images_and_targets(table, split)
        features = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        return torch.nn.functional.normalize(features, dim=-1).numpy(), targets

    (train, train_targets), (test, test_targets) = embed("train"), embed("test")
    linear = [LogisticRegression(C=100.0, max_iter=2000).fit(train, column) for column in train_targets.T]
    scores = np.stack([each.decision_function(test) for each in linear], axis=1)
    found = json.loads(run.metrics.read_text())["linear probe"]
    assert found == pytest.approx(figures(scores, test_targets), abs=0.02)  # nearly equal scores may change places


def test_predictions_are_the_best_labels_and_their_logits(run, table):
    logits, cells = classifier_logits(run, table), pd.read_csv(table, dtype=str, keep_default_na=False)
    with run.predictions.open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["row", "label", "prediction", "score", "before"]
    assert len(lines) == 12
    for line, scores in zip(lines, logits, strict=True):
        row = cells.iloc[int(line["row"]) - 2]
        assert row["split"] == "test"
        assert line["label"].split(";") == sorted(row["colours"].split(";"))
        order = np.argsort(-scores)
        assert line["prediction"].split(";") == [CLASSES[index] for index in order]
        assert [float(value) for value in line["score"].split(";")] == pytest.approx(scores[order].tolist(), abs=1e-3)


def test_pipeline_gives_each_label_a_probability_of_its_own(run, table):
    assert json.loads((run.classifier / "config.json").read_text())["problem_type"] == "multi_label_classification"
    classify = pipeline("image-classification", model=str(run.classifier))
    logits = classifier_logits(run, table)
    for image, scores in zip(images_and_targets(table, "test")[0][:3], logits, strict=False):
        found = {entry["label"]: entry["score"] for entry in classify(image)}
        expected = 1 / (1 + np.exp(-scores))
        assert found == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-4)
        assert not np.isclose(sum(found.values()), 1)


def test_the_weights_kept_are_the_latest_of_the_best_mean_average_precision(run):
    logged = pd.read_csv(run.path / "metrics.csv")["val/mean_average_precision"].dropna()
    saved = torch.load(run.checkpoints / "best.ckpt", map_location="cpu", weights_only=True)
    (state,) = (state for name, state in saved["callbacks"].items() if "mean_average_precision" in name)
    assert len(logged) == 3
    assert float(state["best_model_score"]) == pytest.approx(latest_best(logged, rows=12), abs=1e-6)


def latest_best(values, rows):
    """The last value that was, when it came, within a standard error of the highest until then."""
    highest = np.maximum.accumulate(values.to_numpy())
    return values[values >= highest - np.sqrt(highest * (1 - highest) / rows)].iloc[-1]


def test_training_with_prompts_learns_the_labels(tiny, table, build_trainer):
    """One drawn label of each image as its text: the pictures trained on are told apart."""
    data = ImageTextDataModule(
        Table(str(table), label="colours", label_separator=";", split="split"), tiny, batch_size=12
    )
    task = AlignTask(tiny, TowerLora(rank=8), TowerLora(rank=8), optimizer=lambda groups: AdamW(groups, lr=5e-3))
    trainer = build_trainer(max_epochs=4)
    before = trainer.test(task, data, verbose=False)[0]["test/mean_average_precision"]
    trainer.fit(task, data)
    assert trainer.test(task, data, verbose=False)[0]["test/mean_average_precision"] > before + 0.1


def test_head_may_start_from_a_probe_of_its_labels(tiny, table, build_trainer):
    """The probe alone, on rows it never saw, before anything is trained."""
    data = ImageTextDataModule(
        Table(str(table), label="colours", label_separator=";", split="split"), tiny, batch_size=12
    )
    task = ClassificationTask(tiny, None, head_start=FromProbe(), optimizer=lambda groups: AdamW(groups, lr=0.0))
    trainer = build_trainer(max_steps=1)
    before = trainer.test(task, data, verbose=False)[0]["test/mean_average_precision"]
    trainer.fit(task, data)
    assert trainer.test(task, data, verbose=False)[0]["test/mean_average_precision"] > before + 0.1

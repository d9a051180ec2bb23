"""Folders of runs as `finetune fit` leaves them, made here so that each fact can be chosen."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

VOID = {"meta", "img", "br", "wbr"}
LABELS = ("ant", "bee", "cow")


@dataclass
class Element:
    """A parsed element; `text` is all text in it."""

    tag: str
    attributes: dict[str, str | None]
    parents: tuple["Element", ...]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """A strict reader: every element that is opened is closed, in order."""

    html: str
    elements: list[Element] = field(default_factory=list)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)
        self.open = []
        self.feed(self.html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), tuple(self.open))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def all(self, *tags):
        return [element for element in self.elements if element.tag in tags]

    def inside(self, parent, *tags):
        return [element for element in self.all(*tags) if parent in element.parents]

    def table(self, caption):
        """The cells of the only table with this caption, by line."""
        (found,) = [it for it in self.all("caption") if it.text == caption]
        lines = self.inside(found.parents[-1], "tr")
        return [[cell.text for cell in self.inside(line, "th", "td")] for line in lines]

    def section(self, anchor):
        (found,) = [it for it in self.all("section") if it.attributes["id"] == anchor]
        return found

    @property
    def anchors(self):
        return [it.attributes["id"] for it in self.all("section")]


@cache
def draw_images(count: int) -> list[bytes]:
    """Noise on a level that gives away the number, so that a test recognises the image; PNG, drawn once."""
    generator, files = np.random.default_rng(0), []
    for index in range(count):
        pixels = generator.integers(0, 20, (200, 300, 3)) + 6 * index
        Image.fromarray(pixels.astype(np.uint8)).save(file := BytesIO(), "PNG", compress_level=1)
        files.append(file.getvalue())
    return files


def write_images(folder: Path, count: int) -> list[str]:
    for index, content in enumerate(draw_images(count)):
        (folder / f"{index}.png").write_bytes(content)
    return [f"{index}.png" for index in range(count)]


def write_run(folder: Path, table: pd.DataFrame, predictions: pd.DataFrame, metrics: dict, text: str) -> Path:
    """A run's folder, beside its table `table.csv`; `text` is the column of labels or captions."""
    path = folder / "table.csv"
    table.to_csv(path, index=False, lineterminator="\n")
    run = folder / "runs" / "insects"
    (run / "merged").mkdir(parents=True)
    settings = {"path": str(path), text: text, "split": "split"}
    data = {"class_path": "finetune.ImageTextDataModule", "init_args": {"table": settings}}
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
    environment = {
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "platform": "Linux",
        "device": "cpu",
        "table": [{"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}],
        "checkpoint": {"name": "owner/base", "sha256": "ab" * 32},
    }
    proof = {
        "max_abs_difference": {"image": 3e-7, "text": 1e-7},
        "tolerance": 1e-5,
        "sha256": {"model": "cd" * 32},
        "versions": {"transformers": "5.23.0"},
        "identical_to_base": {"image": False, "text": True},
    }
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "merged" / "merge_proof.json").write_text(json.dumps(proof))
    (run / "merged" / "README.md").write_text("# insects\n\n```python\nopen('merged')\n```\n")
    predictions.to_csv(run / "predictions.csv", index=False, lineterminator="\n")
    steps = np.arange(0, 1000)
    logged = pd.DataFrame({"step": steps, "train/loss": 2.0 - steps / 1000, "train/temperature": 0.05})
    validated = pd.DataFrame({"step": [499, 999], "val/loss": [1.4, 1.1], "val/accuracy": [0.25, 0.75]})
    pd.concat([logged, validated]).to_csv(run / "metrics.csv", index=False)
    return run


FALLING, TEXT = {"image": [1.0, 0.5], "text": [0.3, 0.3]}, {"image": [0.0, 0.0], "text": [1.0, 1.0]}
SURE = {"target_error": 0.02}
METRICS = {
    "before": {"test/accuracy": 0.25, "test/accuracy_top5": 0.5, "test/mean_per_class_recall": 0.25},
    "linear probe": {"test/accuracy": 0.615, "test/accuracy_top5": 1.0, "test/mean_per_class_recall": 0.6},
    "after": {"test/accuracy": 0.7547, "test/accuracy_top5": 1.0, "test/mean_per_class_recall": 0.7},
    "drift": 0.0625,
    "notices": [{"about": "loss", "message": "The loss stayed at chance & fell later.", "places": []}],
    "retention": {
        "tables": {
            "photos": {
                "metric": "test/mean_R@K",
                "before": 0.4,
                "after": 0.3,
                "relative_loss": 0.25,
                "difference": {"value": -0.1, "low": -0.15, "high": -0.04, "verdict": "lower"},
            },
            "maps": {"metric": "test/accuracy", "before": 0.2, "after": 0.25, "relative_loss": -0.25},
        },
        "mean_relative_loss": 0.0,
        "worst_relative_loss": 0.25,
    },
    "difference": {
        "test/accuracy": {"value": 0.5047, "low": 0.4125, "high": 0.6061, "verdict": "higher"},
        "test/accuracy_top5": {"value": 0.5, "low": -0.01, "high": 0.9, "verdict": "no clear difference"},
    },
    "interpolation": {
        "chosen": 0.75,
        "max_retention_loss": 0.1,
        "curve": [
            {"interpolation": 0.0, "target": 0.25, "retention_loss": 0.0, "retention_error": 0.0, **SURE},
            {"interpolation": 0.75, "target": 0.7, "retention_loss": 0.09, "retention_error": 0.03, **SURE},
            {"interpolation": 1.0, "target": 0.75, "retention_loss": 0.25, "retention_error": 0.04, **SURE},
        ],
        "profiles": [
            {"interpolation": FALLING, "target": 0.71, "retention_loss": 0.08, "retention_error": 0.03, **SURE},
            {"interpolation": TEXT, "target": 0.71, "retention_loss": 0.1, "retention_error": 0.03, **SURE},
        ],
    },
    "calibration": {
        "temperature": {"trained": 0.0512, "fitted": 0.0731},
        "expected_calibration_error": {"trained": 0.123, "fitted": 0.034},
        "of_a_calibrated_model": {"trained": 0.021, "fitted": 0.022},
        "bins": [
            {"confidence": 0.35, "accuracy": 0.4, "share": 0.25},
            {"confidence": None, "accuracy": None, "share": 0.0},
            {"confidence": 0.9, "accuracy": 0.85, "share": 0.75},
        ],
    },
}


@pytest.fixture
def label_run(tmp_path) -> Path:
    """A run on a table with labels, with every fact that a run can have."""
    count = 40
    generator = np.random.default_rng(1)
    labels, said, before = (generator.choice(LABELS, count) for _ in range(3))
    said = np.where(generator.random(count) < 0.5, labels, said)
    splits = ["train", *["test"] * (count - 1)]
    table = pd.DataFrame({"image": write_images(tmp_path, count), "label": labels, "split": splits})
    predictions = pd.DataFrame(
        {
            "row": np.arange(3, count + 2),
            "label": labels[1:],
            "prediction": said[1:],
            "score": generator.random(count - 1).round(4),
            "before": before[1:],
        }
    )
    return write_run(tmp_path, table, predictions, METRICS, "label")


@pytest.fixture
def caption_run(tmp_path) -> Path:
    """A run on a table with captions, with the fewest facts."""
    count = 20
    captions = [f"picture number {index}" for index in range(count)]
    table = pd.DataFrame({"image": write_images(tmp_path, count), "caption": captions, "split": "test"})
    ranks = np.arange(1.0, count + 1)
    rows = np.arange(2, count + 2)
    found = [2, *rows[-2::-1]]
    predictions = pd.DataFrame(
        {
            "row": rows,
            "caption": captions,
            "prediction": [*captions[:0:-1], captions[-1]],
            "score": np.linspace(0.5, 0.6, count),
            "similarity": np.linspace(0.4, 0.1, count),
            "image_to_text_rank": ranks[::-1],
            "text_to_image_rank": ranks,
            "retrieved": [f"{tmp_path / 'table.csv'}:{row}" for row in found],
            "before": "picture number 7",
        }
    )
    rates = {f"test/{way}/R@1": rate for way, rate in (("image_to_text", 0.05), ("text_to_image", 0.1))}
    metrics = {"before": rates, "after": rates, "difference": {}}
    return write_run(tmp_path, table, predictions, metrics, "caption")

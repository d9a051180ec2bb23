"""The README's examples for Python, run as they stand there."""

import csv
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AlignModel, AlignProcessor

from finetune.core.types import Batch, Embeddings
from finetune.objectives import Objective
from finetune.training.task import AlignTask

README = Path(__file__).parents[1] / "README.md"


def read_example(word: str) -> str:
    """The one block of code that holds a word."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (textwrap.dedent(block) for block in blocks if word in block)
    return code


def run_example(code: str) -> dict[str, Any]:
    """The names that there are once some code has run."""
    found: dict[str, Any] = {}
    exec(code, found)
    return found


@pytest.fixture
def names() -> dict[str, Any]:
    """The names that the example of `AlignTask` has once the subclass is defined."""
    return run_example(read_example("class HardTask").partition("data = ")[0])


def test_subclass_trains_on_a_table_of_captions(tmp_path, monkeypatch, colour_table, names):
    with colour_table.open(newline="") as file:
        lines = [[row["image"], row["caption"]] for row in csv.DictReader(file)]
    for image, _ in lines:
        shutil.copy(colour_table.parent / image, tmp_path)
    with (tmp_path / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *lines])
    monkeypatch.chdir(tmp_path)
    exec("data = " + read_example("class HardTask").partition("data = ")[2], names)
    (path,) = tmp_path.glob("lightning_logs/version_0/checkpoints/epoch=0-step=*.ckpt")
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)


def test_subclass_counts_hard_rows_twice(tiny, batch, names):
    task: AlignTask = names["HardTask"](tiny)
    embeddings = task(batch)
    hard = []
    for row, text in enumerate(embeddings.text_embeds):
        similarities = [float(image @ text) for image in embeddings.image_embeds]
        hard.append(similarities[row] < max(similarities))
    assert any(hard)
    expected = task.objective(embeddings, batch._replace(weights=1.0 + torch.tensor(hard)))
    assert task.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() != pytest.approx(task.objective(embeddings, batch).item(), rel=1e-3)


class SumOfWeights(Objective):
    """Only adds, as the device without data has no autocast."""

    def forward(self, embeddings: Embeddings, batch: Batch) -> torch.Tensor:
        return batch.weights.sum()


def test_subclass_keeps_to_the_device_of_its_batch(monkeypatch, tiny, batch, names):
    """A device without data stands for a GPU: torch compares nothing that lies there with what lies elsewhere."""
    task: AlignTask = names["HardTask"](tiny, objective=SumOfWeights())
    embeddings = Embeddings(*(tensor.to("meta") for tensor in task(batch)))
    monkeypatch.setattr(task, "forward", lambda _: embeddings)  # the text tower reads a number off its mask
    loss = task.training_step(Batch(*(tensor.to("meta") for tensor in batch)), 0)
    assert loss.device.type == "meta"


def test_classifying_subclass_trains_and_counts_sure_rows_less(tiny, labels, build_trainer):
    task = run_example(read_example("class FocusedTask"))["FocusedTask"](tiny)
    build_trainer(max_epochs=1).fit(task, labels)
    rows = next(iter(labels.val_dataloader()))
    with torch.no_grad():
        embeddings = task(rows)
        found = task.loss(embeddings, rows).item()
    weight, bias = (getattr(task.head, name).detach().double().numpy() for name in ("weight", "bias"))
    logits = embeddings.image_features.double().numpy() @ weight.T + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure = (odds / odds.sum(axis=1, keepdims=True))[np.arange(len(odds)), rows.label_ids.numpy()]
    assert found == pytest.approx(np.average(-np.log(sure), weights=1 - sure), rel=1e-4)
    assert found != pytest.approx(float(np.mean(-np.log(sure))), rel=1e-3)


def test_base_loads_the_model_and_its_processor():
    names = run_example(read_example("Base.open"))
    expected = AlignModel.from_pretrained(names["base"].folder).state_dict()
    assert names["model"].state_dict().keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in names["model"].state_dict().items())
    assert isinstance(names["processor"], AlignProcessor)
    assert names["processor"].image_processor.crop_size["height"] == 64

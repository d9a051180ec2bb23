"""The README's subclass of the task, run as it stands there."""

import csv
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.core.types import Batch, Embeddings
from finetune.objectives import Objective
from finetune.training.task import AlignTask

README = Path(__file__).parents[1] / "README.md"


def read_example() -> tuple[str, str]:
    """The code of the README's subclass, and that which trains it."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (textwrap.dedent(block) for block in blocks if "class HardTask" in block)
    define, data, train = code.partition("data = ")
    return define, data + train


@pytest.fixture
def names() -> dict[str, Any]:
    """The names that the example has once the subclass is defined."""
    found: dict[str, Any] = {}
    exec(read_example()[0], found)
    return found


def test_subclass_trains_on_a_table_of_captions(tmp_path, monkeypatch, colour_table, names):
    with colour_table.open(newline="") as file:
        lines = [[str(colour_table.parent / row["image"]), row["caption"]] for row in csv.DictReader(file)]
    with (tmp_path / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *lines])
    monkeypatch.chdir(tmp_path)
    exec(read_example()[1], names)
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

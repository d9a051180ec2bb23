"""Gradients of a batch that processes share, beside those of one process with the whole batch; started by a test.

    torchrun --nproc-per-node=3 shared_batch.py CHECKPOINT FOUND.json float64 [CASE ...]

Writes for each case, as each process sees it, how far the two are apart, how much of that is rounding, and which
gradients only one side has.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune.core import processes
from finetune.core.types import Batch, Embeddings
from finetune.model.head import LinearHead
from finetune.model.lora import TowerLora
from finetune.objectives import Contrastive, CrossEntropy, Objective, Sigmoid, objective
from finetune.training.classification_task import ClassificationTask
from finetune.training.data_parallel import average_gradients
from finetune.training.preservation import ImagePreservation, TextPreservation
from finetune.training.task import AlignTask

LORA, CLASSES = TowerLora(rank=2), 4
TEMPERATURE = "towers.model.base_model.model.temperature"


class Nearest(Objective):
    """A user's loss, which knows nothing of parts: the hardest text of each image."""

    def forward(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        similarities = embeddings.image_embeds @ embeddings.text_embeds.T / embeddings.temperature
        own = similarities.diagonal()
        return ((similarities - own[:, None]).amax(1) * batch.weights.to(own.dtype)).sum() / len(batch.rows)


class Spare(AlignTask):
    """Has a parameter that no loss reaches, and one that the rows of some processes alone reach."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(checkpoint, LORA, LORA)
        self.unused, self.seldom = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def loss(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        loss = super().loss(embeddings, batch)
        if processes.count() == 1:
            return loss + self.seldom.sum()
        return loss + processes.count() * self.seldom.sum() if processes.is_first() else loss


def make_batch(rows: int, labels: bool = False, several: bool = False) -> Batch:
    random = torch.Generator().manual_seed(rows)
    lengths = torch.randint(3, 9, (rows,), generator=random)
    mask = (torch.arange(9) < lengths[:, None]).long()
    targets = torch.rand(rows, CLASSES, generator=random) < 0.4
    first, last = (0, CLASSES) if labels or several else (-1, 0)
    captions, images = torch.arange(rows), torch.arange(rows)
    if rows > 2:  # equal texts in the first process and in the last, equal images
        captions[-1], images[rows // 2] = captions[0], images[0]
    return Batch(
        pixel_values=torch.randint(0, 256, (rows, 3, 64, 64), generator=random, dtype=torch.uint8),
        input_ids=torch.randint(5, 30000, (rows, 9), generator=random)[captions] * mask[captions],
        attention_mask=mask[captions],
        rows=torch.arange(rows),
        image_ids=images,
        caption_ids=captions,
        label_ids=torch.randint(first, last, (rows,), generator=random),
        weights=torch.rand(rows, generator=random) * (torch.arange(rows) != 2),
        targets=targets if several else torch.empty(0, 0, dtype=torch.bool),
    )


def with_head(checkpoint: str, several: bool = False, **options: Any) -> ClassificationTask:
    task = ClassificationTask(checkpoint, **options)
    torch.manual_seed(1)
    task.head = LinearHead(torch.randn(CLASSES, 64), torch.randn(CLASSES), tuple("abcd"), several)
    return task


def whole(checkpoint: str) -> AlignTask:
    return AlignTask(checkpoint, TowerLora(rank=2, whole=["depthwise"]), LORA)


Case = tuple[Callable[[str], AlignTask], Batch]
CASES: dict[str, Case] = {
    "contrastive": (lambda tiny: AlignTask(tiny, LORA, LORA), make_batch(11)),
    "not fused": (lambda tiny: AlignTask(tiny, LORA, LORA, fused=False), make_batch(11)),
    "smoothed": (lambda tiny: AlignTask(tiny, LORA, LORA, objective=Contrastive(0.1)), make_batch(11)),
    "sigmoid": (lambda tiny: AlignTask(tiny, LORA, LORA, objective=Sigmoid(0.3)), make_batch(11)),
    "an own objective": (lambda tiny: AlignTask(tiny, LORA, LORA, objective=Nearest()), make_batch(11)),
    "class prompts": (lambda tiny: AlignTask(tiny, LORA, LORA), make_batch(11, labels=True)),
    "several labels": (lambda tiny: AlignTask(tiny, LORA, LORA), make_batch(11, several=True)),
    "frozen image tower": (lambda tiny: AlignTask(tiny, None, LORA), make_batch(11)),
    "frozen text tower": (lambda tiny: AlignTask(tiny, LORA, None), make_batch(11)),
    "temperature alone": (lambda tiny: AlignTask(tiny, None, None), make_batch(11)),
    "frozen temperature": (lambda tiny: AlignTask(tiny, LORA, LORA, train_temperature=False), make_batch(11)),
    "whole layers": (whole, make_batch(11)),
    "preserved": (
        lambda tiny: AlignTask(
            tiny,
            LORA,
            LORA,
            image_preservation=ImagePreservation(images=5),
            text_preservation=TextPreservation(texts=3),
        ),
        make_batch(11),
    ),
    "preserved by fewer than the processes": (
        lambda tiny: with_head(tiny, image_lora=LORA, image_preservation=ImagePreservation(images=1)),
        make_batch(11, labels=True),
    ),
    "parts": (lambda tiny: AlignTask(tiny, LORA, LORA, micro_batch=2), make_batch(11)),
    "recomputed": (lambda tiny: AlignTask(tiny, LORA, LORA, image_recompute=True), make_batch(11)),
    "spare parameters": (Spare, make_batch(11)),
    "fewer rows than processes": (lambda tiny: AlignTask(tiny, LORA, LORA), make_batch(2)),
    "head": (lambda tiny: with_head(tiny, image_lora=LORA), make_batch(11, labels=True)),
    "head alone": (lambda tiny: with_head(tiny, image_lora=None), make_batch(11, labels=True)),
    "weighted classes": (
        lambda tiny: with_head(tiny, image_lora=LORA, objective=CrossEntropy([1.0, 2.0, 3.0, 0.5], 0.1)),
        make_batch(11, labels=True),
    ),
    "head of several labels": (
        lambda tiny: with_head(tiny, several=True, image_lora=LORA),
        make_batch(11, several=True),
    ),
}


@contextmanager
def few_pairs_at_a_time() -> Iterator[None]:
    before, objective.PAIRS = objective.PAIRS, 24
    try:
        yield
    finally:
        objective.PAIRS = before


def compare(case: Case, checkpoint: str, dtype: torch.dtype) -> dict[str, Any]:
    """How far a shared batch is from the whole one, and that from itself in double precision: mere rounding."""
    expected, found = (find_gradients(case, checkpoint, dtype, shared) for shared in (False, True))
    exact = expected if dtype == torch.float64 else find_gradients(case, checkpoint, torch.float64, False)
    return {
        "difference": measure_distance(found, expected),
        "rounding": measure_distance(expected, exact),
        "one side alone": sorted(expected.keys() ^ found.keys()),
        "gradients": sorted(expected),
    }


def find_gradients(case: Case, checkpoint: str, dtype: torch.dtype, shared: bool) -> dict[str, Tensor]:
    """The loss and its gradients after two backward passes, by name; of this process alone, or of all together."""
    build, batch = case
    torch.manual_seed(0)
    task = build(checkpoint)
    for name, parameter in task.named_parameters():
        if "lora_B" in name:  # else the other factor has no gradient
            parameter.data.normal_(std=0.1)
    task.to(dtype)
    if shared:
        rows = torch.arange(len(batch.rows)).tensor_split(processes.count())[processes.rank()]
        batch = Batch(*(part[rows] if len(part) else part for part in batch))
    with nullcontext() if shared else processes.alone():
        for _ in range(2):
            loss = task.loss(task(batch), batch) + find_distances(task)
            loss.backward()
    if shared:
        average_gradients(task.parameters())
    gradients = {name: one.grad for name, one in task.named_parameters() if one.grad is not None}
    return {"loss": processes.average(loss.detach()) if shared else loss.detach(), **gradients}


def find_distances(task: AlignTask) -> Tensor | float:
    """How far preserved towers have moved, on the texts and pictures of the second batch."""
    if task._preservation.is_due:
        task._preservation.start(torch.device("cpu"), (64, 64), batches=2)
    return sum(one.weight * one.distance(task.towers, 1) for one in task._preservation.references)


def measure_distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference as a share of the largest value: of losses, of the temperature's gradients, of all."""
    groups = {"loss": ["loss"], "temperature": [TEMPERATURE], "all": [name for name in expected if name != "loss"]}
    distances = {}
    for group, names in groups.items():
        pairs = [
            (found[name].double(), expected[name].double()) for name in names if name in found and name in expected
        ]
        largest = max((float(right.abs().max()) for _, right in pairs), default=1.0)
        distances[group] = max((float((left - right).abs().max()) / largest for left, right in pairs), default=0.0)
    return distances


def main(checkpoint: str, output: Path, dtype: torch.dtype, chosen: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    processes.open_groups(timedelta(minutes=2))
    found = {name: compare(CASES[name], checkpoint, dtype) for name in chosen or CASES}
    with few_pairs_at_a_time():
        for name in ("contrastive", "sigmoid", "several labels"):
            if name in found:
                found[f"{name}, few pairs at a time"] = compare(CASES[name], checkpoint, dtype)
    everyone = processes.from_all(found)
    if processes.is_first():
        output.write_text(json.dumps(everyone))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), getattr(torch, sys.argv[3]), sys.argv[4:])

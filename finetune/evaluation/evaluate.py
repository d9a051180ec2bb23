"""A checkpoint measured on the test split: metrics, and what it said of each row."""

from typing import Any, NamedTuple, cast

import pandas as pd
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.functional import normalize

from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Rows
from finetune.evaluation.baselines import embed_images, neighbour_accuracy
from finetune.evaluation.classifier_task import ClassifierTask
from finetune.evaluation.floor import logistic_regression_floor
from finetune.metrics import Figure, Retrieval, choose_metric, value
from finetune.training.task import AlignTask

MOST_LABELS = 5
"""Labels that are listed of a prediction where an image may have several."""


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
        metrics: Values by key, such as `test/accuracy`.
        predictions: One line per test row: `row` as the table numbers it, `label` or `caption`, `prediction`,
            `score` (probability of the class, or cosine similarity of the caption). Where an image may have several
            labels, the `MOST_LABELS` best, best first, and their logits, separated as the table's labels are. With
            captions also `similarity` (of the row's own image and caption), `image_to_text_rank` and
            `text_to_image_rank` (from 1, of the best placed correct item), and `retrieved` (the row whose image is
            nearest to the caption, as `file:row`). And `file` where the table has several, as each of them numbers its
            own rows.
        figures: By metric that has an interval, how to compute it again for a bootstrap.
        headline: Key of the metric by which models are compared, such as `test/accuracy`.
        floor: What a logistic regression makes of the image embeddings, by the same keys; None if it was not asked for.
        class_scores: Logits of every class for every row, float32 of shape (N, C), in tables with labels.
        label_ids: The rows' own classes, int64 of shape (N,), in tables with labels.
    """

    metrics: dict[str, float]
    predictions: pd.DataFrame
    figures: dict[str, Figure]
    headline: str
    floor: dict[str, float] | None = None
    class_scores: Tensor | None = None
    label_ids: Tensor | None = None

    @property
    def main(self) -> tuple[str, float]:
        """Key and value of the metric by which models are compared."""
        return self.headline, self.metrics[self.headline]


class Collect(Callback):
    """Keeps what `test_step` returns, in float32 on the CPU."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Tensor]] = []

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ARG002
        """Takes in a batch."""
        self.parts.append(
            {name: (tensor.float() if tensor.is_floating_point() else tensor).cpu() for name, tensor in outputs.items()}
        )

    def joined(self, name: str) -> Tensor:
        """One of the tensors, all batches together."""
        return torch.cat([part[name] for part in self.parts])


def evaluate(
    accelerator: str,
    task: AlignTask | ClassifierTask,
    data: ImageTextDataModule,
    neighbours: int | None = None,
    floor: bool = False,
) -> Evaluation:
    """Measures a task's model on the test split, in float32 and on one device.

    Args:
        accelerator: As for Lightning's `Trainer`.
        task: The model to measure.
        data: The table.
        neighbours: Of how many nearest training images the vote is measured too (an `AlignTask`, a table with a label
            a row).
        floor: Whether a logistic regression on the image embeddings is measured too (a table with labels).
    """
    collect = Collect()
    found = build_trainer(accelerator, [collect]).test(task, data, verbose=False)[0]
    rows = collect.joined("rows").long().numpy()
    class_scores = label_ids = None
    if data.rows.classes:
        class_scores, label_ids = collect.joined("class_scores"), torch.from_numpy(data.rows.label_ids[rows])
        columns = (_classified if data.rows.label_sets is None else _ranked)(class_scores, rows, data.rows)
    else:
        columns = _retrieved(collect, cast(Retrieval, task.metric), rows, data.rows)
    predictions = pd.DataFrame({"row": [data.rows.number(row) for row in rows], **columns})
    if len(data.rows.files) > 1:
        predictions["file"] = [str(data.rows.file(row)) for row in rows]
    result = Evaluation(
        metrics={name: float(number) for name, number in found.items()},
        predictions=predictions,
        figures={f"test/{name}": figure for name, figure in task.metric.figures().items()},
        headline=f"test/{task.metric.headline}",
        class_scores=class_scores,
        label_ids=label_ids,
    )
    if not ((neighbours or floor) and data.rows.classes and isinstance(task, AlignTask)):
        return result
    images = embed_images(find_device(accelerator), task, data, rows, collect.joined("image_features"))
    if neighbours and data.rows.label_sets is None:
        accuracy = neighbour_accuracy(images, neighbours)
        result.figures["test/knn_accuracy"] = accuracy
        result.metrics["test/knn_accuracy"] = float(value(accuracy))
    if floor:
        result = result._replace(floor=logistic_regression_floor(images, choose_metric(data.class_prompts)))
    return result


def find_device(accelerator: str) -> torch.device:
    """The device that `evaluate` measures on.

    Args:
        accelerator: As for Lightning's `Trainer`.
    """
    return build_trainer(accelerator, []).strategy.root_device


def build_trainer(accelerator: str, callbacks: list[Callback]) -> Trainer:
    """A trainer that measures on one device, and writes nothing.

    Args:
        accelerator: As for Lightning's `Trainer`.
        callbacks: What follows it.

    Raises:
        RecipeError: If this machine has no such accelerator.
    """
    try:
        return Trainer(
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
    except (MisconfigurationException, ValueError, ImportError) as error:
        raise RecipeError(f"Expected trainer.accelerator to be one of this machine, but got: {error}") from error


def _classified(scores: Tensor, rows: Any, table: Rows) -> dict[str, Any]:
    best = scores.softmax(dim=-1).max(dim=-1)
    return {
        "label": [table.classes[table.label_ids[row]] for row in rows],
        "prediction": [table.classes[index] for index in best.indices.tolist()],
        "score": best.values.tolist(),
    }


def _ranked(scores: Tensor, rows: Any, table: Rows) -> dict[str, Any]:
    assert table.label_sets is not None
    separator = table.label_sets.separator
    best = scores.topk(min(MOST_LABELS, scores.shape[1]))
    return {
        "label": [table.captions[row] for row in rows],
        "prediction": [separator.join(table.classes[index] for index in line) for line in best.indices.tolist()],
        "score": [separator.join(f"{value:.6g}" for value in line) for line in best.values.tolist()],
    }


def _retrieved(collect: Collect, metric: Retrieval, rows: Any, table: Rows) -> dict[str, Any]:
    images = normalize(collect.joined("image_features"), dim=-1)
    texts = normalize(collect.joined("text_features"), dim=-1)
    scores, captions = _nearest(images, texts)
    ranks = metric.ranks()
    return {
        "caption": [table.captions[row] for row in rows],
        "prediction": [table.captions[rows[index]] for index in captions],
        "score": scores,
        "similarity": (images * texts).sum(dim=-1).tolist(),
        "image_to_text_rank": _of_each(ranks["image_to_text"], metric.image_ids),
        "text_to_image_rank": _of_each(ranks["text_to_image"], metric.caption_ids),
        "retrieved": [table.place(rows[index]) for index in _nearest(texts, images)[1]],
    }


def _nearest(queries: Tensor, items: Tensor) -> tuple[list[float], list[int]]:
    """The similarity and the position of the nearest item of each query."""
    best = [(part @ items.T).max(dim=-1) for part in queries.split(1024)]
    return torch.cat([part.values for part in best]).tolist(), torch.cat([part.indices for part in best]).tolist()


def _of_each(ranks: Tensor, ids: list[Tensor]) -> list[float]:
    """The rank that each row's id, as the metric took it in, has among the ranks, which are in the order of the ids."""
    found: list[float] = ranks[torch.cat(ids).unique(return_inverse=True)[1]].tolist()
    return found

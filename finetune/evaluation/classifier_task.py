"""A classifier's folder under test: the model that is handed out, run as any user would run it."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from lightning import LightningModule
from torch import Tensor
from torchmetrics import Metric
from transformers import EfficientNetForImageClassification

from finetune.core.errors import TableError
from finetune.core.types import Batch, ClassPrompts
from finetune.metrics import choose_metric


class ClassifierTask(LightningModule):
    """Tests an `EfficientNetForImageClassification` folder on a table with labels; it is not trained.

    Args:
        folder: A folder written by `finetune.export.classifier.export_classifier`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = EfficientNetForImageClassification.from_pretrained(
            folder, dtype="float32", local_files_only=True, use_safetensors=True
        ).eval()

    def on_test_start(self) -> None:
        """Checks that the table's classes are the folder's, in the same order.

        Raises:
            TableError: If they are not.
        """
        datamodule = getattr(self.trainer, "datamodule", None)  # None where the trainer was given loaders alone
        prompts: ClassPrompts | None = getattr(datamodule, "class_prompts", None)
        expected = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        require_classes(expected, () if prompts is None else prompts.names)

    def on_test_epoch_start(self) -> None:
        """Forgets what was counted before."""
        prompts: ClassPrompts | None = getattr(self.trainer, "datamodule").class_prompts  # noqa: B009
        self.metric = choose_metric(prompts).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Counts hits.

        Returns:
            `rows`, and the logits as `class_scores`.
        """
        scores: Tensor = self.model(batch.pixel_values).logits
        cast(Metric, self.metric).update(scores, batch.truth)
        return {"rows": batch.rows, "class_scores": scores}

    def on_test_epoch_end(self) -> None:
        """Logs the keys that a test of `AlignTask` logs, such as `test/accuracy`."""
        self.log_dict({f"test/{name}": value for name, value in self.metric.compute().items()})


def require_classes(expected: Sequence[str], found: Sequence[str]) -> None:
    """Refuses a table that has other classes than a trained head, or the same in another order.

    Args:
        expected: The head's.
        found: The table's.

    Raises:
        TableError: If they differ.
    """
    if list(found) != list(expected):
        got = f"{len(found)}: {', '.join(found[:5])}" if found else "none"
        raise TableError(
            f"Expected the table to have the classifier's {len(expected)} classes, {', '.join(expected[:5])}"
            f"{', ...' if len(expected) > 5 else ''}, but got {got}. "
            "Take a table with the labels that it was trained on."
        )

"""Cross-entropy of class scores."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune.core.errors import RecipeError
from finetune.core.types import Batch
from finetune.objectives.objective import weighted_mean


class CrossEntropy(nn.Module):
    """Cross-entropy of a head's logits.

        loss = weighted mean over rows of cross_entropy(logits, label)

    Where an image may have several labels, each class is a yes-or-no question of its own instead: the row's loss is
    the mean over classes of binary_cross_entropy(sigmoid(logits), target).

    Args:
        class_weights: How much the rows of each class count, or the question of each class where an image may have
            several labels; one number for each class in the order of the class names. Null counts all alike.
        label_smoothing: Share of the target that is spread evenly over the classes, or over yes and no, in [0, 1).

    Raises:
        ValueError: If a class weight is not positive, or the label smoothing is out of its range.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: list[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"Expected label_smoothing to be in [0, 1), but got {label_smoothing}.")
        if class_weights is not None and not all(0 < weight < float("inf") for weight in class_weights):
            raise ValueError(f"Expected class_weights to be positive and finite, but got {class_weights}.")
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def require_classes(self, count: int) -> None:
        """Checks that the class weights suit a table.

        Args:
            count: The number of its classes.

        Raises:
            RecipeError: If there are class weights, but not one for each class.
        """
        if self.class_weights is not None and len(self.class_weights) != count:
            raise RecipeError(
                f"Expected class_weights to hold one number for each of the {count} classes, "
                f"but got {len(self.class_weights)}. List one for each class, in the order of the class names."
            )

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the scalar loss of one batch.

        Args:
            logits: Float tensor of shape (B, C).
            batch: The same B rows: their labels and weights.
        """
        if batch.has_targets:
            return weighted_mean(self._binary_losses(logits, batch.targets), self.row_weights(batch))
        row_losses = cross_entropy(logits, batch.label_ids, reduction="none", label_smoothing=self.label_smoothing)
        return weighted_mean(row_losses, self.row_weights(batch))

    def row_weights(self, batch: Batch) -> Tensor:
        """Returns how much each row counts in the mean, float32 of shape (B,).

        Args:
            batch: B rows.
        """
        if self.class_weights is None or batch.has_targets:
            return batch.weights
        return batch.weights * self.class_weights[batch.label_ids]

    def _binary_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean binary cross-entropy of each row's classes, shape (B,)."""
        smooth = targets.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        if self.class_weights is None:
            return losses.mean(1)
        return (losses * self.class_weights).sum(1) / self.class_weights.sum()

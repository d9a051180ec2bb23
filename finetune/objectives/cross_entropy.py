"""Cross-entropy of a linear head on the image features."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune.core.errors import RecipeError
from finetune.core.types import Batch, Embeddings
from finetune.objectives.objective import Objective, weighted_mean
from finetune.training.head_start import FromPrompts, HeadStart


class Classification(Objective):
    """A linear head on the image features, which are not normalised. Texts are not read in training.

    With the image features f:

        logits = f @ weight.T + bias
        loss = weighted mean over rows of cross_entropy(logits, label)

    Where an image may have several labels, each class is a yes-or-no question of its own instead: the row's loss is
    the mean over classes of binary_cross_entropy(sigmoid(logits), target).

    What the head is at the start, ``head_start`` says. Features are left unnormalised since only then image tower and
    head together are a plain image classifier, see ``finetune.export.classifier``.

    Until ``start`` is called there is no head, and classes are scored zero-shot.

    Args:
        class_weights: How much the rows of each class count, or the question of each class where an image may have
            several labels; one number for each class in the order of the class names. Null counts all alike.
        label_smoothing: Share of the target that is spread evenly over the classes, or over yes and no, in [0, 1).
        lr_scale: Learning rate of the head as a multiple of the optimizer's.
        head_start: What the head is before it is trained; null is `FromPrompts`.

    Raises:
        ValueError: If a class weight or `lr_scale` is not positive, or the label smoothing is out of its range.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    start_weight: Tensor | None
    start_bias: Tensor | None
    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        lr_scale: float = 5.0,
        head_start: HeadStart | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"Expected label_smoothing to be in [0, 1), but got {label_smoothing}.")
        if class_weights is not None and not all(0 < weight < float("inf") for weight in class_weights):
            raise ValueError(f"Expected class_weights to be positive and finite, but got {class_weights}.")
        if not 0 < lr_scale < float("inf"):
            raise ValueError(f"Expected lr_scale to be positive and finite, but got {lr_scale}.")
        self.head_start = head_start or FromPrompts()
        self.label_smoothing = label_smoothing
        self.lr_scale = lr_scale
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.register_buffer("start_weight", None)
        self.register_buffer("start_bias", None)

    @property
    def is_started(self) -> bool:
        """Whether there is a head."""
        return self.weight is not None

    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Makes the head; one that is there already stays as it is.

        The start is kept beside it: between the two lie the heads that forget less.

        Args:
            weight: Float tensor of shape (C, D).
            bias: Float tensor of shape (C,).

        Raises:
            RecipeError: If there are class weights, but not one for each class.
        """
        if self.is_started:
            return
        if self.class_weights is not None and len(self.class_weights) != len(weight):
            raise RecipeError(
                f"Expected class_weights to hold one number for each of the {len(weight)} classes, "
                f"but got {len(self.class_weights)}. List one for each class, in the order of the class names."
            )
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.bias = nn.Parameter(bias.detach().float().clone())
        self.start_weight = self.weight.detach().clone()
        self.start_bias = self.bias.detach().clone()

    def logits(self, image_features: Tensor) -> Tensor:
        """Returns the head's logits, shape (B, C), computed in float32 whatever the precision of training.

        Args:
            image_features: Float tensor of shape (B, D), not normalised.

        Raises:
            RuntimeError: If the head was not started.
        """
        if self.weight is None or self.bias is None:
            raise RuntimeError("Expected the head to be started, but got none. Call start() first.")
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        with torch.autocast(image_features.device.type, enabled=False):
            return image_features.to(dtype) @ self.weight.to(dtype).T + self.bias.to(dtype)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        """Returns the scalar loss of one batch; see ``Objective.forward``. Text features are not read."""
        logits = self.logits(embeddings.image_features)
        if batch.has_targets:
            return weighted_mean(self._binary_losses(logits, batch.targets), batch.weights)
        row_losses = cross_entropy(logits, batch.label_ids, reduction="none", label_smoothing=self.label_smoothing)
        weights = batch.weights
        if self.class_weights is not None:
            weights = weights * self.class_weights[batch.label_ids]
        return weighted_mean(row_losses, weights)

    def _binary_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean binary cross-entropy of each row's classes, shape (B,)."""
        smooth = targets.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        if self.class_weights is None:
            return losses.mean(1)
        return (losses * self.class_weights).sum(1) / self.class_weights.sum()

    def class_scores(self, image_features: Tensor, class_embeds: Tensor, temperature: Tensor) -> Tensor:
        """Returns the head's logits, or those of zero-shot where it was not started; see ``Objective``."""
        if self.is_started:
            return self.logits(image_features)
        return super().class_scores(image_features, class_embeds, temperature)

"""Names and shapes that data, model, objectives and metrics share."""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Sample(NamedTuple):
    """One row of a table as the model reads it.

    Attributes:
        pixel_values: Uint8 tensor of shape (3, H, W): the image as it was resized and cropped, not yet scaled.
        input_ids: Token ids, truncated, not padded.
        row: Position of the row in the table, from 0.
        image_id: Equal for rows that show the same image.
        caption_id: Equal for rows whose captions are equal to the model.
        label_id: Class of the row, -1 in tables without labels; of several the one that its text names.
        weight: Weight of the row in the loss.
    """

    pixel_values: Tensor
    input_ids: list[int]
    row: int
    image_id: int
    caption_id: int
    label_id: int
    weight: float


class Batch(NamedTuple):
    """Rows stacked: what every step of the task receives.

    A NamedTuple, because Lightning moves and torch pins it as it stands.

    Attributes:
        pixel_values: Uint8 tensor of shape (B, 3, H, W), which the towers scale as the checkpoint's processor does
            (`AlignTowers.scale_pixels`); or floats of a loader of your own, as the processor makes them.
        input_ids: Int64 tensor of shape (B, T), padded to the longest text of the batch.
        attention_mask: Int64 tensor of shape (B, T), 0 on padding.
        rows: Int64 tensor of shape (B,), positions in the table.
        image_ids: Int64 tensor of shape (B,), equal for equal images.
        caption_ids: Int64 tensor of shape (B,), equal for captions that are equal to the model.
        label_ids: Int64 tensor of shape (B,), -1 without labels; of several the one that the row's text names.
        weights: Float32 tensor of shape (B,).
        targets: Bool tensor of shape (B, C), true where an image has a label; of no columns where the table gives an
            image one label or none.
    """

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    image_ids: Tensor
    caption_ids: Tensor
    label_ids: Tensor
    weights: Tensor
    targets: Tensor = torch.empty(0, 0, dtype=torch.bool)

    def ids_of(self, rows: slice) -> "Batch":
        """Returns some of the rows as an objective sees them: ids, weights and targets, without pixels and tokens.

        Args:
            rows: Which of them.
        """
        inputs = (part[:0] for part in self[:3])
        return Batch(*inputs, *(part[rows] for part in self[3:]))

    @property
    def has_targets(self) -> bool:
        """Whether the table may give an image several labels."""
        return self.targets.shape[1] > 0

    @property
    def truth(self) -> Tensor:
        """What class scores are measured against: `targets` where there are some, else `label_ids`."""
        return self.targets if self.has_targets else self.label_ids


class PixelBatch(NamedTuple):
    """Images stacked, alone.

    Attributes:
        pixel_values: Uint8 or float tensor of shape (B, 3, H, W).
    """

    pixel_values: Tensor


class Texts(NamedTuple):
    """Token ids alone.

    Attributes:
        input_ids: Int64 tensor of shape (B, T).
        attention_mask: Int64 tensor of shape (B, T), 0 on padding.
    """

    input_ids: Tensor
    attention_mask: Tensor


class ClassPrompts(NamedTuple):
    """The class names of a label table, written out in every template.

    Attributes:
        names: Class names; the position is the label id.
        input_ids: Int64 tensor of shape (P, T), P = classes x templates.
        attention_mask: Int64 tensor of shape (P, T).
        label_ids: Int64 tensor of shape (P,), the class of each prompt.
    """

    names: tuple[str, ...]
    input_ids: Tensor
    attention_mask: Tensor
    label_ids: Tensor


class Embeddings(NamedTuple):
    """What the towers make of a batch, and all that an objective sees of the model.

    Attributes:
        image_features: Float tensor of shape (B, D), not normalised; None where the image tower was not asked.
        text_features: Float tensor of shape (B, D), not normalised; None where the text tower was not asked.
        temperature: Scalar tensor that divides the cosine similarities.
    """

    image_features: Tensor | None
    text_features: Tensor | None
    temperature: Tensor

    @property
    def image_embeds(self) -> Tensor:
        """Image features on the unit sphere, shape (B, D).

        Raises:
            ValueError: If the image tower was not asked.
        """
        return _normalized(self.image_features, "image")

    @property
    def text_embeds(self) -> Tensor:
        """Text features on the unit sphere, shape (B, D).

        Raises:
            ValueError: If the text tower was not asked.
        """
        return _normalized(self.text_features, "text")


class Answers(NamedTuple):
    """What a model says of rows: those of a batch, or all of a loader in its order.

    Attributes:
        rows: Int64 tensor of shape (N,), positions in the table.
        image_ids: Int64 tensor of shape (N,), equal for equal images.
        caption_ids: Int64 tensor of shape (N,), equal for captions that are equal to the model.
        truth: What class scores are measured against, see `Batch.truth`.
        image_features: Float tensor of shape (N, D), not normalised; None where there are none.
        text_features: Float tensor of shape (N, D), not normalised; None where there are none.
        class_scores: Logits of every class, float tensor of shape (N, C); None where there are no classes.
    """

    rows: Tensor
    image_ids: Tensor
    caption_ids: Tensor
    truth: Tensor
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    class_scores: Tensor | None = None

    @classmethod
    def of(
        cls,
        batch: Batch,
        image_features: Tensor | None = None,
        text_features: Tensor | None = None,
        class_scores: Tensor | None = None,
    ) -> Self:
        """Puts a model's answers beside the ids of the rows they are about.

        Args:
            batch: The rows.
            image_features: As for the class, and so the others.
            text_features: Likewise.
            class_scores: Likewise.
        """
        ids = (batch.rows, batch.image_ids, batch.caption_ids, batch.truth)
        return cls(*ids, image_features, text_features, class_scores)


def _normalized(features: Tensor | None, tower: str) -> Tensor:
    if features is None:
        raise ValueError(f"Expected {tower} features, but got none: the {tower} tower was not asked.")
    return normalize(features, dim=-1)

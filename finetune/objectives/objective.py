"""What every objective is: a scalar loss from the embeddings of one batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from finetune.core.types import Batch, Embeddings
from finetune.objectives.positives import positive_mask

PAIRS = 1 << 22
"""Pairs of image and text whose logits are held at a time."""


class Objective(nn.Module, ABC):
    """A loss on embeddings and ids. It never sees the model, so any towers can be trained with it.

    Parameters of its own (such as a bias) belong to training and are not part of the exported ALIGN model.
    """

    @abstractmethod
    def forward(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        """Returns the loss of one batch.

        Args:
            embeddings: Features of the B rows and the temperature.
            batch: The same B rows: their ids and weights.

        Returns:
            Scalar tensor, at least float32.
        """

    def part(self, embeddings: Embeddings, batch: Batch, anchors: slice) -> Tensor:
        """Returns what some rows add to the loss of a batch: over all rows, the parts sum up to it.

        Where several processes share a batch, each of them asks for its own rows. By default a part is as much of the
        whole loss as the rows are of the batch. An objective whose rows have losses of their own computes those alone.

        Args:
            embeddings: As for `forward`.
            batch: As for `forward`, without pixels and tokens.
            anchors: The rows.
        """
        rows = len(batch.rows)
        loss: Tensor = self(embeddings, batch)
        return loss * (len(range(rows)[anchors]) / rows)


def cosine_logits(image_features: Tensor, text_features: Tensor, temperature: Tensor) -> Tensor:
    """Returns cosine similarities divided by the temperature, shape (B, C), images in rows, texts in columns.

    Half-precision features are converted first and autocast is off: logits are always computed in float32
    (float64 stays float64). At a temperature of 0.05 the mere rounding of a similarity to bfloat16 moves a
    logit by up to 0.04.

    Args:
        image_features: Float tensor of shape (B, D), normalised here.
        text_features: Float tensor of shape (C, D), normalised here.
        temperature: Scalar tensor.
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    with torch.autocast(image_features.device.type, enabled=False):
        image_embeds = normalize(image_features.to(dtype), dim=-1)
        text_embeds = normalize(text_features.to(dtype), dim=-1)
        return image_embeds @ text_embeds.T / temperature.to(dtype)


def anchor_pairs(embeddings: Embeddings, batch: Batch, anchors: slice) -> list[tuple[Tensor, Tensor]]:
    """Returns how some rows look at a batch: their images at all texts, and their texts at all images.

    Args:
        embeddings: Features of both towers, of B rows.
        batch: Their ids.
        anchors: A of the rows.

    Returns:
        For images and for texts the logits, see `cosine_logits`, and which of the pairs are positives, see
        `positive_mask`: both of shape (A, B).

    Raises:
        ValueError: If a tower was not asked.
    """
    images, texts, temperature = embeddings
    if images is None or texts is None:
        raise ValueError("Expected features of both towers, but got those of one. Embed the batch with both.")
    ids = batch.ids_of(anchors)
    logits, mask = cosine_logits(images[anchors], texts, temperature), positive_mask(ids, batch)
    if len(ids.rows) == len(batch.rows):
        return [(logits, mask), (logits.T, mask.T)]
    return [(logits, mask), (cosine_logits(images, texts[anchors], temperature).T, positive_mask(batch, ids).T)]


def count_positives(batch: Batch, anchors: slice = slice(None)) -> Tensor:
    """Returns how many positives some rows have in a batch, an int64 tensor of shape (A,).

    Few pairs are held at a time.

    Args:
        batch: B rows.
        anchors: A of them.
    """
    counts = [positive_mask(batch.ids_of(chunk), batch).sum(1) for chunk in _cut(batch, anchors)]
    return torch.cat(counts) if counts else batch.rows.new_zeros(0)


def in_chunks(
    row_losses: Callable[[Embeddings, Batch, slice], Tensor], embeddings: Embeddings, batch: Batch, anchors: slice
) -> Tensor:
    """Returns the losses of some rows, computed for a few of them at a time where their pairs are many.

    A chunk is computed again in backward, so that the memory is that of one chunk's pairs.

    Args:
        row_losses: From embeddings and ids of B rows, and A of the rows, to a tensor of shape (A,).
        embeddings: Of B rows.
        batch: Their ids.
        anchors: Which of them.
    """
    chunks = _cut(batch, anchors)
    if len(chunks) <= 1:
        return row_losses(embeddings, batch, anchors)
    return torch.cat([_compute_again(row_losses, embeddings, batch, chunk) for chunk in chunks])


def _cut(batch: Batch, anchors: slice) -> list[slice]:
    """Cuts rows into chunks whose pairs with all rows of the batch are at most `PAIRS`, or those of one row."""
    rows = range(len(batch.rows))[anchors]
    size = max(1, PAIRS // max(1, len(batch.rows)))
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def _compute_again(row_losses: Callable[[Embeddings, Batch, slice], Tensor], *inputs: Any) -> Tensor:
    return cast(Tensor, checkpoint(row_losses, *inputs, use_reentrant=False, preserve_rng_state=False))


def weighted_part(row_losses: Tensor, weights: Tensor, rows: slice) -> Tensor:
    """Returns what some rows add to the weighted mean of all.

    Args:
        row_losses: Float tensor of shape (A,), the losses of these rows.
        weights: Float tensor of shape (B,), those of all rows, see `weighted_mean`.
        rows: Which A of the B rows.
    """
    weights = weights.to(row_losses.dtype)
    return (row_losses * weights[rows]).sum() / weights.sum().clamp_min(torch.finfo(row_losses.dtype).tiny)


def weighted_mean(row_losses: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean of the rows' losses, each counted with its weight.

    Args:
        row_losses: Float tensor of shape (B,).
        weights: Float tensor of shape (B,), none below zero. Where all are zero the mean is zero too.

    Example:
        >>> weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0]))
        tensor(1.7500)
    """
    return weighted_part(row_losses, weights, slice(None))

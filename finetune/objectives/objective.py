"""What every objective is: a scalar loss from the embeddings of one batch."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from finetune.core.types import Batch, Embeddings


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


def pair_logits(embeddings: Embeddings) -> Tensor:
    """Returns the logits of each image with each text of a batch, see `cosine_logits`.

    Args:
        embeddings: Features of both towers.

    Raises:
        ValueError: If a tower was not asked.
    """
    image_features, text_features, temperature = embeddings
    if image_features is None or text_features is None:
        raise ValueError("Expected features of both towers, but got those of one. Embed the batch with both.")
    return cosine_logits(image_features, text_features, temperature)


def weighted_mean(row_losses: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean of the rows' losses, each counted with its weight.

    Args:
        row_losses: Float tensor of shape (B,).
        weights: Float tensor of shape (B,), none below zero. Where all are zero the mean is zero too.

    Example:
        >>> weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0]))
        tensor(1.7500)
    """
    weights = weights.to(row_losses.dtype)
    return (row_losses * weights).sum() / weights.sum().clamp_min(torch.finfo(row_losses.dtype).tiny)

"""Sigmoid loss: every pair of image and text is a yes-or-no question of its own."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from finetune.core.types import Batch, Embeddings
from finetune.objectives.objective import Objective, anchor_pairs, count_positives, in_chunks, weighted_part


class Sigmoid(Objective):
    """Pairwise sigmoid loss with a learnable bias (SigLIP: Zhai et al. 2023, arXiv 2303.15343, equation 1).

    With P positive and N negative pairs in the batch and z = +1 for a positive, -1 for a negative pair:

        logit[i, j] = cosine[i, j] / temperature + bias + log(P / N)
        loss = mean over rows i of  -sum over j of log sigmoid(z[i, j] * logit[i, j])

    The row of image i and the column of text i are averaged; with equal weights that is the paper's sum.

    SigLIP has no `log(P / N)` and starts its bias at -10, the log odds of a positive among 22,000 rows. A
    fine-tuning batch holds tens or hundreds, and with labels many pairs are positive, so a fixed start is
    wrong by several logits, which a small learning rate never makes up. Here the bias is counted from the log
    odds of the batch at hand (as in logit adjustment: Menon et al. 2021, arXiv 2007.07314), so 0 starts
    calibrated for unrelated pairs at any batch size. SigLIP's bias is `bias + log(P / N)`, which for B
    unique rows is `bias - log(B - 1)`. A batch without negatives, or without positives, teaches nothing: loss
    and gradient are 0.

    The bias belongs to training: it moves all similarities alike, so it changes no ranking, and ALIGN's
    checkpoints have no place for it. It is left out on export.

    Args:
        bias: Start of the learnable bias, in logits, relative to the log odds of a positive pair.

    Raises:
        ValueError: If the bias is not finite.
    """

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(bias):
            raise ValueError(f"Expected bias to be finite, but got {bias}.")
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        """Returns the scalar loss of one batch; see `Objective.forward`."""
        return self.part(embeddings, batch, slice(None))

    def part(self, embeddings: Embeddings, batch: Batch, anchors: slice) -> Tensor:
        """Returns what some rows add to it; see `Objective.part`."""
        positives = count_positives(batch).sum()
        log_odds = positives.log() - (len(batch.rows) ** 2 - positives).log()

        def row_losses(embeddings: Embeddings, batch: Batch, rows: slice) -> Tensor:
            of_images, of_texts = (
                -logsigmoid(shifted.where(is_positive, -shifted)).sum(1)
                for logits, is_positive in anchor_pairs(embeddings, batch, rows)
                for shifted in [logits + self.bias + log_odds]
            )
            return (of_images + of_texts) / 2

        losses = in_chunks(row_losses, embeddings, batch, anchors)
        return weighted_part(losses, batch.weights, anchors)

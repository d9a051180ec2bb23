"""Contrastive loss that knows which pairs of a batch belong together."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from finetune.core.types import Batch, Embeddings
from finetune.objectives.objective import Objective, anchor_pairs, in_chunks, weighted_part


class Contrastive(Objective):
    """InfoNCE in both directions, in which a positive competes with the negatives only.

    With the logits s[i, j] = cosine / temperature, anchor i, its positives P and its negatives N:

        loss[i] = mean over p in P of
                  -log( |P| exp(s[i, p]) / (|P| exp(s[i, p]) + sum over n in N of exp(s[i, n])) )

    for images against texts and for texts against images; the two are averaged. It is InfoNCE with copies of
    p in the place of the other positives. Where each row is unique it is plain InfoNCE. Every positive is
    pulled and none pushed, so a batch of equal captions gives a loss and a gradient of exactly 0. The loss of an
    anchor without positives, such as an image without labels, is 0 too; it is a negative of others.

    Leaving the other positives out of the denominator is SINCERE's idea (Feeney and Hughes 2023, arXiv
    2309.14277). The factor |P| keeps a class as heavy among the positives as it is among the negatives, as in
    the balanced softmax (Ren et al. 2020, arXiv 2007.10740); without it classes of unequal size are learned
    worse. Not taken were soft targets, as in SupCon (Khosla et al. 2020, arXiv 2004.11362), which push the
    images of one caption apart, and the log of the summed positives, as in MIL-NCE (Miech et al. 2020, arXiv
    1912.06430), which pulls mostly the positive that is nearest already.

    Label smoothing is that of `torch.nn.functional.cross_entropy`: a share e of the target is spread evenly
    over all B candidates, the copies of p among them.

    Args:
        label_smoothing: Share of the target that is spread evenly over the candidates, in [0, 1).

    Raises:
        ValueError: If the label smoothing is out of its range.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"Expected label_smoothing to be in [0, 1), but got {label_smoothing}.")
        self.label_smoothing = label_smoothing

    def forward(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        """Returns the scalar loss of one batch; see `Objective.forward`."""
        return self.part(embeddings, batch, slice(None))

    def part(self, embeddings: Embeddings, batch: Batch, anchors: slice) -> Tensor:
        """Returns what some rows add to it; see `Objective.part`."""
        losses = in_chunks(self._row_losses, embeddings, batch, anchors)
        return weighted_part(losses, batch.weights, anchors)

    def _row_losses(self, embeddings: Embeddings, batch: Batch, anchors: slice) -> Tensor:
        of_images, of_texts = (
            anchor_losses(logits, is_positive, self.label_smoothing)
            for logits, is_positive in anchor_pairs(embeddings, batch, anchors)
        )
        return (of_images + of_texts) / 2


def anchor_losses(logits: Tensor, is_positive: Tensor, label_smoothing: float) -> Tensor:
    """Returns the loss of each anchor; see `Contrastive` for the formula.

    Args:
        logits: Float tensor of shape (A, B), anchors in rows.
        is_positive: Bool tensor of shape (A, B); an anchor without any has the loss 0.
        label_smoothing: Share of the target that is spread evenly over the candidates, in [0, 1).

    Returns:
        Float tensor of shape (A,).

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> anchor_losses(logits, torch.tensor([[True, True, True]]), 0.0)
        tensor([0.])
        >>> anchor_losses(logits, torch.tensor([[True, False, False]]), 0.0)
        tensor([0.4076])
    """
    positives = is_positive.to(logits.dtype)
    negatives = 1 - positives
    count = positives.sum(1, keepdim=True).clamp_min(1)
    # Not -inf: without any negative the gradient of logsumexp would be NaN.
    hidden = torch.finfo(logits.dtype).min
    negative_mass = logits.masked_fill(is_positive, hidden).logsumexp(1, keepdim=True)
    losses = softplus(negative_mass - logits - count.log())
    if label_smoothing:
        margins = logits * negatives.sum(1, keepdim=True) - (logits * negatives).sum(1, keepdim=True)
        losses = losses + label_smoothing / logits.shape[1] * margins
    return (losses * positives / count).sum(1)

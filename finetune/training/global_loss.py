"""The loss of a batch that several processes share, each of which has embedded some of its rows."""

import torch
from torch import Tensor

from finetune.core import processes
from finetune.core.errors import TableError
from finetune.core.types import Batch, Embeddings
from finetune.objectives import CrossEntropy, Objective


def pair_loss(objective: Objective, embeddings: Embeddings, batch: Batch) -> Tensor:
    """Returns this process's part of a loss in which each row is compared with all rows of all processes.

    The part is multiplied by the number of processes: the mean over the processes, of losses and of gradients, is that
    of one process with all rows. It holds the pairs of this process's rows with all rows, not those of all with all.

    Args:
        objective: The loss.
        embeddings: Features of this process's rows.
        batch: The same rows.

    Raises:
        TableError: If no process has a row.
    """
    if processes.count() == 1:
        loss: Tensor = objective(embeddings, batch)
        return loss
    counts = _count(batch)
    start = sum(counts[: processes.rank()])
    own = slice(start, start + len(batch.rows))
    part = objective.part(_gather(embeddings, counts), gather_ids(batch, counts), own)
    return part * processes.count()


def row_loss(objective: CrossEntropy, logits: Tensor, batch: Batch) -> Tensor:
    """Returns this process's part of a weighted mean over rows, see `pair_loss`.

    Args:
        objective: The loss.
        logits: Float tensor of shape (B, C), of this process's rows.
        batch: The same rows.

    Raises:
        TableError: If no process has a row.
    """
    loss: Tensor = objective(logits, batch)
    if processes.count() == 1:
        return loss
    _count(batch)
    own = objective.row_weights(batch).to(loss.dtype).sum()
    return loss * (own / processes.average(own).clamp_min(torch.finfo(loss.dtype).tiny))


def gather_ids(batch: Batch, counts: list[int]) -> Batch:
    """Returns ids, weights and targets of the rows of all processes, in their order; pixels and tokens have no rows.

    Args:
        batch: This process's rows.
        counts: How many rows each process has.
    """
    ids = batch.ids_of(slice(None))
    names = ("rows", "image_ids", "caption_ids", "label_ids")
    whole = processes.gather_rows(torch.stack([getattr(ids, name) for name in names], dim=1), counts)  # one message
    return ids._replace(
        **dict(zip(names, whole.unbind(1), strict=True)),
        weights=processes.gather_rows(ids.weights, counts),
        targets=processes.gather_rows(ids.targets, counts) if ids.has_targets else ids.targets,
    )


def _gather(embeddings: Embeddings, counts: list[int]) -> Embeddings:
    """The features of all processes: those of both towers in one message, forward and back."""
    images, texts, temperature = embeddings
    if images is None or texts is None:
        return embeddings  # which the objective refuses
    dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
    joined = processes.gather_features(torch.cat([images.to(dtype), texts.to(dtype)], dim=1), counts)
    images, texts = joined.split([images.shape[1], texts.shape[1]], dim=1)
    return Embeddings(images, texts, temperature)


def _count(batch: Batch) -> list[int]:
    counts = processes.count_rows(len(batch.rows))
    if not any(counts):
        raise TableError(
            "Expected a readable image in each batch, but got one without any. `finetune check --full` says what is "
            "wrong with each. Or raise data.batch_size, if it is small."
        )
    return counts

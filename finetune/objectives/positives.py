"""Which text of a batch is true of which image: the pairs that must not be pushed apart."""

from torch import Tensor

from finetune.core.types import Batch


def positive_mask(batch: Batch, texts: Batch | None = None) -> Tensor:
    """Returns which texts are true of which images.

    Where images may have several labels, a text names one of them (`batch.label_ids`), and is a positive of
    every image that has that label (`batch.targets`). An image without labels is a positive of no text, also
    not of its own row's.

    In other tables two rows that carry the same caption are positives, whatever their labels: no model can embed their
    texts apart. Else two rows that both have a label are positives when the labels are equal, and two other rows when
    they show the same image. The mask of a batch with itself is symmetric then and its diagonal is true. It need not be
    transitive: one image may share its caption with a second, and that one its picture with a third row.

    Args:
        batch: The rows of B images, of which only ids and targets are read.
        texts: The rows of C texts; None for the same rows.

    Returns:
        Bool tensor of shape (B, C), images in rows, texts in columns.
    """
    texts = batch if texts is None else texts
    if batch.has_targets:
        return batch.targets[:, texts.label_ids]
    are_labelled = (batch.label_ids >= 0)[:, None] & (texts.label_ids >= 0)
    same_label = _equal_pairs(batch.label_ids, texts.label_ids)
    same_matter = same_label.where(are_labelled, _equal_pairs(batch.image_ids, texts.image_ids))
    return _equal_pairs(batch.caption_ids, texts.caption_ids) | same_matter


def _equal_pairs(ids: Tensor, others: Tensor) -> Tensor:
    return ids[:, None] == others

"""Which text of a batch is true of which image: the pairs that must not be pushed apart."""

from torch import Tensor

from finetune.core.types import Batch


def positive_mask(batch: Batch) -> Tensor:
    """Returns which texts of a batch are true of which images.

    Where images may have several labels, a text names one of them (`batch.label_ids`), and is a positive of
    every image that has that label (`batch.targets`). An image without labels is a positive of no text, also
    not of its own row's.

    In other tables two rows that carry the same caption are positives, whatever their labels: no model can embed their
    texts apart. Else two rows that both have a label are positives when the labels are equal, and two other rows when
    they show the same image. The mask is symmetric then and its diagonal is true. It need not be transitive: one image
    may share its caption with a second, and that one its picture with a third row.

    Args:
        batch: B rows, of which only ids and targets are read.

    Returns:
        Bool tensor of shape (B, B), images in rows, texts in columns.
    """
    if batch.has_targets:
        return batch.targets[:, batch.label_ids]
    is_labelled = batch.label_ids >= 0
    same_matter = _equal_pairs(batch.label_ids).where(is_labelled[:, None] & is_labelled, _equal_pairs(batch.image_ids))
    return _equal_pairs(batch.caption_ids) | same_matter


def _equal_pairs(ids: Tensor) -> Tensor:
    return ids[:, None] == ids

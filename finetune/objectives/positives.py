"""Which image of a batch belongs to which text: the pairs that must not be pushed apart."""

from torch import Tensor

from finetune.batch import Batch


def positive_mask(batch: Batch) -> Tensor:
    """Returns which pairs of rows are positives of each other.

    Two rows that both have a label are positives exactly when the labels are equal. Otherwise they are
    positives when they carry the same caption or show the same image. The mask is symmetric and its diagonal
    is true. It need not be transitive: one image may share its caption with a second, and that one its
    picture with a third row.

    Args:
        batch: B rows, of which only the ids are read.

    Returns:
        Bool tensor of shape (B, B).
    """
    is_labelled = batch.label_ids >= 0
    same_content = _equal_pairs(batch.caption_ids) | _equal_pairs(batch.image_ids)
    return _equal_pairs(batch.label_ids).where(is_labelled[:, None] & is_labelled, same_content)


def _equal_pairs(ids: Tensor) -> Tensor:
    return ids[:, None] == ids

"""Losses on embeddings and ids.

An objective receives the embeddings of a batch and the batch's ids, never a model. Each stands in a file of
its own; what they share is the definition of a positive pair.
"""

from finetune.objectives.classification import Classification
from finetune.objectives.contrastive import Contrastive
from finetune.objectives.head_start import FromProbe, FromPrompts, HeadStart, Seen
from finetune.objectives.objective import Objective
from finetune.objectives.positives import positive_mask
from finetune.objectives.sigmoid import Sigmoid

__all__ = [
    "Classification",
    "Contrastive",
    "FromProbe",
    "FromPrompts",
    "HeadStart",
    "Objective",
    "Seen",
    "Sigmoid",
    "positive_mask",
]

"""Losses on embeddings and ids.

An objective receives the embeddings of a batch and the batch's ids, never a model. Each stands in a file of
its own; what they share is the definition of a positive pair.
"""

from finetune.objectives.contrastive import Contrastive
from finetune.objectives.cross_entropy import Classification
from finetune.objectives.objective import Objective
from finetune.objectives.positives import positive_mask
from finetune.objectives.sigmoid import Sigmoid
from finetune.training.head_start import FromProbe, FromPrompts, HeadStart, Seen

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

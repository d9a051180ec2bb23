"""Losses on embeddings, class scores and ids; none of them sees a model."""

from finetune.objectives.contrastive import Contrastive
from finetune.objectives.cross_entropy import CrossEntropy
from finetune.objectives.objective import Objective, cosine_logits
from finetune.objectives.positives import positive_mask
from finetune.objectives.sigmoid import Sigmoid

__all__ = ["Contrastive", "CrossEntropy", "Objective", "Sigmoid", "cosine_logits", "positive_mask"]

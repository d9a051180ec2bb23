"""Retrieval and classification figures from embeddings, scores and ids.

All of them treat ties in one way (see ``placement``): a collapsed model, which scores everything the same,
gets exactly the figures of guessing. R@K is a hit rate: the share of queries with at least one correct item
among the K best.
"""

from finetune.metrics.bootstrap import Difference, paired_difference
from finetune.metrics.classification import ClassAccuracy, class_embeddings
from finetune.metrics.cloud import Cloud, effective_rank, spread
from finetune.metrics.placement import Placement
from finetune.metrics.retrieval import Retrieval, retrieval_placements, retrieval_ranks

__all__ = [
    "Placement",
    "Retrieval",
    "ClassAccuracy",
    "Cloud",
    "Difference",
    "class_embeddings",
    "effective_rank",
    "paired_difference",
    "retrieval_placements",
    "retrieval_ranks",
    "spread",
]

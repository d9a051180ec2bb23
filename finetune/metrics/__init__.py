"""Retrieval and classification figures from embeddings, scores and ids.

All but average precision treat ties in one way (see ``Placement``): a collapsed model, which scores everything the
same, gets exactly the figures of guessing. R@K is a hit rate: the share of queries with at least one correct item
among the K best.
"""

from finetune.metrics.accuracy import ClassAccuracy, class_embeddings
from finetune.metrics.average_precision import AveragePrecision
from finetune.metrics.bootstrap import Difference, paired_difference
from finetune.metrics.calibration import calibration_error, chance_calibration_error, fit_temperature, reliability
from finetune.metrics.geometry import Cloud, effective_rank, spread
from finetune.metrics.knn import neighbour_votes
from finetune.metrics.ranking import Placement
from finetune.metrics.retrieval import Retrieval, retrieval_placements, retrieval_ranks
from finetune.metrics.row_metric import RowMetric
from finetune.metrics.statistics import Figure, from_tensors, to_tensors

__all__ = [
    "AveragePrecision",
    "ClassAccuracy",
    "Cloud",
    "Difference",
    "Figure",
    "Placement",
    "Retrieval",
    "RowMetric",
    "calibration_error",
    "chance_calibration_error",
    "class_embeddings",
    "effective_rank",
    "fit_temperature",
    "from_tensors",
    "neighbour_votes",
    "paired_difference",
    "reliability",
    "retrieval_placements",
    "retrieval_ranks",
    "spread",
    "to_tensors",
]

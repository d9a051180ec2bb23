"""Classes one by one: what each gained or lost, and which ones the model confuses."""

from collections import Counter
from typing import NamedTuple

import pandas as pd

from finetune.data.table.cells import as_strings
from finetune.data.table.labels import number_classes

MOST_CONFUSED = 20
"""Classes in the confusion matrix, and pairs in the list beside it."""


class Recall(NamedTuple):
    """One class before and after.

    Attributes:
        name: The class.
        rows: Its test rows.
        before: Share of them that the base got right.
        after: Share of them that the model gets right.
    """

    name: str
    rows: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before


def find_recalls(predictions: pd.DataFrame) -> list[Recall]:
    """The recall of each class that occurs, the largest loss first.

    Args:
        predictions: With the columns `label`, `prediction` and `before`.

    Example:
        >>> table = pd.DataFrame({"label": ["a", "a"], "prediction": ["a", "a"], "before": ["a", "b"]})
        >>> find_recalls(table)
        [Recall(name='a', rows=2, before=0.5, after=1.0)]
    """
    right = pd.DataFrame({name: predictions[name] == predictions["label"] for name in ("before", "prediction")})
    grouped = right.groupby(predictions["label"])
    means, counts = grouped.mean(), grouped.size()
    found = [
        Recall(str(name), int(counts[name]), float(means["before"][name]), float(means["prediction"][name]))
        for name in means.index
    ]
    return sorted(found, key=lambda recall: (recall.change, recall.name))


class Confusions(NamedTuple):
    """Which classes the model confuses.

    Attributes:
        classes: The classes with the most confusions, in natural order.
        is_cut: Whether other classes are left out.
        counts: Rows of each of them (first index) that the model predicts to be each of them (second index).
        pairs: Label, prediction and rows of every confusion, most frequent first.
    """

    classes: list[str]
    is_cut: bool
    counts: list[list[int]]
    pairs: list[tuple[str, str, int]]


def find_confusions(predictions: pd.DataFrame) -> Confusions:
    """Counts confusions.

    Args:
        predictions: With the columns `label` and `prediction`.
    """
    counts = Counter(zip(predictions["label"], predictions["prediction"], strict=True))
    wrong = [(label, other, rows) for (label, other), rows in counts.items() if label != other]
    pairs = sorted(wrong, key=lambda pair: (-pair[2], pair[:2]))
    involved: dict[str, int] = dict.fromkeys(sorted({*predictions["label"], *predictions["prediction"]}), 0)
    for label, other, rows in pairs:
        involved[label] += rows
        involved[other] += rows
    most = sorted(involved, key=lambda name: -involved[name])[:MOST_CONFUSED]
    classes = list(number_classes(as_strings(most))[0])
    table = [[counts[label, other] for other in classes] for label in classes]
    return Confusions(classes, len(classes) < len(involved), table, pairs)

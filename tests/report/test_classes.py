"""Recalls and confusions against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from finetune.report.classes import MOST_CONFUSED, find_confusions, find_recalls


def draw(classes, rows=600, seed=0):
    generator = np.random.default_rng(seed)
    columns = {name: generator.choice(classes, rows) for name in ("label", "prediction", "before")}
    right = generator.random(rows) < generator.random()
    columns["prediction"] = np.where(right, columns["label"], columns["prediction"])
    return pd.DataFrame(columns)


def test_recalls_are_scikit_learns_the_greatest_loss_first():
    table = draw([f"class {number}" for number in range(12)])
    found = find_recalls(table)
    names = [recall.name for recall in found]
    assert sorted(names) == sorted(table["label"].unique())
    for column, values in (("before", [it.before for it in found]), ("prediction", [it.after for it in found])):
        assert values == pytest.approx(list(recall_score(table["label"], table[column], labels=names, average=None)))
    assert [it.rows for it in found] == [int((table["label"] == name).sum()) for name in names]
    changes = [it.change for it in found]
    assert changes == sorted(changes)


@pytest.mark.parametrize("count", [4, 30])
def test_confusions_are_scikit_learns(count):
    table = draw([str(number) for number in range(count)])
    found = find_confusions(table)
    assert len(found.classes) == min(count, MOST_CONFUSED)
    assert found.is_cut == (count > MOST_CONFUSED)
    assert found.classes == sorted(found.classes, key=int)
    assert np.array_equal(found.counts, confusion_matrix(table["label"], table["prediction"], labels=found.classes))
    everything = confusion_matrix(table["label"], table["prediction"])
    np.fill_diagonal(everything, 0)
    assert [rows for _, _, rows in found.pairs] == sorted(everything[everything > 0], reverse=True)
    involved = everything.sum(0) + everything.sum(1)
    shown = [sorted(map(str, range(count))).index(name) for name in found.classes]
    assert involved[shown].min() >= np.delete(involved, shown).max(initial=0)

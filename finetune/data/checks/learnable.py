"""Finds training rows of which nothing can be learnt, and classes that are measured but never trained."""

from collections.abc import Sequence

import numpy as np

from finetune.core.errors import Concern
from finetune.data.checks.concerns import count, places_where, show_some
from finetune.data.checks.equal_texts import group_classes
from finetune.data.prepare.texts import TextEncoder
from finetune.data.table.cells import Integers
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.rows import Rows
from finetune.data.table.splits import SPLITS

CHUNK = 100_000  # rows looked at at a time


def require_several_classes(rows: Rows) -> None:
    """Checks that training rows differ in their labels.

    Args:
        rows: A table with labels.

    Raises:
        TableFaultsError: If they do not, so that there is nothing to tell apart.
    """
    training = rows.indices("train")
    labels = rows.label_ids if rows.label_sets is None else rows.caption_ids
    if _are_equal(labels, training):
        names = " and ".join(rows.classes[label] for label in rows.labels_of(int(training[0])).tolist())
        _refuse(rows, "training rows of at least two classes", "are of the class", names)


def require_several_texts(rows: Rows) -> None:
    """Checks that the captions of training rows differ, and where there are no labels that the images do.

    Args:
        rows: A table with captions, whose ids are equal for equal tokens.

    Raises:
        TableFaultsError: If they do not, so that each text is true of each image.
    """
    training = rows.indices("train")
    if _are_equal(rows.caption_ids, training):
        rule = "training captions that differ to the model"
        _refuse(rows, rule, "read to it as", str(rows.captions[training[0]]))
    if not rows.classes and _are_equal(rows.image_ids, training):
        _refuse(rows, "training rows of at least two images", "show", str(rows.images[training[0]]))


def require_several_prompts(rows: Rows, templates: Sequence[str], texts: TextEncoder) -> None:
    """Checks that the class prompts of training rows differ.

    Args:
        rows: A table with labels.
        templates: Sentences with `{}` once, where the label goes.
        texts: The checkpoint's text encoder.

    Raises:
        TableFaultsError: If they are the same to the model, so that no image can be nearer to one of them.
    """
    names = [rows.classes[label] for label in _labels_in(rows, "train").tolist()]
    if len(group_classes(names, templates, texts)) == 1:
        rule = "class names of training rows that differ to the model"
        _refuse(rows, rule, "read to it, in their prompts, as", names[0])


def _refuse(rows: Rows, rule: str, what: str, value: str) -> None:
    number = count(len(rows.indices("train")), "training row", "training rows")
    repair = f"All {number} {what} {value[:80]!r}: there is nothing to tell apart. Train on rows that differ in it."
    raise TableFaultsError([Fault(rows.source, rule, repair, value=value)])


def require_trained_classes(rows: Rows) -> None:
    """Checks that the test rows have a class that training rows have.

    Args:
        rows: A table with labels.

    Raises:
        TableFaultsError: If they have none, so that a head is wrong on each of them.
    """
    trained, tested = (_labels_in(rows, split) for split in ("train", "test"))
    if len(tested) and not np.isin(tested, trained).any():
        known = show_some(rows.classes[label] for label in trained.tolist())
        found = show_some(rows.classes[label] for label in tested.tolist())
        repair = (
            f"The head learns {known}, and is wrong on each test row: {found}. Put rows of each class into both "
            "splits, or train with finetune.AlignTask, whose class prompts answer for classes that it never saw."
        )
        raise TableFaultsError([Fault(rows.source, "test rows of classes that training rows have", repair)])


def find_untrained(rows: Rows, consequence: str) -> list[Concern]:
    """Finds classes that validation or test rows have and training rows do not.

    Args:
        rows: A table with labels.
        consequence: What follows, in a sentence.
    """
    measured = np.concatenate([_labels_in(rows, split) for split in SPLITS if split != "train"])
    untrained = np.setdiff1d(measured, _labels_in(rows, "train"))
    if not len(untrained):
        return []
    at, labels = rows.labelled()
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[at[np.isin(labels, untrained)]] = True
    chosen &= rows.splits > SPLITS.index("train")
    message = (
        f"{count(len(untrained), 'class has', 'classes have')} no training row, but "
        f"{count(int(chosen.sum()), 'validation or test row', 'validation or test rows')}: "
        f"{show_some(rows.classes[label] for label in untrained.tolist())}. {consequence}"
    )
    return [Concern("untrained_classes", message, places_where(rows, chosen))]


def _labels_in(rows: Rows, split: str) -> Integers:
    """Returns the label ids that rows of a split have, ascending."""
    return np.flatnonzero(rows.count_labels(split))


def _are_equal(values: Integers, rows: Integers) -> bool:
    """Whether there are rows, and all have the same value; looks no further than the first that has another one."""
    parts = (values[rows[start : start + CHUNK]] for start in range(0, len(rows), CHUNK))
    return len(rows) > 0 and all((part == values[rows[0]]).all() for part in parts)

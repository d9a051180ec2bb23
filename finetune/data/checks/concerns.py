"""Warns of what is not wrong with a table's labels and captions, but rarely intended."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np

from finetune.core.errors import Concern
from finetune.data.checks.many_texts import SHOWN, DistinctTexts, in_parts
from finetune.data.table.cells import Mask
from finetune.data.table.rows import Rows

IMBALANCE = 20
"""How many times as many training rows the largest class may have as the smallest."""

FEW_TEST_ROWS = 30
"""Test rows below which an accuracy says little."""

MIRRORING = {"D4", "HorizontalFlip", "SquareSymmetry", "Transpose"}
"""Transforms of albumentations that exchange left and right."""

Z95 = 1.959964
"""The normal distribution's 97.5 % quantile."""

MOST_PLACES = 100_000
"""Rows that a warning lists, so that its list stays small beside the table."""

_SIDES = re.compile(r"\b(left|right)(most|wards?)?\b", re.IGNORECASE)


def find_concerns(rows: Rows, mirrors: bool) -> list[Concern]:
    """Finds warnings about labels and captions, without opening any image.

    Args:
        rows: The table.
        mirrors: Whether augmentations may mirror training images.
    """
    found = [*_unlabelled(rows), *_one_class(rows), *_single_rows(rows), *_imbalance(rows)]
    found += [*_untested(rows), *_few_test_rows(rows), *_near_labels(rows), *_shared_captions(rows)]
    return [*found, *_sides(rows)] if mirrors else found


def show_some(values: Iterable[object], total: int | None = None) -> str:
    """Lists the first few values, and counts the others.

    Args:
        values: The values.
        total: How many there are, if not all are given.

    Example:
        >>> show_some("abcde")
        "'a', 'b', 'c' and 2 more"
    """
    known = [repr(str(value)) for value in values]
    total = len(known) if total is None else total
    more = f" and {total - SHOWN:,} more" if total > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


def count(number: int, one: str, many: str) -> str:
    """Writes a number and what it counts.

    Example:
        >>> count(1, "row", "rows"), count(2_000, "row", "rows")
        ('1 row', '2,000 rows')
    """
    return f"{number:,} {one if number == 1 else many}"


def places_where(rows: Rows, chosen: Mask) -> tuple[str, ...]:
    """Returns the places of the chosen rows, each once; of more than `MOST_PLACES` rows those of the first."""
    return tuple(dict.fromkeys(rows.place(row) for row in np.flatnonzero(chosen)[:MOST_PLACES].tolist()))


def _unlabelled(rows: Rows) -> list[Concern]:
    """Warns of forgotten labels and of a wrong separator, which several labels a row would hide."""
    if rows.label_sets is None:
        return []
    found = []
    without = rows.label_ids < 0
    if without.any():
        unlabelled = count(int(without.sum()), "row has no label and counts", "rows have no label and count")
        message = f"{unlabelled} as showing none of the classes."
        found.append(Concern("no_label", message, places_where(rows, without)))
    if np.diff(rows.label_sets.starts).max() < 2:
        message = "No row has more than one label: data.table.label_separator may not be the one in the cells."
        found.append(Concern("no_label_separator", message))
    return found


def _one_class(rows: Rows) -> list[Concern]:
    if len(rows.classes) != 1 or (rows.label_ids < 0).any():
        return []
    message = f"All rows are of one class, {rows.classes[0]!r}: nothing can be learnt or measured with it alone."
    return [Concern("one_class", message)]


def _single_rows(rows: Rows) -> list[Concern]:
    if not rows.classes:
        return []
    at, labels = rows.labelled()
    counts = np.bincount(labels, minlength=len(rows.classes))
    single = np.flatnonzero(counts == 1)
    if not len(single):
        return []
    names = show_some(rows.classes[label] for label in single)
    message = f"{count(len(single), 'class has', 'classes have')} only one row: {names}."
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[at[np.isin(labels, single)]] = True
    return [Concern("single_rows", message, places_where(rows, chosen))]


def _imbalance(rows: Rows) -> list[Concern]:
    counts = rows.count_labels("train")
    present = np.flatnonzero(counts)
    if not len(present):
        return []
    most, least = present[np.argmax(counts[present])], present[np.argmin(counts[present])]
    if counts[most] <= IMBALANCE * counts[least]:
        return []
    message = (
        f"The class {rows.classes[most]!r} has {counts[most]:,} training rows, {rows.classes[least]!r} "
        f"{counts[least]:,}: more than {IMBALANCE} times as many."
    )
    return [Concern("imbalance", message)]


def _untested(rows: Rows) -> list[Concern]:
    """Warns of classes that are trained and not measured, unless no row is test, which is an error of its own."""
    if not len(rows.indices("test")):
        return []
    untested = np.flatnonzero((rows.count_labels("train") > 0) & (rows.count_labels("test") == 0))
    if not len(untested):
        return []
    message = (
        f"{count(len(untested), 'class has', 'classes have')} training rows and no test row: "
        f"{show_some(rows.classes[label] for label in untested.tolist())}. Nothing measures what is learnt of "
        f"{'it' if len(untested) == 1 else 'them'}: put test rows of each class into a column that data.table.split "
        "names; of images in folders, `finetune prepare folders --per_class_test` draws them."
    )
    return [Concern("untested_classes", message)]


def _few_test_rows(rows: Rows) -> list[Concern]:
    number = len(rows.indices("test"))
    if not rows.classes or not 0 < number < FEW_TEST_ROWS:
        return []
    points = round(100 * half_width(number))
    message = f"{count(number, 'test row', 'test rows')}: an accuracy of 50 % would be known to ± {points} points."
    return [Concern("few_test_rows", message)]


def half_width(number: int) -> float:
    """Returns half the width of the 95 % interval of a share that was found to be a half.

    Args:
        number: How many rows it was found on.

    Source: the score interval of Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, 1927.

    Example:
        >>> round(half_width(9), 3), round(half_width(900), 3)
        (0.273, 0.033)
    """
    return Z95 / (2 * math.sqrt(number + Z95**2))


def _near_labels(rows: Rows) -> list[Concern]:
    alike: dict[str, list[str]] = {}
    for name in rows.classes:
        alike.setdefault(_fold(name), []).append(name)
    return [
        Concern("near_equal_labels", f"The classes {show_some(names)} differ only in case, spaces or punctuation.")
        for names in alike.values()
        if len(names) > 1
    ]


def _fold(name: str) -> str:
    """Removes case and punctuation from a name, unless nothing else is in it, as in '+'."""
    folded = normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", "", folded) or folded


def _shared_captions(rows: Rows) -> list[Concern]:
    """Warns of equal captions for different classes."""
    if not rows.classes or np.array_equal(rows.caption_ids, rows.label_ids):
        return []
    length = int(rows.caption_ids.max()) + 1
    least, most = np.full(length, len(rows.classes)), np.full(length, -1)
    np.minimum.at(least, rows.caption_ids, rows.label_ids)
    np.maximum.at(most, rows.caption_ids, rows.label_ids)
    shared = (least < most)[rows.caption_ids]
    if not shared.any():
        return []
    texts = DistinctTexts(in_parts(rows.captions, np.flatnonzero(shared)))
    shown = show_some(texts.shown, texts.count)
    message = f"{count(texts.count, 'caption describes', 'captions describe')} different classes: {shown}."
    return [Concern("caption_of_several_classes", message, places_where(rows, shared))]


def _sides(rows: Rows) -> list[Concern]:
    training = rows.indices("train")
    says = np.zeros(len(rows), dtype=bool)
    parts = in_parts(rows.captions, training)
    says[training] = np.fromiter((_SIDES.search(text) is not None for part in parts for text in part), bool)
    if not says.any():
        return []
    texts = DistinctTexts(in_parts(rows.captions, np.flatnonzero(says)))
    message = (
        f"An augmentation mirrors images, but {count(int(says.sum()), 'row says', 'rows say')} left or right: "
        f"{show_some(texts.shown, texts.count)}."
    )
    return [Concern("mirrored_sides", message, places_where(rows, says))]


def name_transforms(value: object) -> Sequence[str]:
    """Lists the names of the transforms in a recipe's augmentations, nested ones included.

    Example:
        >>> name_transforms([{"class_path": "albumentations.D4", "init_args": {"p": 0.5}}])
        ['D4']
    """
    if isinstance(value, list):
        return [name for part in value for name in name_transforms(part)]
    if isinstance(value, str):
        return [value.rpartition(".")[2]]
    if not isinstance(value, dict):
        return []
    settings = value.get("init_args")
    inner = [part for part in settings.values() if isinstance(part, list | dict)] if isinstance(settings, dict) else []
    own = name_transforms(value["class_path"]) if "class_path" in value else []
    return [*own, *name_transforms(inner)]


def name_steps(transform: Any) -> Iterator[str]:
    """Yields the class names of an albumentations transform and of those inside it."""
    yield type(transform).__name__
    for part in getattr(transform, "transforms", ()):
        yield from name_steps(part)

"""Turns labels into classes: numbers them in natural order, and gives them the names that reports and templates use."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetune.core.errors import did_you_mean
from finetune.data.table.cells import Cells, Integers, Strings, as_strings, find_distinct, number_strings
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.label_sets import LabelSets, split_labels
from finetune.data.table.places import Place
from finetune.data.table.quotes import Records, is_spaced, long_fields
from finetune.data.table.scratch import MEMORY, Scratch, strip_column
from finetune.data.table.text_files import TextFile, check_file


class Labels(NamedTuple):
    """The labels of N rows.

    Attributes:
        classes: Names of the classes.
        label_ids: Int64 array of shape (N,): positions in `classes`, -1 without a label; the rarest of several.
        text_ids: Int64 array of shape (N,), equal for rows with the same text: `label_ids`, or positions in `sets`.
        sets: The distinct sets of labels, or None where a row has one label.
    """

    classes: tuple[str, ...]
    label_ids: Integers
    text_ids: Integers
    sets: LabelSets | None = None

    def texts(self) -> Strings:
        """Returns the text of each `text_ids`: the name of a class, or those of a set."""
        return as_strings(self.classes if self.sets is None else self.sets.join(self.classes))


def read_labels(
    cells: Cells,
    column: str | None,
    separator: str | None,
    names: Place | None,
    faults: list[Fault],
    scratch: Scratch = MEMORY,
) -> Labels:
    """Reads the labels of each row; spaces around them do not count.

    Args:
        cells: Cells that include the column.
        column: The column, or None for a table without labels.
        separator: What separates the labels in a cell, which may then be empty; None for one label a row.
        names: File of display names, or None.
        faults: Receives a fault for each row that lacks its label or has a list of labels, and the faults of the names.
        scratch: Where the labels lie while they are numbered.

    Raises:
        TableFaultsError: If the file of names cannot be read.
    """
    if column is None:
        nothing = scratch.keep(np.full(len(cells), -1, dtype=np.int64))
        return Labels((), nothing, nothing)
    joined = "|" if separator is None else separator
    repair = f"Write its labels as one text, cat{joined}dog, with data.table.label_separator {joined!r}."
    nested = [*cells.faults_of_nested(column, repair)]
    faults += nested
    if separator is not None:
        labels = _read_several(cells, column, separator, faults)
    else:
        values, empty = strip_column(cells, column, scratch)
        faults += cells.faults_where(empty, column, "a label", "Fill it in or remove the row.")
        first, inverse = number_strings(values)
        classes, numbers = number_classes(values[first])
        labels = Labels(classes, label_ids := numbers[inverse], label_ids)
    if names is None or nested:
        return labels
    given = [label for label in labels.classes if label]  # an empty one is a fault already
    return labels._replace(classes=name_classes(given, Path(names).expanduser(), faults))


def _read_several(cells: Cells, column: str, separator: str, faults: list[Fault]) -> Labels:
    """Reads several labels a row; an empty cell is a row without labels."""
    first, cell_ids = number_strings(cells.columns[column])
    parts = split_labels(cells.columns[column][first].tolist(), separator)
    classes, label_ids = number_classes(as_strings([label for labels in parts for label in labels]))
    if len(cells) and not classes:
        repair = "Fill in the labels that each image has."
        faults.append(Fault(cells.files[0], "a label in some row", repair, column=column))
    ids = iter(label_ids.tolist())
    found = [tuple(sorted(islice(ids, len(labels)))) for labels in parts]
    numbers = {labels: number for number, labels in enumerate(dict.fromkeys(found))}
    sets = LabelSets.of(list(numbers), separator)
    set_ids = np.array([numbers[labels] for labels in found], dtype=np.int64)[cell_ids]
    return Labels(classes, sets.rarest(set_ids), set_ids, sets)


def number_classes(labels: Strings) -> tuple[tuple[str, ...], Integers]:
    """Numbers the classes in natural order.

    Args:
        labels: String array of shape (N,).

    Returns:
        The names, and an int64 array of shape (N,) with the position of each label in them.

    Example:
        >>> from finetune.data.table.cells import as_strings
        >>> number_classes(as_strings(["10", "9", "10"]))
        (('9', '10'), array([1, 0, 1]))
    """
    names, _, inverse = find_distinct(labels)
    order = sorted(range(len(names)), key=lambda position: _natural_key(str(names[position])))
    positions = np.empty(len(order), dtype=np.int64)
    positions[order] = np.arange(len(order))
    return tuple(str(names[position]) for position in order), positions[inverse]


def _natural_key(name: str) -> tuple[list[tuple[str, int, str]], str]:
    """Splits 'b10c' into [('b', 2, '10'), ('c', -1, '')]; of two numbers the longer is larger, if no zeros lead.

    The name itself orders equal keys.
    """
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    numbers = [(text, digits.lstrip("0"), bool(digits)) for text, digits in parts]
    return [(text, len(number) if given else -1, number) for text, number, given in numbers], name


def name_classes(labels: Sequence[str], path: Path, faults: list[Fault]) -> tuple[str, ...]:
    """Looks up the display name of each class in a file of lines such as `n01440764,tench`.

    The file may name further labels, so that one file serves many tables.

    Args:
        labels: The classes as the table has them.
        path: A CSV file without header: label, name.
        faults: Receives the faults of the file, and a fault for each label that the file does not name.

    Raises:
        TableFaultsError: If the file cannot be read.
    """
    file = str(path)
    repair = 'Write label,name on each line; a name that holds a comma in double quotes: label,"name".'
    names = _read_fields(path, "data.table.names", (2,), Fault(file, "a label and its name", repair), faults)
    swapped = set(names.values())
    repair = "The label stands among the names: write label,name on each line, in this order."
    for label in (label for label in labels if label not in names):
        advice = repair if label in swapped else did_you_mean(label, names)
        faults.append(Fault(file, f"a name for the label {label!r}", advice))
    first: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(names.get(label, f"\0{label}"), label)
        if other != label:
            repair = f"Its labels are {other} and {label}, which no text could distinguish. Give each its own name."
            faults.append(Fault(file, "another name for each class", repair, value=names[label]))
    return tuple(names.get(label, label) for label in labels)


def read_names(path: Path, role: str) -> dict[str, str]:
    """Reads labels and their display names from a file of lines such as `n01440764,tench`, or of labels alone.

    Args:
        path: A CSV file without header: label, or label and name.
        role: What the user calls the file, for the message.

    Returns:
        The name of each label, which is the label itself where the line holds it alone, in the order of the lines.

    Raises:
        TableFaultsError: If the file cannot be read, holds no label, or has a line of another form.
    """
    faults: list[Fault] = []
    repair = 'Put one that holds a comma in double quotes: "cat, sitting".'
    rule = Fault(str(path), "a label, or a label and its name", repair)
    names = _read_fields(path, role, (1, 2), rule, faults)
    if not names and not faults:
        faults.append(Fault(str(path), "labels", "Write one on each line."))
    if faults:
        raise TableFaultsError(faults)
    return names


@long_fields()
def _read_fields(path: Path, role: str, widths: Sequence[int], rule: Fault, faults: list[Fault]) -> dict[str, str]:
    """The first field of each line, and its last; lines of another form than the rule's become faults."""
    check_file(path, role)
    names: dict[str, str] = {}
    records = Records(TextFile.open(path), ",", True, rule.file, faults)
    for number, record in records:
        fields = [part.strip() for part in record]
        if not any(fields):
            continue
        is_plain = all(fields) and records.is_one_line() and not any(map(is_spaced, record))
        if len(fields) not in widths or not is_plain:
            line = "".join(records.lines()).rstrip()
            faults.append(Fault(rule.file, rule.rule, rule.repair, number, value=line))
        elif names.setdefault(fields[0], fields[-1]) != fields[-1]:
            faults.append(Fault(rule.file, "each label once", "Remove one of its names.", number, value=fields[0]))
    return names

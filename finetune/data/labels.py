"""Labels as classes: their order, and the names they are shown and written into templates with."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.data.cells import Cells, Integers, Strings
from finetune.data.faults import Fault
from finetune.data.text_files import check_file, read_text
from finetune.errors import did_you_mean


def read_classes(
    cells: Cells, column: str | None, names: str | None, faults: list[Fault]
) -> tuple[tuple[str, ...], Integers]:
    """Reads the label of each row; spaces around it do not count.

    Args:
        cells: With the column.
        column: The column, or None for a table without labels.
        names: File of the names that labels are shown with, or None.
        faults: Receives a fault for each row without a label, and the faults of the names.

    Returns:
        The names of the classes, and an int64 array of shape (N,) of positions in them, -1 without labels.

    Raises:
        TableFaultsError: If the file of names cannot be read.
    """
    if column is None:
        return (), np.full(len(cells), -1, dtype=np.int64)
    labels: Strings = np.strings.strip(cells.columns[column])
    faults += cells.faults_where(labels == "", column, "a label", "Fill it in or remove the row.")
    classes, label_ids = number_classes(labels)
    if names is not None:
        given = [label for label in classes if label]  # an empty one is a fault already
        classes = name_classes(given, Path(names).expanduser(), faults)
    return classes, label_ids


def number_classes(labels: Strings) -> tuple[tuple[str, ...], Integers]:
    """Names the classes in natural order, and numbers each row's.

    Args:
        labels: String array of shape (N,).

    Returns:
        The names, and an int64 array of shape (N,) of positions in them.

    Example:
        >>> from finetune.data.cells import as_strings
        >>> number_classes(as_strings(["10", "9", "10"]))
        (('9', '10'), array([1, 0, 1]))
    """
    names, inverse = np.unique(labels, return_inverse=True)
    order = sorted(range(len(names)), key=lambda position: _natural_key(str(names[position])))
    positions = np.empty(len(order), dtype=np.int64)
    positions[order] = np.arange(len(order))
    return tuple(str(names[position]) for position in order), positions[inverse]


def _natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    """Text and numbers in turn: 'b10c' becomes [('b', 10), ('c', -1)]; the name itself decides between equals."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return [(text, int(digits) if digits else -1) for text, digits in parts], name


def name_classes(labels: Sequence[str], path: Path, faults: list[Fault]) -> tuple[str, ...]:
    """Looks up the display name of each class in a file of lines such as `n01440764,tench`.

    Names of labels that do not occur are passed over, so that one file serves many tables.

    Args:
        labels: The classes as the table has them.
        path: A CSV file without header: label, name.
        faults: Receives the faults of the file, and a fault for each label it does not name.

    Raises:
        TableFaultsError: If the file cannot be read.
    """
    file = str(path)
    check_file(path, "data.table.names")
    text = read_text(path, lambda before: before.count("\n") + 1)
    names: dict[str, str] = {}
    for number, record in enumerate(csv.reader(io.StringIO(text, newline="")), start=1):
        fields = [part.strip() for part in record]
        if not any(fields):
            continue
        if len(fields) != 2 or not all(fields):
            repair = "Write label,name on each line; a name that holds a comma in double quotes."
            faults.append(Fault(file, number, None, ",".join(record), "a label and its name", repair))
        elif names.setdefault(fields[0], fields[1]) != fields[1]:
            faults.append(Fault(file, number, None, fields[0], "each label once", "Remove one of its names."))
    absent = [label for label in labels if label not in names]
    faults += [Fault(file, None, None, None, f"a name for the label {it!r}", did_you_mean(it, names)) for it in absent]
    first: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(names.get(label, f"\0{label}"), label)
        if other != label:
            repair = f"Its labels are {other} and {label}: no text could tell them apart. Tell more in their names."
            faults.append(Fault(file, None, None, names[label], "another name for each class", repair))
    return tuple(names.get(label, label) for label in labels)

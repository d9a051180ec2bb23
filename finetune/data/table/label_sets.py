"""Several labels a row: the distinct sets of labels in two arrays, and what they say of the rows that carry them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from finetune.core.errors import RecipeError
from finetune.data.table.cells import Integers


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The distinct sets of labels of a table; each row carries one of them, perhaps the empty set.

    Attributes:
        label_ids: Int64 array of shape (M,): positions in the classes, set by set, ascending in each set.
        starts: Int64 array of shape (sets + 1,): where each set begins in `label_ids`, and the end.
        separator: What separates the labels in a cell.
    """

    label_ids: Integers
    starts: Integers
    separator: str

    @classmethod
    def of(cls, sets: Sequence[Sequence[int]], separator: str) -> Self:
        """Packs sets into arrays.

        Args:
            sets: The label ids of each set, ascending.
            separator: What separates the labels in a cell.
        """
        starts = np.cumsum([0, *map(len, sets)])
        return cls(np.array([label for labels in sets for label in labels], dtype=np.int64), starts, separator)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> Integers:
        """Returns the label ids of a set, ascending."""
        return self.label_ids[self.starts[number] : self.starts[number + 1]]

    def pairs(self, set_ids: Integers) -> tuple[Integers, Integers]:
        """Pairs each row with each of its labels.

        Args:
            set_ids: Int64 array of shape (B,): the set that each row carries.

        Returns:
            Two int64 arrays of equal length: positions in the B rows, ascending, and label ids.

        Example:
            >>> LabelSets.of([(0, 2), (), (1,)], "|").pairs(np.array([2, 0, 1, 0]))
            (array([0, 1, 1, 3, 3]), array([1, 0, 2, 0, 2]))
        """
        lengths = np.diff(self.starts)[set_ids]
        before = lengths.cumsum() - lengths
        at = np.repeat(self.starts[set_ids] - before, lengths) + np.arange(lengths.sum())
        return np.repeat(np.arange(len(set_ids)), lengths), self.label_ids[at]

    def rarest(self, set_ids: Integers) -> Integers:
        """Chooses for each row its rarest label, the first of equally rare ones; -1 for a row without labels.

        Args:
            set_ids: Int64 array of shape (N,): the set that each row carries.

        Example:
            >>> LabelSets.of([(0, 1), (), (0,)], "|").rarest(np.array([0, 1, 2]))
            array([ 1, -1,  0])
        """
        counts, lengths = np.bincount(self.pairs(set_ids)[1]), np.diff(self.starts)
        order = np.lexsort((counts[self.label_ids], np.repeat(np.arange(len(self)), lengths)))
        found = np.full(len(self), -1, dtype=np.int64)
        found[lengths > 0] = self.label_ids[order[self.starts[:-1][lengths > 0]]]
        return found[set_ids]

    def join(self, names: Sequence[str]) -> list[str]:
        """Writes each set as a cell of a table holds it.

        Args:
            names: Names of the classes.

        Example:
            >>> LabelSets.of([(0, 1), ()], "|").join(["cat", "dog"])
            ['cat|dog', '']
        """
        return [self.separator.join(names[label] for label in self[number].tolist()) for number in range(len(self))]


def split_labels(cells: Sequence[str], separator: str) -> list[list[str]]:
    """Splits cells into labels; spaces around labels, empty parts and repetitions do not count.

    Args:
        cells: The cells.
        separator: What separates labels.

    Example:
        >>> split_labels(["cat | dog|cat|", ""], "|")
        [['cat', 'dog'], []]
    """
    return [list(dict.fromkeys(filter(None, map(str.strip, cell.split(separator))))) for cell in cells]


def check_label_separator(separator: str | None, label: str | None, has_captions: bool) -> None:
    """Checks `data.table.label_separator` against the other settings of a table.

    Args:
        separator: What separates labels, or None for one label a row.
        label: Column of labels, or None.
        has_captions: Whether the table has captions.

    Raises:
        RecipeError: If the separator is empty, there are no labels to separate, or there are captions.
    """
    if separator is None:
        return
    if not separator:
        raise RecipeError(
            "Expected data.table.label_separator to be what separates labels, but got ''. "
            'Write it in quotes, as in label_separator: "|", or leave it out for one label a row.'
        )
    if label is None:
        raise RecipeError(
            "Expected data.table.label_separator to go with data.table.label, but got no label. "
            "Pass --data.table.label COLUMN."
        )
    if has_captions:
        raise RecipeError(
            "Expected data.table.label_separator to go without data.table.caption, but got both: several labels do "
            "not say which other images a caption describes. Leave out data.table.caption or data.table.label."
        )

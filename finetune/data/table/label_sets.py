"""Several labels a row: the distinct sets of labels, kept in two arrays, and what rows that carry them are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from finetune.core.errors import RecipeError
from finetune.data.table.cells import Integers


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The distinct sets of labels of a table; a row carries one of them, and the empty set is one.

    Attributes:
        label_ids: Int64 array of shape (M,): positions in the classes, set by set, ascending in each.
        starts: Int64 array of shape (sets + 1,): where each set begins in `label_ids`, and the end.
        separator: What separates the labels in a cell.
    """

    label_ids: Integers
    starts: Integers
    separator: str

    @classmethod
    def of(cls, sets: Sequence[Sequence[int]], separator: str) -> Self:
        """Puts sets into arrays.

        Args:
            sets: The label ids of each set, ascending.
            separator: What separates the labels in a cell.
        """
        starts = np.cumsum([0, *map(len, sets)])
        return cls(np.array([label for labels in sets for label in labels], dtype=np.int64), starts, separator)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> Integers:
        """The label ids of a set, ascending."""
        return self.label_ids[self.starts[number] : self.starts[number + 1]]

    def pairs(self, set_ids: Integers) -> tuple[Integers, Integers]:
        """Pairs rows with each of their labels.

        Args:
            set_ids: Int64 array of shape (B,): the set that each row carries.

        Returns:
            Two int64 arrays of one length: positions in the B rows, ascending, and label ids.

        Example:
            >>> LabelSets.of([(0, 2), (), (1,)], "|").pairs(np.array([2, 0, 1, 0]))
            (array([0, 1, 1, 3, 3]), array([1, 0, 2, 0, 2]))
        """
        lengths = np.diff(self.starts)[set_ids]
        before = lengths.cumsum() - lengths
        at = np.repeat(self.starts[set_ids] - before, lengths) + np.arange(lengths.sum())
        return np.repeat(np.arange(len(set_ids)), lengths), self.label_ids[at]

    def rarest(self, set_ids: Integers) -> Integers:
        """The label of each row that the fewest rows have, the first of equals; -1 without any.

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
        """Each set as a cell of a table shows it.

        Args:
            names: Names of the classes.

        Example:
            >>> LabelSets.of([(0, 1), ()], "|").join(["cat", "dog"])
            ['cat|dog', '']
        """
        return [self.separator.join(names[label] for label in self[number].tolist()) for number in range(len(self))]


def split_labels(cells: Sequence[str], separator: str) -> list[list[str]]:
    """Splits cells into labels; spaces around them, empty parts and repetitions do not count.

    Args:
        cells: The cells.
        separator: What separates labels.

    Example:
        >>> split_labels(["cat | dog|cat|", ""], "|")
        [['cat', 'dog'], []]
    """
    return [list(dict.fromkeys(filter(None, map(str.strip, cell.split(separator))))) for cell in cells]


def check_label_separator(separator: str | None, label: str | None, has_captions: bool) -> None:
    """Checks what `data.table` says of several labels a row.

    Args:
        separator: What separates labels, or None for one label a row.
        label: Column of labels, or None.
        has_captions: Whether there are captions.

    Raises:
        RecipeError: If the separator is empty, there is no label to separate, or there are captions.
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
            "not say which other images a caption is true of. Leave out one of data.table.caption and data.table.label."
        )

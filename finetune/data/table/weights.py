"""How much each row counts in the loss."""

import numpy as np
import numpy.typing as npt

from finetune.data.table.cells import Cells, parse_numbers
from finetune.data.table.faults import Fault


def read_weights(cells: Cells, column: str | None, faults: list[Fault]) -> npt.NDArray[np.float32]:
    """Reads the weight of each row, 1 where there is no such column.

    Args:
        cells: With the column.
        column: The column, or None.
        faults: Receives a fault for each cell that is no finite number from 0.
    """
    if column is None:
        return np.ones(len(cells), dtype=np.float32)
    numbers, wrong = parse_numbers(cells.columns[column])
    with np.errstate(over="ignore"):  # beyond 3e38 they become infinite
        weights = numbers.astype(np.float32)
    wrong |= ~np.isfinite(weights) | (numbers < 0)
    faults += cells.faults_where(wrong, column, "a weight from 0", "Write a number up to 3e38, as 1 or 0.25.")
    return weights

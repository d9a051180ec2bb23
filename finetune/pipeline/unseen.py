"""The rows that a run has not seen, which alone can measure it; and what has changed of its table."""

import sys
from collections.abc import Sequence

import numpy as np

from finetune.core.console import say
from finetune.core.errors import RecipeError
from finetune.data.checks.concerns import count, show_some
from finetune.data.checks.seen import FORGOTTEN, compare_seen, is_as_seen
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.splits import SPLITS
from finetune.run.folder import RunFolder


def keep_unseen(run: RunFolder, data: ImageTextDataModule, split: str, seen: Sequence[str], anyway: bool) -> None:
    """Takes the rows that a run has seen out of a split of a table, and says so, and what has changed of the table.

    Args:
        run: The run.
        data: The table, of which the split is to be measured.
        split: The split.
        seen: Those of the run whose images do not count: `train`, and `val` where it was chosen by.
        anyway: Whether they count all the same.

    Raises:
        RecipeError: If no row is left.
    """
    if not run.table.is_file():
        say(f"warning: {FORGOTTEN} Rows it was trained on cannot be told from others.", file=sys.stderr)
        return
    rows = data.rows
    changes, former = compare_seen(rows, run.table)
    _tell(changes)
    measured = rows.splits == SPLITS.index(split)
    known = measured & np.isin(former, [SPLITS.index(name) for name in seen])
    if not known.any():
        return
    names = show_some(dict.fromkeys(rows.name(row) for row in np.flatnonzero(known).tolist()))
    what = f"{count(int(known.sum()), 'row', 'rows')} of the split {split!r}, whose images the run has seen as "
    what += f"{' or '.join(seen)}: {names}."
    if anyway:
        say(f"warning: Counts {what}", file=sys.stderr)
    elif known.sum() == measured.sum():
        raise RecipeError(f"Expected a row that the run has not seen, but got only {what} --anyway counts them.")
    else:
        say(f"warning: Leaves out {what} --anyway counts them.", file=sys.stderr)
        data.rows = rows.with_splits(np.where(known, -1, rows.splits).astype(rows.splits.dtype))


def tell_changes(run: RunFolder, data: ImageTextDataModule) -> None:
    """Says what has changed of the table since a training began; nothing where none did.

    Args:
        run: The run.
        data: The table.
    """
    if run.table.is_file():
        _tell(() if is_as_seen(data.rows, run.table) else compare_seen(data.rows, run.table).changes)
    elif run.environment.is_file():
        say(f"warning: {FORGOTTEN}", file=sys.stderr)


def _tell(changes: Sequence[str]) -> None:
    for change in changes:
        say(f"table, since the training: {change}", file=sys.stderr)

"""Tables to look for concerns in, and what those found are about."""

from pathlib import Path

import pandas as pd

from finetune.core.errors import Concern
from finetune.data.table.table import Rows, Table


def write(folder: Path, **columns: object) -> str:
    path = folder / "t.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


def labelled(folder: Path, labels: list[str], captions: list[str] | None = None, split: str = "train") -> Rows:
    columns = {"image": ["a.png"] * len(labels), "label": labels, "split": [split] * len(labels)}
    if captions is not None:
        columns["caption"] = captions
    path = write(folder, **columns)
    return Table(path, label="label", caption="caption" if captions else None, split="split").read(required=())


def about(concerns: list[Concern]) -> list[str]:
    return [concern.about for concern in concerns]

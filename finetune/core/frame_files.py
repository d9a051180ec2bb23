"""Tables that commands write for their users: CSV or Parquet, by the ending."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.core.csv_text import format_frame, shield_frame
from finetune.core.errors import RecipeError
from finetune.core.files import write_bytes

if TYPE_CHECKING:
    from pandas import DataFrame

PARQUET = (".parquet", ".pq")
"""What the names of Parquet files end in."""


def check_ending(file: Path | None, option: str = "--output") -> None:
    """Refuses a file whose ending says neither CSV nor Parquet.

    Args:
        file: What the option names; None where it names nothing.
        option: The option's name.

    Raises:
        RecipeError: If its ending is another one.
    """
    if file is not None and file.suffix.lower() not in ("", ".csv", *PARQUET):
        raise RecipeError(f"Expected {option} to end in .csv or .parquet, but got {file}. Name it so.")


def write_frame(file: Path, frame: "DataFrame") -> None:
    """Writes a table, whole or not at all. In a CSV, texts that spreadsheets would calculate are shielded.

    Args:
        file: Where to; Parquet where it ends so, else CSV.
        frame: The table, without its index.
    """
    if file.suffix.lower() in PARQUET:
        content = io.BytesIO()
        frame.to_parquet(content, index=False)
        write_bytes(file, content.getvalue())
    else:
        write_bytes(file, format_frame(shield_frame(frame)).encode())

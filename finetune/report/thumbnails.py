"""The table's images, small enough to lie inside the page, found by the place of their row."""

import io
from base64 import b64encode
from pathlib import Path
from typing import Any

from finetune.core.errors import TableError
from finetune.core.sealed import fingerprint_once
from finetune.data.checks.check import read_settings
from finetune.data.prepare.images import open_image
from finetune.data.remote.store import open_store
from finetune.data.remote.transfer import RemoteError
from finetune.data.table.rows import Rows

SIDE = 160
"""Longest side of a thumbnail, in pixels."""


class Thumbnails:
    """Thumbnails of a table's rows.

    Args:
        rows: The table; None where the page cannot show its images.
        absence: Why it cannot; empty where it can.
    """

    def __init__(self, rows: Rows | None, absence: str = "") -> None:
        self._rows = rows
        self.absence = absence

    @classmethod
    def find(cls, recipe: Path, tables: list[dict[str, Any]]) -> "Thumbnails":
        """Reads the table of a recipe once more; rows whose image is gone have no thumbnail.

        Args:
            recipe: The resolved recipe.
            tables: `path` and `sha256` of the table's files as the run read them; `version` where they are remote.
        """
        for table in tables:
            if "version" in table:
                if absence := _miss_remote(table["path"], table["version"]):
                    return cls(None, absence)
                continue
            path = Path(table["path"])
            if not path.is_file():
                return cls(None, f"The table {path} is no longer there.")
            if fingerprint_once(path) != table["sha256"]:
                return cls(None, f"The table {path} has changed since the run.")
        settings = read_settings(recipe)
        if settings is None:
            return cls(None, "Only the recipe's own code can read its table.")
        rows = settings.table.inspect().rows
        if rows is None:
            return cls(None, f"No row of {settings.table.source} can be read any more.")
        return cls(rows)

    def __call__(self, place: str) -> str | None:
        """The thumbnail of a row as a data URI, or None where there is none.

        Args:
            place: The row, as `file:row`; in a tar the row is a key, which may be any text.
        """
        if self._rows is None:
            return None
        for file_id, file in enumerate(self._rows.files):
            number = place.removeprefix(f"{file}:")
            if number != place:
                row = self._rows.find(file_id, number)
                return None if row is None else draw_thumbnail(str(self._rows.images[row]))
        return None


def _miss_remote(url: str, version: str) -> str:
    """Says why a remote table cannot be read as the run read it; empty where it can."""
    try:
        now = open_store().known(url).version
    except RemoteError as error:
        return str(error)
    return "" if now == version else f"The table {url} has changed since the run."


def draw_thumbnail(path: str) -> str | None:
    """Returns an image, made small, as a data URI: PNG or JPEG, whichever is smaller.

    Args:
        path: Its path or address.

    Returns:
        None where the file is no longer an image.
    """
    try:
        image = open_image(path)
    except (TableError, RemoteError):
        return None
    image.thumbnail((SIDE, SIDE))
    kinds = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        kinds.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, content = min(kinds)
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"

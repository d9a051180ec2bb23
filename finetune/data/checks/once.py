"""What was computed of the rows of a kept table: arrays and warnings, kept beside the rows for the starts to come."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from finetune.core.errors import Concern
from finetune.core.files import read_json, write_json
from finetune.core.freed import give_back
from finetune.core.sealed import is_sealed, seal
from finetune.data import prepare
from finetune.data.table.cells import Integers
from finetune.data.table.rows import Rows


def place_once(rows: Rows, name: str, depends: object) -> Path | None:
    """Where something that is computed of rows may be kept; None for rows that are not kept.

    Args:
        rows: The table.
        name: What is computed; its ending is that of the file.
        depends: What else it depends on; its `repr` counts.
    """
    if rows.kept is None:
        return None
    key = blake2b(repr((depends, _code())).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    stem, ending = name.split(".")
    return rows.kept / f"{stem}-{key}.{ending}"


def number_once(rows: Rows, name: str, depends: object, compute: Callable[[], Integers]) -> Integers:
    """Computes a number for each row, or opens those that an earlier start kept.

    Args:
        rows: The table.
        name: As for `place_once`.
        depends: Likewise.
        compute: Returns an int64 array of shape (N,).
    """
    place = place_once(rows, f"{name}.arrow", depends)
    if place is None:
        return compute()
    from finetune.data.table.mapped import map_numbers, write_columns

    if not is_sealed(place):
        found = compute()
        give_back()
        try:
            write_columns(place, {name: found}, {})
            seal(place)
        except OSError:  # a full disk, of which the rows themselves left some
            return found
    return map_numbers(str(place), name)


def find_once(rows: Rows, name: str, depends: object, find: Callable[[], list[Concern]]) -> list[Concern]:
    """Finds warnings, or reads those that an earlier start kept.

    Args:
        rows: The table.
        name: As for `place_once`.
        depends: Likewise.
        find: Finds them.
    """
    place = place_once(rows, f"{name}.json", depends)
    if place is None or rows.order is None:  # they were split otherwise
        return find()
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [Concern.of_record(record) for record in read_json(place)]
    found = find()
    give_back()
    with suppress(OSError):
        write_json(place, [concern._asdict() for concern in found])
    return found


@cache
def _code() -> str:
    """What computes: this folder's code, that of what prepares images and texts, and the tokenizers' library."""
    folders = (Path(__file__).parent, Path(prepare.__file__).parent)
    content = b"".join(module.read_bytes() for folder in folders for module in sorted(folder.glob("*.py")))
    return blake2b(content + json.dumps(version("tokenizers")).encode(), digest_size=16).hexdigest()

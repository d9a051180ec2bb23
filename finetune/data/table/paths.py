"""Makes the paths of a table absolute and plain: what the system opens, each file under one name."""

# Strings and os.path, as a Path object for each of a million rows would take seconds.
# ruff: noqa: PTH114, PTH118, PTH120

import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from finetune.data.prepare.members import Member
from finetune.data.remote.places import is_remote


def plain_paths(values: Iterable[str], folder: str, shards: Container[str] = ()) -> Iterator[str]:
    """Yields what values name, in their order, without `.`, `..` and doubled separators.

    Args:
        values: Paths, absolute or relative to `folder`, or addresses in tars (see `Member`), of which only the tar's
            path is made plain.
        folder: Absolute and plain path.
        shards: URLs of remote tars, of which addresses stay as they are. Any other URL is taken for a path: what a
            table says can name no server.
    """
    parents: dict[str, str] = {}
    for value in values:
        if is_remote(value) and (member := Member.parse(value)) is not None and member.tar in shards:
            yield value
            continue
        path = os.path.join(folder, value)
        if f"{os.sep}.." not in path:
            yield os.path.normpath(path)
            continue
        member = Member.parse(path)
        place = path if member is None else member.tar
        parent, name = os.path.split(place)
        if parent not in parents:
            parents[parent] = plain_folder(parent, folder)
        plain = os.path.join(parents[parent], name)
        yield plain_folder(plain, folder) if name in ("", ".", "..") else plain + path[len(place) :]


def plain_folder(path: str, root: str | None = None) -> str:
    """Returns a path without `.` and `..`.

    `..` after a link is the folder above the place to which the link leads, as it is for the system; `os.path.normpath`
    would take the folder of the link.

    Args:
        path: Absolute path.
        root: Absolute path: a place in this folder that a link led to is named from here, as without the link.
    """
    anchor, *parts = Path(path).parts  # without "."
    plain, followed = anchor, False
    for part in parts:
        if part != "..":
            plain = os.path.join(plain, part)
        else:
            is_link = os.path.islink(plain)
            plain, followed = os.path.dirname(os.path.realpath(plain) if is_link else plain), followed or is_link
    if root is None or not followed:
        return plain
    real = os.path.realpath(root)
    inside = plain == real or plain.startswith(real.rstrip(os.sep) + os.sep)
    return root.rstrip(os.sep) + plain[len(real.rstrip(os.sep)) :] if inside else plain

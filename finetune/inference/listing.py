"""What words of a user name: image files that are there, folders of them, tables, tars."""

import os
from collections.abc import Iterable
from pathlib import Path

from finetune.core.errors import TableError, did_you_mean
from finetune.core.frame_files import PARQUET
from finetune.data.checks.concerns import count
from finetune.data.prepare.images import EXTENSIONS
from finetune.data.prepare.members import Member
from finetune.data.table.sources import JSON_LINES, TABS, TAR, kind_of

TABLES = frozenset({".csv", *TABS, *JSON_LINES, *PARQUET, TAR})


def require_files(images: Iterable[str]) -> None:
    """Refuses paths at which there is nothing.

    Args:
        images: Paths of images; addresses in tars are taken as they are.

    Raises:
        TableError: If there is none at a path, naming the nearest one beside the first.
    """
    missing = [image for image in images if Member.parse(image) is None and not os.path.lexists(image)]
    if missing:
        parent = Path(missing[0]).parent
        files = sorted(parent.iterdir()) if parent.is_dir() else []
        beside = [str(file) for file in files if file.suffix.lower() in EXTENSIONS]
        more = f", nor at {count(len(missing) - 1, 'more path', 'more paths')}" if len(missing) > 1 else ""
        repair = did_you_mean(missing[0], beside) if beside else f"{parent} holds no image."
        raise TableError(f"Expected {missing[0]} to be an image file, but got none there{more}. {repair}")


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the images below a folder, sorted, and those among its hidden files.

    Args:
        folder: The folder.

    Raises:
        TableError: If it holds no image.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and not file.is_dir())
    is_hidden = [any(part.startswith(".") for part in file.relative_to(folder).parts) for file in files]
    images = [str(file) for file, hidden in zip(files, is_hidden, strict=True) if not hidden]
    if not images:
        known = ", ".join(EXTENSIONS)
        but = f"it holds {count(sum(is_hidden), 'hidden one', 'hidden ones')} alone" if files else "it holds none"
        raise TableError(f"Expected {folder} to hold images ({known}), but {but}.")
    return images, [str(file) for file, hidden in zip(files, is_hidden, strict=True) if hidden]


def is_table(path: Path) -> bool:
    """Whether a path names a table by its ending.

    Args:
        path: A file, which need not exist, or a pattern.
    """
    return kind_of(path) in TABLES


def is_tar(path: Path) -> bool:
    """Whether a path names a tar by its ending, or several by a pattern.

    Args:
        path: A file, which need not exist, or a pattern.
    """
    return kind_of(path) == TAR

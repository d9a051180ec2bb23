"""The folders that the toolkit writes to: whether it can, and how much room there is."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from finetune.core.cache import cache_folder
from finetune.pipeline.doctor.finding import GIB, Finding

LEAST = 5 * GIB
"""Of a checkpoint of align-base's size, what a training saves, and the export."""


def find_files() -> Iterator[Finding]:
    """Yields the cache, the folder of temporary files, and this one, in which runs are written."""
    yield _find("cache", cache_folder(), "Set ALIGN_FINETUNE_CACHE to a folder that can be written to.")
    yield _find("temporary", Path(tempfile.gettempdir()), "Set TMPDIR to another folder.")
    yield _find("runs", Path.cwd() / "runs", "Go to another folder, or set run.folder.")
    yield from _find_shadows()


def _find(about: str, folder: Path, repair: str) -> Finding:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(about, f"{folder} cannot be written to", repair, is_fatal=True)
    free = shutil.disk_usage(there).free
    short = f"Free some room, or: {repair[0].lower()}{repair[1:]}" if free < LEAST else ""
    return Finding(about, f"{folder}, {free / GIB:.1f} GiB free", short)


def _find_shadows() -> Iterator[Finding]:
    """Folders and files here that Python imports in the place of a package, if it is started with `python -m`."""
    for name in ("torch", "transformers", "peft", "lightning", "datasets", "tokenizers", "PIL", "numpy", "pandas"):
        for path in (Path(name), Path(f"{name}.py")):
            if (path.suffix and path.is_file()) or (path / "__init__.py").is_file():
                yield Finding(name, f"{path} in this folder hides the package {name}", "Rename it, or go elsewhere.")

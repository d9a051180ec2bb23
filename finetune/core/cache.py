"""Where a machine keeps what it can make or fetch again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$ALIGN_FINETUNE_CACHE`, else `$XDG_CACHE_HOME/align-finetune`, else `~/.cache/align-finetune`."""
    if named := os.environ.get("ALIGN_FINETUNE_CACHE"):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "align-finetune"

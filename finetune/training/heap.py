"""Memory that a training step frees stays with the process for the next one, instead of being asked for anew."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from finetune.core.freed import give_back

_MXFAST, _TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = 1, -1, -3, -4  # malloc.h
_MEANWHILE = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_MXFAST, 0))
"""Fast bins hold back the crumbs between aligned blocks, without which a freed block is too small for the next one."""

_AFTERWARDS = ((_MMAP_MAX, 65_536), (_MMAP_THRESHOLD, 32 * 1024**2), (_TRIM_THRESHOLD, 64 * 1024**2), (_MXFAST, 128))
"""What glibc has by itself, once its thresholds have grown with the blocks that were freed."""

_SAID = ("MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
"""How the environment variables begin by which a user says what glibc keeps."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Lets glibc keep the large blocks that are freed in this context, and gives them back at its end.

    By itself glibc maps each block above 32 MiB anew, and the system clears its pages, which costs a step on a CPU a
    good part of its time. Nothing changes where another allocator is in use, or where the environment says how glibc
    allocates.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if tune is None or any(name.startswith(_SAID) for name in os.environ):
        yield
        return
    try:
        for name, value in _MEANWHILE:
            tune(name, value)
        yield
    finally:
        for name, value in _AFTERWARDS:
            tune(name, value)
        give_back()

"""Memory that was freed goes back to the system, where a process has needed much of it once and does not any more."""

import ctypes
import os


def give_back() -> None:
    """Returns freed memory to the system, as far as glibc holds it; other allocators do so by themselves."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)

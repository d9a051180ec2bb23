"""Bytes: those that a computation holds at its peak, and those that a device has left."""

import resource
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that come to be inside a block, and forgets those that are gone.

    What an operation needs for itself, and what an allocator keeps beside, is not seen.

    Attributes:
        peak: The most bytes that were held at a time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation. What it returns is new unless it shares its memory with an argument."""
        self._ignore([part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)])
        found = func(*args, **(kwargs or {}))
        for part in tree_leaves(found):
            if isinstance(part, Tensor):
                self._count(part.untyped_storage())
        return found

    def _ignore(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._remember(storage, 0)

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._remember(storage, storage.nbytes())
            self.peak = max(self.peak, self._held)

    def _remember(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        self._held += size

        def forget(_: object) -> None:
            del self._known[key]
            self._held -= size

        self._known[key] = weakref.ref(storage, forget)


def peak_bytes() -> int:
    """Returns the most bytes of memory that this process has had so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def free_bytes(device: torch.device) -> int:
    """Returns how many bytes a device has left for this process.

    Args:
        device: A CPU, of whose memory a container may have a share, or an accelerator.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    available: int = psutil.virtual_memory().available
    return min([available, *_left_in_container()])


def _left_in_container() -> list[int]:
    """Bytes that this container may still take: its limit less all but the files that it keeps in memory."""
    with suppress(OSError, ValueError, KeyError):
        limit = int((_GROUP / "memory.max").read_text())  # "max" where there is none
        use = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return [limit - int(use["anon"])]
    return []

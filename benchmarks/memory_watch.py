"""The largest memory that a process holds during some work."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psutil


def resident_bytes() -> int:
    """Returns what this process has in memory."""
    found: int = psutil.Process().memory_info().rss
    return found


class MemoryWatch:
    """Samples memory in a thread until it is stopped, or its `with` statement ends.

    Args:
        seconds: Between two samples.
        read: Returns the bytes that are held now.

    Attributes:
        peak: The largest sample.
    """

    def __init__(self, seconds: float, read: Callable[[], int] = resident_bytes) -> None:
        self.peak = 0
        self._seconds = seconds
        self._read = read
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the sampling."""
        self._done.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def _sample(self) -> None:
        while not self._done.wait(self._seconds):
            self.peak = max(self.peak, self._read())

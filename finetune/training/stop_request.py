"""A signal that asks a training to end, which it does once the step is done and saved."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

from finetune.core import processes
from finetune.core.door import drop

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Notes the first signal that asks the process to end; the second one ends it at once.

    The signals are Ctrl-C, SIGTERM, and under SLURM SIGUSR1, which `sbatch --signal=USR1@SECONDS` sends before the time
    is over. One that the process was started to ignore, as shells start what runs in the background of a script, it
    goes on to ignore.

    Attributes:
        signal: The signal that was noted.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, object] = {}

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Notes signals as long as the block runs, in the main thread. At its end, a signal ends the process.

        Raises:
            SystemExit: With 128 and the signal's number, if the block ended without an error after a signal.
        """
        if current_thread() is not main_thread():
            yield
            return
        signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
        former = {number: signal.getsignal(number) for number in signals}
        self._former = {number: handler for number, handler in former.items() if handler is not signal.SIG_IGN}
        try:
            self.listen()
            yield
        finally:
            for number, handler in self._former.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            self._former = {}
        self.heed()

    def listen(self) -> None:
        """Takes the signals again from whatever has taken them since: Lightning does when a fit starts."""
        for number in self._former:
            signal.signal(number, self._note)

    def agree(self) -> None:
        """Takes a signal that any of several processes has noted for one that this process has noted."""
        noted = processes.sum_counts([int(self.signal == number) for number in _SIGNALS])
        if self.signal is None and any(noted):
            self.signal = next(number for number, times in zip(_SIGNALS, noted, strict=True) if times)

    def heed(self) -> None:
        """Ends the process if it was asked to.

        Raises:
            SystemExit: With 128 and the signal's number.
        """
        if self.signal is not None:
            raise SystemExit(128 + self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:
            signal.signal(number, self._former[signal.Signals(number)])  # type: ignore[arg-type]
            signal.raise_signal(number)
            return
        self.signal = signal.Signals(number)
        if not processes.is_first():
            return
        try:
            print(f"{self.signal.name}: stops once this step is done and saved; again stops at once", file=sys.stderr)
        except OSError:  # Ctrl-C has ended the program that read the output, too
            drop(sys.stderr)

"""How far a piece of work is: a bar on a terminal, and anywhere else a line every half minute."""

import sys
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from tqdm import tqdm

from finetune.core.console import make_harmless
from finetune.core.door import drop

REDRAWN, REPEATED = 1.0, 30.0
"""Seconds between two states of a bar on a terminal, and between two lines elsewhere, such as in a file."""

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {remaining} left{postfix}"
_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}{postfix}"


class Bar:
    """Shows on the standard error stream how far a piece of work is, how fast, and how much time is left.

    Args:
        title: What is done. It may change.
        total: How many steps there are; None where nobody knows.
        unit: What a step is, in the plural.
        items: What is counted a second, in the plural.
        done: Steps that were taken before, of which the speed tells nothing.
        shown: Whether anything is shown at all.
        note: Says what else is worth showing, when it is shown.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str = "batches",
        items: str = "images",
        done: int = 0,
        shown: bool = True,
        note: Callable[[], str] = str,
    ) -> None:
        self.items = items
        self.note = note
        self._stream = _Stream(sys.stderr)
        redraws = self._stream.isatty()
        self._pause = REDRAWN if redraws else REPEATED
        self._done_before, self._done, self._counted, self._started = done, float(done), 0, time.monotonic()
        self._next = self._started + self._pause
        self._bar: Any = _Silent(
            desc=make_harmless(title),
            total=total,
            unit=unit,
            initial=done,
            file=self._stream,
            leave=False,
            disable=not shown,
            delay=0.0 if redraws else 1.0,  # the first state, which tells nothing, is no line
            dynamic_ncols=redraws,
            bar_format=_WITHOUT_TOTAL if total is None else _BAR if redraws else _LINE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *stop: object) -> None:
        self.close()

    @property
    def title(self) -> str:
        """What is done."""
        return str(self._bar.desc)

    @title.setter
    def title(self, title: str) -> None:
        self._bar.desc = make_harmless(title)

    @property
    def seconds_a_step(self) -> float | None:
        """Mean seconds of the steps since the start; None before the first one."""
        taken = self._bar.n - self._done_before
        return (time.monotonic() - self._started) / taken if taken else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the steps to come take at this speed; None where nobody knows."""
        each, total = self.seconds_a_step, self._bar.total
        return None if each is None or total is None else each * max(0, total - self._bar.n)

    def advance(self, steps: float = 1, items: int = 0) -> None:
        """Counts, and shows the new state where one is due.

        Args:
            steps: Steps that were taken, or what part of one.
            items: How many items they were.
        """
        self._done += steps
        done = round(self._done, 1)
        self._bar.n = int(done) if done.is_integer() else done
        self._counted += items
        if not self._bar.disable and time.monotonic() >= self._next:
            self.show()

    def show(self) -> None:
        """Shows the state as it is."""
        if self._bar.disable:
            return
        seconds = time.monotonic() - self._started
        speed = f"{self._counted / seconds:.3g} {self.items}/s" if self._counted and seconds else ""
        self._bar.set_postfix_str(", ".join(filter(None, [speed, self.note()])), refresh=False)
        self._bar.refresh()
        self._next = time.monotonic() + self._pause

    def write(self, line: str) -> None:
        """Writes a line that stays.

        Args:
            line: The line.
        """
        if self._bar.disable:
            return
        if self._stream.isatty():
            tqdm.write(make_harmless(line), self._stream)
        else:
            self._stream.write(make_harmless(line))
            self._stream.flush()

    def close(self) -> None:
        """Removes the bar from a terminal."""
        self._bar.close()


def format_seconds(seconds: float) -> str:
    """Writes a time as a clock does.

    Args:
        seconds: The time.

    Example:
        >>> format_seconds(75.4), format_seconds(7322)
        ('01:15', '2:02:02')
    """
    return tqdm.format_interval(seconds)


class _Silent(tqdm):  # type: ignore[type-arg]
    """A bar without the thread that draws those that have not moved for long."""

    monitor_interval = 0


class _Stream:
    """A stream for a bar. Where it is no terminal, each state is a line, and one that nobody reads ends nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> None:
        if not self.isatty():
            text = f"{stripped}\n" if (stripped := text.strip()) else ""
        self._guard(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._guard(self._stream.flush)

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:  # Ctrl-C, which a training outlasts, has ended the program that read the output
            drop(self._stream)

"""The messages between processes: timed as they pass in a training, and each alone."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from speed_meter import synchronise
from torch import Tensor

from finetune.core import processes

Record = dict[str, Any]

LOGGED = 64
"""Bytes up to which an all-reduce of floats is one of logged values, not of gradients."""


class Messages:
    """Times what passes between the processes, by what it is for, while a `with` statement lasts.

    Embeddings are gathered and their gradients sent back; gradients of adapters are all-reduced; all else are counts
    and logged values, the first of which waits for the slowest process. On CUDA the device is waited for before and
    after each message.

    Attributes:
        seconds: Of each kind.
        bytes: Of each kind, that this process receives, if an all-reduce passes around a ring.
        number: Of messages of each kind.
    """

    _NAMES = ("all_gather", "all_to_all_single", "all_reduce")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)
        self.number: dict[str, int] = defaultdict(int)
        self._plain = {name: getattr(dist, name) for name in self._NAMES}

    def __enter__(self) -> Self:
        for name, send in self._plain.items():
            setattr(dist, name, self._follow(name, send))
        return self

    def __exit__(self, *_: object) -> None:
        for name, send in self._plain.items():
            setattr(dist, name, send)

    def _follow(self, name: str, send: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(send)
        def timed(*args: Any, **options: Any) -> Any:
            kind, received = classify(name, *args[:1])
            synchronise()
            started = time.perf_counter()
            done = send(*args, **options)
            synchronise()
            self.seconds[kind] += time.perf_counter() - started
            self.bytes[kind] += received
            self.number[kind] += 1
            return done

        return timed


def classify(name: str, into: Tensor | list[Tensor]) -> tuple[str, float]:
    """Says what a message is for, and how many bytes of it each process receives.

    Args:
        name: The function of `torch.distributed`.
        into: Its first argument: where the result goes.

    Returns:
        `gather`, `reduce` or `small`, and bytes; an all-reduce goes around a ring twice.
    """
    others = (dist.get_world_size() - 1) / dist.get_world_size()
    if name != "all_reduce":
        return "gather", others * sum(part.nbytes for part in (into if isinstance(into, list) else [into]))
    assert isinstance(into, Tensor)
    is_gradient = into.is_floating_point() and into.nbytes > LOGGED
    return "reduce" if is_gradient else "small", 2 * others * into.nbytes


def wire_bytes() -> int:
    """Bytes that have passed through this machine's loopback so far; 0 where nobody counts them."""
    path = Path("/proc/net/dev")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.strip().startswith("lo:")), 0)


def time_messages(
    rows: Sequence[int], numbers: Sequence[int], repeats: int, dimension: int, device: torch.device
) -> list[Record]:
    """Times gathers of embeddings, forward and back, and all-reduces, each alone, as a step does them.

    Args:
        rows: Rows of each process in the gathers.
        numbers: Numbers in the all-reduces.
        repeats: How often each; the median counts.
        dimension: Of an embedding; a row has one of each tower.
        device: The process's.
    """
    world, found = processes.count(), []

    def note(kind: str, nbytes: int, send: Callable[[], object]) -> None:
        seconds = [time_message(send) for _ in range(3 + repeats)][3:]
        found.append({"kind": kind, "processes": world, "bytes": nbytes, "seconds": statistics.median(seconds)})

    for count in rows:
        features = torch.randn(count, 2 * dimension, device=device, requires_grad=True)
        note("gather", features.nbytes, partial(gather_and_return, features))
    for number in numbers:
        gradients = torch.randn(number, device=device)
        note("reduce", gradients.nbytes, partial(processes.average, gradients))
    note("small", 8 * world, partial(processes.count_rows, 1))
    return found


def gather_and_return(features: Tensor) -> None:
    """Gathers the features of all processes, and sends the gradients of each back to it."""
    processes.gather_features(features, [len(features)] * processes.count()).sum().backward()


def time_message(send: Callable[[], object]) -> float:
    """Seconds of a message for which all processes are ready."""
    processes.count_rows(0)
    synchronise()
    started = time.perf_counter()
    send()
    synchronise()
    return time.perf_counter() - started

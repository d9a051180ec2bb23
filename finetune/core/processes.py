"""The processes that train one model together: which of them this one is, and the messages between them.

A training on one device is one process, and so is code outside of a training: then all of this does nothing.
"""

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from finetune.core.errors import ProcessError

T = TypeVar("T")

_PATIENCE = timedelta(days=30)
"""How long the others wait for what the first process does alone, such as an export. Its end they notice at once."""

_groups: dict[str, dist.ProcessGroup] = {}
_is_alone = False


def open_groups(timeout: timedelta) -> None:
    """Opens the ways by which processes speak that are connected; each of them calls it. A second time nothing is done.

    Args:
        timeout: How long a message within a step may take.
    """
    if not _groups:
        _groups["device"] = dist.new_group(timeout=timeout)
        _groups["step"] = dist.new_group(backend="gloo", timeout=timeout)
        _groups["stage"] = dist.new_group(backend="gloo", timeout=_PATIENCE)
        atexit.register(_disconnect)


def _disconnect() -> None:
    """Closes all connections at exit: a thread of gloo that outlives the interpreter aborts the process."""
    _groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Lets this process work as if there were no others: no message passes, and none waits for it."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def count() -> int:
    """Returns how many processes there are."""
    return dist.get_world_size() if _are_several() else 1


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if _are_several() else 0


def is_first() -> bool:
    """Returns whether this process is the one that writes and speaks."""
    return rank() == 0


def from_first(make: Callable[[], T]) -> T:
    """Returns to all processes what the first one makes, for which they wait.

    Args:
        make: Called in the first process, as if it were the only one. What it returns must be picklable.
    """
    if not _are_several():
        return make()
    box: list[Any] = [None]
    if is_first():
        with alone():
            box = [make()]
    dist.broadcast_object_list(box, src=0, group=_groups["stage"])
    return cast(T, box[0])


def from_all(value: T) -> list[T]:
    """Returns the values of all processes, in their order.

    Args:
        value: This process's, picklable.
    """
    if not _are_several():
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value, group=_groups["step"])
    return found


def sum_counts(counts: Sequence[int]) -> list[int]:
    """Returns the sums over all processes.

    Args:
        counts: Whole numbers, of the same length everywhere.
    """
    if not _are_several():
        return list(counts)
    total = torch.tensor(counts, dtype=torch.int64)
    dist.all_reduce(total, group=_groups["step"])
    return total.tolist()


def count_rows(rows: int) -> list[int]:
    """Returns how many rows each process has.

    Args:
        rows: How many this one has.
    """
    own = [0] * count()
    own[rank()] = rows
    return sum_counts(own)


def average(tensor: Tensor) -> Tensor:
    """Returns the mean over all processes.

    Args:
        tensor: Float tensor, of the same shape everywhere; it is left as it is.
    """
    if not _are_several():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total, group=_group_of(total))
    return total / count()


def gather_rows(part: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns the rows of all processes, those of the first one first. Gradients do not pass.

    Args:
        part: Tensor of shape (B, ...); all but B is the same everywhere.
        counts: B of each process, see `count_rows`.
    """
    if not _are_several():
        return part
    sent = part.detach().to(torch.uint8) if part.dtype == torch.bool else part.detach()
    padded = sent.new_zeros(max(counts), *sent.shape[1:])
    padded[: len(sent)] = sent
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=_group_of(padded))
    return torch.cat([found[:rows] for found, rows in zip(parts, counts, strict=True)]).to(part.dtype)


def gather_features(part: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns the rows of all processes as `gather_rows` does, and lets gradients pass.

    Each process's loss is a term of a sum: backward sends the gradients of rows to the process that they came from,
    which adds them up, in the order of the processes.

    Args:
        part: As for `gather_rows`.
        counts: Likewise.
    """
    gather = cast(Callable[..., Tensor], _Gather.apply)
    return gather(part, counts) if _are_several() else part


def find_loss(error: BaseException) -> ProcessError | None:
    """Returns what an error says of the other processes; None of one that is about something else.

    Args:
        error: What was raised.
    """
    if isinstance(error, ProcessError):
        return error
    if not isinstance(error, RuntimeError) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return None
    said = str(error).partition("] ")[2] or str(error)
    what = "one does not answer" if "imed out" in said or "imeout" in said else "one has ended"
    where = (
        f"process {dist.get_rank()} of {dist.get_world_size()}" if dist.is_initialized() else "one that waited for it"
    )
    return ProcessError(
        f"Expected all processes of the training to go on, but {what} "
        f"(noticed by {where}: {said.splitlines()[0].partition('. ')[0]})."
    )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor, counts: Sequence[int]) -> Tensor:
        context.counts = counts
        return gather_rows(part, counts)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        counts: Sequence[int] = context.counts
        own = counts[rank()]
        received = gradient.new_empty(len(counts) * own, *gradient.shape[1:])
        sizes = [own] * len(counts)
        dist.all_to_all_single(received, gradient.contiguous(), sizes, list(counts), group=_group_of(gradient))
        return received.unflatten(0, (len(counts), own)).sum(0), None


def _are_several() -> bool:
    return bool(_groups) and not _is_alone


def _group_of(tensor: Tensor) -> dist.ProcessGroup:
    """The way by which a tensor travels: the device's own, or gloo's."""
    return _groups["step" if tensor.is_cpu else "device"]

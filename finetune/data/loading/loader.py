"""Loaders of the rows whose images can be read; the main process gets a report of the others."""

import atexit
import signal
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from finetune.core.errors import TableError
from finetune.core.types import Batch
from finetune.data.checks.unreadable import Unreadable
from finetune.data.loading.sampler import TrainBatches

_LAST_SECONDS = 300
"""How long a worker goes on after SIGTERM."""


class Collated(NamedTuple):
    """The rows of a batch as a worker returns them.

    Attributes:
        batch: The rows whose images can be read, or None if there are none.
        unreadable: The other rows.
        fault: What else the main process should say, once.
    """

    batch: Batch | None
    unreadable: list[Unreadable]
    fault: str = ""


class BatchLoader(DataLoader[Batch]):
    """A `DataLoader` whose workers return `Collated`, and which yields their batches.

    Args:
        dataset: The rows.
        report: Receives the unreadable rows of a batch, in the main process, before the loader yields the batch.
        nothing: A batch of no rows, which stands for one of which no image can be read where processes share each
            batch, as the others wait for this one. None leaves such batches out.
        options: The options of `DataLoader`.
    """

    needs_every_batch = False

    def __init__(
        self,
        dataset: Dataset[Batch],
        report: Callable[[Sequence[Unreadable]], None],
        nothing: Batch | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, worker_init_fn=outlast_signals, **options)
        self.report = report
        self.nothing = nothing

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yields the batches. An error ends the workers at once: what it leaves behind is collected much later.

        Raises:
            TableError: If no image of all batches can be read, or of one batch if every batch is needed.
        """
        collated = super().__iter__()
        if self.num_workers:
            atexit.register(_end_workers, weakref.ref(collated))
        try:
            yield from self._unpack(collated)
        except Exception:
            _end_workers(weakref.ref(collated))
            raise

    def _unpack(self, collated: Iterator[Collated]) -> Iterator[Batch]:
        is_empty, unreadable = True, list[Unreadable]()
        for batch, unreadable, fault in collated:
            if fault:
                warnings.warn(fault, stacklevel=1)  # Python shows a warning once
            if unreadable:
                self.report(unreadable)
            found = self.nothing if batch is None else batch
            if found is not None:
                is_empty = False
                yield found
            elif self.needs_every_batch:
                raise _nothing_left("training batch", unreadable, "Or raise data.batch_size, if it is small.")
        if is_empty and unreadable:
            raise _nothing_left("split", unreadable, "`finetune check --full` says what is wrong with each.")


class TrainBatchLoader(BatchLoader):
    """A `BatchLoader` over `TrainBatches` whose state is the number of batches that the training loop received.

    Lightning saves that state in its checkpoints and restores it. The count starts anew with each epoch, and leaves out
    batches that workers have only prepared. A batch without any readable image is an error: it would teach nothing.
    """

    needs_every_batch = True
    batch_sampler: TrainBatches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yields batches, and counts each as delivered."""
        for batch in super().__iter__():
            self.batch_sampler.delivered = (self.batch_sampler.delivered + 1) % len(self.batch_sampler)
            yield batch

    @contextmanager
    def one_given_back(self) -> Iterator[None]:
        """Counts the last batch as still to be delivered as long as the block runs."""
        batches = self.batch_sampler
        delivered = batches.delivered
        batches.delivered = (delivered - 1) % len(batches)
        try:
            yield
        finally:
            batches.delivered = delivered

    def state_dict(self) -> dict[str, Any]:
        """Returns the current epoch and the number of its delivered batches."""
        return {"epoch": self.batch_sampler.epoch, "delivered": self.batch_sampler.delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the batches that were delivered when the state was saved."""
        self.batch_sampler.epoch = state["epoch"]
        self.batch_sampler.delivered = state["delivered"]


def _end_workers(iterator: "weakref.ref[Any]") -> None:
    """Ends workers that nobody reads from, before torch asks them by a signal, which they outlast.

    Args:
        iterator: Torch's, of a loader with or without workers; it may be gone.
    """
    found: Any = iterator()
    if hasattr(found, "_shutdown_workers"):
        found._shutdown_workers()


def outlast_signals(worker: int) -> None:  # noqa: ARG001
    """Lets a worker go on when all processes are asked to end: the main process stops it, once it needs it no more.

    Args:
        worker: Its number.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Ends the process by its alarm, should the main process have meant it, or when the main process asks again."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(_LAST_SECONDS)


def usual_workers(cores: int) -> int:
    """Returns how many processes read images where nothing was timed: a core is left for the model.

    Args:
        cores: Those that this process may use.
    """
    return min(4, cores - 1)


def peek(loader: DataLoader[Batch]) -> Iterator[Collated]:
    """Yields the batches of the loader's epoch as its workers would make them, but in this process.

    Nothing of the loader changes, and unreadable images are left to it to report. A loader of another kind, which a
    data module of a user's may have, is gone through as it is.

    Args:
        loader: The training rows.
    """
    if not isinstance(loader, TrainBatchLoader):
        yield from (Collated(batch, []) for batch in loader)
        return
    assert loader.collate_fn is not None
    for keys in loader.batch_sampler:
        yield loader.collate_fn([loader.dataset[key] for key in keys])


def _nothing_left(what: str, unreadable: Sequence[Unreadable], repair: str) -> TableError:
    last = unreadable[-1]
    advice = f"{last.repair}." if last.repair else "Check that the images' disk is connected."
    return TableError(
        f"Expected each {what} to have an image that can be read, but got none (the last one: {last.reason}). "
        f"{advice} {repair}"
    )

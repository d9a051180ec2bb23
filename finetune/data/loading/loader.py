"""Loaders that hand over the rows whose images can be read, and report the others to the main process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from finetune.core.errors import TableError
from finetune.core.types import Batch
from finetune.data.checks.unreadable import Unreadable
from finetune.data.loading.sampler import TrainLoader


class Collated(NamedTuple):
    """What a worker makes of the rows of a batch.

    Attributes:
        batch: The rows whose images can be read, or None where there are none.
        unreadable: The other rows.
    """

    batch: Batch | None
    unreadable: list[Unreadable]


class BatchLoader(DataLoader[Batch]):
    """A `DataLoader` whose workers return `Collated`, of which the batches are handed on.

    Args:
        dataset: The rows.
        report: Receives the unreadable rows of a batch, in the main process, before the batch is handed on.
        options: Those of `DataLoader`.
    """

    needs_every_batch = False

    def __init__(self, dataset: Dataset[Batch], report: Callable[[Sequence[Unreadable]], None], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.report = report

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yields the batches.

        Raises:
            TableError: If no image of any batch can be read; or, where every batch is needed, of one.
        """
        is_empty, unreadable = True, []
        for batch, unreadable in super().__iter__():
            if unreadable:
                self.report(unreadable)
            if batch is not None:
                is_empty = False
                yield batch
            elif self.needs_every_batch:
                raise _nothing_left("training batch", unreadable, "Or raise data.batch_size, if it is small.")
        if is_empty and unreadable:
            raise _nothing_left("split", unreadable, "`finetune check --full` tells what is wrong with each.")


class TrainBatchLoader(BatchLoader, TrainLoader):
    """A `TrainLoader` that hands on batches as `BatchLoader` does; a step without any image would teach nothing."""

    needs_every_batch = True


def _nothing_left(what: str, unreadable: Sequence[Unreadable], repair: str) -> TableError:
    return TableError(
        f"Expected each {what} to have an image that can be read, but got none (the last one: "
        f"{unreadable[-1].reason}). See whether the images' disk is there. {repair}"
    )

"""A table as Lightning's loaders: training rows in a resumable order, evaluation rows as they stand."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from albumentations import BaseCompose, BasicTransform
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.core import processes
from finetune.core.cache import cache_folder
from finetune.core.cores import count_share
from finetune.core.errors import Concern
from finetune.core.types import Batch, ClassPrompts, Sample
from finetune.data.checks.concerns import MIRRORING, find_concerns, name_steps
from finetune.data.checks.copies import find_contradictions, find_copies
from finetune.data.checks.equal_texts import find_equal_captions, find_equal_classes, number_texts
from finetune.data.checks.limits import find_long_texts, find_small_images
from finetune.data.checks.once import find_once, number_once
from finetune.data.checks.unreadable import BadImages, SkippedRow, Unreadable, list_skipped
from finetune.data.loading.choices import RowChoices
from finetune.data.loading.dataset import ImageTextDataset
from finetune.data.loading.fetch_ahead import require_room
from finetune.data.loading.kinds import TableKind, find_kind
from finetune.data.loading.loader import BatchLoader, TrainBatchLoader, usual_workers
from finetune.data.loading.sampler import InOrder, Part, TrainBatches
from finetune.data.loading.sampling import Sampling
from finetune.data.loading.shard_order import Shards
from finetune.data.prepare.augmentation import Augmentation
from finetune.data.prepare.images import ImagePreparation
from finetune.data.prepare.pixel_cache import PixelCache
from finetune.data.prepare.texts import TextEncoder, write_prompts
from finetune.data.table.cells import Integers
from finetune.data.table.retention import name_tables
from finetune.data.table.rows import Rows
from finetune.data.table.sources import is_remote_tar
from finetune.data.table.stored import release_pages
from finetune.data.table.table import Table
from finetune.model.base import Base, Checkpoint

Loader = TypeVar("Loader", bound=BatchLoader)

ROWS_TO_MEASURE = 64
"""Rows that are measured at a time, so that measuring in a process of its own takes no more memory than training."""

PREFETCHED = 2
"""Batches that each worker prepares before they are asked for."""


class ImageTextDataModule(LightningDataModule):
    """Images with captions, or images with labels, from one table.

    Args:
        table: File, columns and split.
        checkpoint: Hub id, local folder, or `align-mini`, whose processor prepares pixels and words; in Python also an
            open `Base`.
        retention: Tables of other domains, with captions or labels, on which the model must not get worse: their test
            rows are measured before and after. Their labels are written into the default template.
        templates: Sentences that class names are written into in place of `{}`; a class is embedded as the mean of all.
        augmentations: Albumentations transforms and compositions, such as `OneOf`, of the training images, applied in
            this order before the image is resized as the checkpoint's processor does; null for none.
        image_size: Side of the image the towers see, in pixels; null for the checkpoint's own.
        batch_size: Largest number of rows in a batch: those whose images and texts are compared with each other.
            How many of them are in memory at a time, the task's `micro_batch` says.
        num_workers: Processes that read images; 0 reads in the main process, and `auto` takes as many as a run finds to
            be needed, or a few where nobody timed it.
        seed: Seed of the training order, of augmentations and of the template choice.
        on_bad_image: What an image that cannot be read does: `error` stops, `skip` leaves its row out and lists it.
        sampling: Draws the training rows of an epoch, as `ClassBalanced`; null takes each row once.
        merge_equal_captions: Whether evaluation takes equal captions of several images for one, a match for each of
            them; false takes each row's caption for itself, a match for its own image alone, as published tables do.
            The same for `retention`.
        cache: Folder that keeps images as they were decoded and resized, where they are not augmented and take no more
            than a tenth of the free disk; `auto` for one beside align-mini (`$ALIGN_FINETUNE_CACHE`, else
            `~/.cache/align-finetune`), null for none.
        mix_shards: Shards on servers whose training rows are mixed with each other at a time, while as many are
            fetched; the rows of other tables are mixed all together.

    Raises:
        ValueError: If a number is out of its range, a template has no `{}`, `on_bad_image` is another word, or the
            table lacks what `sampling` needs.
    """

    def __init__(
        self,
        table: Table,
        checkpoint: Checkpoint = "kakaobrain/align-base",
        retention: list[Table] | None = None,
        templates: tuple[str, ...] = ("a photo of a {}.",),
        augmentations: list[BasicTransform | BaseCompose] | BasicTransform | BaseCompose | None = None,
        image_size: int | None = None,
        batch_size: int = 64,
        num_workers: int | Literal["auto"] = 0,
        seed: int = 0,
        on_bad_image: Literal["error", "skip"] = "error",
        sampling: Sampling | None = None,
        merge_equal_captions: bool = True,
        cache: str | None = "auto",
        mix_shards: int = 16,
    ) -> None:
        super().__init__()
        for name, value, least, most in (
            ("batch_size", batch_size, 1, math.inf),
            ("num_workers", 0 if num_workers == "auto" else num_workers, 0, 1024),
            ("mix_shards", mix_shards, 1, math.inf),
        ):
            if not least <= value <= most:
                bound = f"at least {least}" if value < least else f"at most {most:,}"
                raise ValueError(f"Expected {name} to be {bound}, but got {value}.")
        if not templates:
            raise ValueError("Expected templates to hold at least one sentence, but got none.")
        self.table = table
        self.templates = tuple(templates)
        write_prompts([], self.templates)
        self.augmentation = Augmentation(augmentations) if augmentations else None
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.workers = usual_workers(count_share()) if num_workers == "auto" else num_workers
        self.seed = seed
        self.bad_images = BadImages(on_bad_image)
        self.sampling = sampling
        if sampling is not None:
            sampling.check(table.label, table.weight)
        self.merge_equal_captions = merge_equal_captions
        self.cache = cache
        self.mix_shards = mix_shards
        base = Base.open(checkpoint)
        self.processor = base.processor(image_size)
        build_retention = partial(
            ImageTextDataModule,
            checkpoint=base,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            on_bad_image=on_bad_image,
            merge_equal_captions=merge_equal_captions,
            cache=cache,
        )
        self.retention = {name: build_retention(other) for name, other in name_tables(retention or []).items()}
        self.images = ImagePreparation.from_processor(self.processor.image_processor)
        self.texts = TextEncoder.from_processor(self.processor)
        self._rows: Rows | None = None

    def set_workers(self, count: int) -> None:
        """Sets how many processes read images in the loaders that are built from now on, of retention tables too.

        Args:
            count: What `num_workers: auto` comes to, see `finetune.data.loading.workers`.
        """
        for data in (self, *self.retention.values()):
            data.workers = count

    @property
    def rows(self) -> Rows:
        """The table's rows, read and checked at the first use; which splits must have some, `require` says."""
        if self._rows is None:
            self.rows = self.table.read(required=())
            assert self._rows is not None
        return self._rows

    @rows.setter
    def rows(self, rows: Rows) -> None:
        """Takes rows that were read before, those of a table with faults too. Captions of equal tokens become equal."""
        if self.table.caption:
            ids = number_once(rows, "texts", self.texts.fingerprint, partial(number_texts, rows, self.texts))
            rows = replace(rows, caption_ids=ids)
        self._rows = rows

    @property
    def kind(self) -> TableKind:
        """Whether the rows carry captions, one label, or several, and what follows from that."""
        return find_kind(self.rows)

    @property
    def skipped(self) -> tuple[SkippedRow, ...]:
        """The rows of all tables that were left out so far, as their images cannot be read."""
        own = list_skipped(self.rows, self.bad_images.reasons)
        return (*own, *(row for other in self.retention.values() for row in other.skipped))

    @property
    def class_prompts(self) -> ClassPrompts | None:
        """Every class name in every template, or None where the table has no labels."""
        return self.kind.prompts(self.texts, self.templates)

    def dataset(self, split: str | Integers, training: bool = False) -> ImageTextDataset:
        """Rows as samples.

        Args:
            split: `train`, `val` or `test`, or the positions of the rows in the table.
            training: Whether images are augmented, and one template, and one of an image's captions, drawn each epoch.
        """
        table = self.rows
        if training and self.sampling is not None and self.sampling.replaces_weights:
            table = replace(table, weights=np.ones_like(table.weights))
        if not (training or self.merge_equal_captions or self.table.label):
            table = replace(table, caption_ids=np.arange(len(table)))
        release_pages()  # of what was looked at to check the table
        return ImageTextDataset(
            rows=table,
            choices=RowChoices(*self.rows.group(split)) if training else RowChoices.of_each(self.rows.indices(split)),
            images=self.images,
            texts=self.texts,
            templates=self._written_into,
            augmentation=self.augmentation if training else None,
            training=training,
            seed=self.seed,
            cache=None if training and self.augmentation else self._cache(split),
        )

    @property
    def _written_into(self) -> tuple[str, ...]:
        """The templates that labels are written into; none where rows bring captions."""
        return () if self.table.caption else self.templates

    def _cache(self, split: str | Integers) -> PixelCache | None:
        if self.cache is None:
            return None
        folder = cache_folder() / "images" if self.cache == "auto" else Path(self.cache).expanduser().absolute()
        return PixelCache(folder, self.images, self.rows.count_images(split))

    def loader(
        self, split: str | Integers, batch_size: int = ROWS_TO_MEASURE, keep_workers: bool = False
    ) -> BatchLoader:
        """Rows in the table's order, without augmentation. Where there are several processes, they share each batch.

        Args:
            split: As for `dataset`.
            batch_size: Most rows that a process has of a batch, where `self.batch_size` is not smaller.
            keep_workers: Whether workers wait for the next time that the loader is gone through.
        """
        dataset = self.dataset(split)
        rows = min(batch_size * processes.count(), self.batch_size)
        order = InOrder(len(dataset), rows, _part(), self._shards(dataset.choices), self._behind)
        return self._load(BatchLoader, dataset, order, keep_workers)

    def train_dataloader(self) -> TrainBatchLoader:
        """Training rows, augmented, in the order of seed and epoch. Several processes share each batch.

        Raises:
            RecipeError: If the shards that are mixed take more than may be fetched.
        """
        dataset = self.dataset("train", training=True)
        shards = self._shards(dataset.choices)
        if shards is not None:
            require_room(shards, self.mix_shards)
        order = TrainBatches(
            len(dataset),
            self.batch_size,
            self.seed,
            self._draw(dataset.choices),
            _part(),
            shards,
            self.mix_shards,
            self._behind,
        )
        return self._load(TrainBatchLoader, dataset, order, keep_workers=True)

    def _load(self, kind: type[Loader], dataset: ImageTextDataset, order: Sampler[Any], keep_workers: bool) -> Loader:
        """The loader of rows in an order."""
        return kind(
            cast(Dataset[Batch], dataset),  # what it yields, once collated
            self._report,
            dataset.collate([]) if processes.count() > 1 else None,
            batch_sampler=order,
            num_workers=self.workers,
            collate_fn=dataset.collate_readable,
            prefetch_factor=PREFETCHED if self.workers else None,
            persistent_workers=keep_workers and self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _shards(self, choices: RowChoices) -> Shards | None:
        """The shards that rows lie in, if some are on servers."""
        if not len(choices) or not any(map(is_remote_tar, self.rows.files)):
            return None
        shards = Shards.of_rows(self.rows.files, self.rows.file_ids, choices)
        return shards if any(map(is_remote_tar, shards.places)) else None

    @property
    def _behind(self) -> int:
        """How many batches workers may have been asked for, and not have made yet."""
        return PREFETCHED * self.workers

    def _draw(self, choices: RowChoices) -> Callable[[int, int], Integers] | None:
        if self.sampling is None:
            return None
        return partial(self.sampling.order, choices.labels(self.rows.label_ids), choices.weights(self.rows.weights))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Validation rows, as many in a batch as in training; none where the table has no such split."""
        return self.loader("val", self.batch_size, keep_workers=True) if len(self.rows.indices("val")) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test rows."""
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Test rows."""
        return self.loader("test")

    def with_splits(self, codes: Integers) -> "ImageTextDataModule":
        """The same table, split otherwise.

        Args:
            codes: Integer array of shape (N,): positions in `finetune.data.table.splits.SPLITS`, -1 for no split.
        """
        other = copy.copy(self)
        splits = codes.astype(self.rows.splits.dtype)
        other._rows = self.rows.with_splits(splits, splits)
        return other

    def with_seed(self, seed: int) -> "ImageTextDataModule":
        """The same rows, split alike, in another order with other augmentations.

        Args:
            seed: As for the class.
        """
        other = copy.copy(self)
        other._rows, other.seed = self.rows, seed
        return other

    @property
    def mirrors(self) -> bool:
        """Whether the augmentations mirror images."""
        return self.augmentation is not None and bool(MIRRORING & {*name_steps(self.augmentation.compose)})

    def find_concerns(self) -> list[Concern]:
        """What is seldom meant in the tables; no image is decoded. Of a kept table, what its first start found."""
        mirrors = self.mirrors
        rows, texts = self.rows, (self.texts.fingerprint, self.templates, bool(self.table.caption))
        found = find_once(
            rows, "concerns", (mirrors, texts), lambda: [*find_concerns(rows, mirrors), *find_copies(rows)]
        )
        for name, other in self.retention.items():
            equal = find_once(other.rows, "contradictions", None, partial(find_contradictions, other.rows))
            found += [concern.of_table(name) for concern in equal]
        return [*found, *find_once(rows, "limits", texts, self.find_limits), *self.find_retention_limits()]

    def find_limits(self, sizes: npt.NDArray[np.int64] | None = None) -> list[Concern]:
        """What the checkpoint makes of the table: texts cut off or equal; where sizes are known, images enlarged.

        Args:
            sizes: Int64 array of shape (N, 2): width and height of each row's image, 0 where it cannot be read.
        """
        found = find_long_texts(self.rows, self._written_into, self.texts)
        found += find_equal_captions(self.rows, self.texts) if self.table.caption else []
        found += find_equal_classes(self.rows.classes, self.templates, self.texts)
        return found if sizes is None else [*found, *find_small_images(self.rows, sizes, self.images)]

    def find_retention_limits(self) -> list[Concern]:
        """What the checkpoint makes of the retention tables: classes whose prompts are equal."""
        found = []
        for name, other in self.retention.items():
            equal = find_equal_classes(other.rows.classes, other.templates, self.texts)
            found += [concern.of_table(name) for concern in equal]
        return found

    def held_back(self, count: int) -> Batch:
        """The first rows of the validation split, or of the test split where there is none, as one batch.

        Args:
            count: Largest number of rows.
        """
        dataset = self.dataset("val" if len(self.rows.indices("val")) else "test")
        return dataset.collate(list(islice(self.samples(dataset, range(len(dataset))), count)))

    def samples(self, dataset: ImageTextDataset, positions: Iterable[int]) -> Iterator[Sample]:
        """Yields the rows at some positions whose images can be read; others stop it or are left out and listed.

        Args:
            dataset: The rows of a split.
            positions: Positions in it.
        """
        for position in positions:
            item = dataset[position, 0]
            if isinstance(item, Unreadable):
                self._report([item])
            else:
                yield item

    def _report(self, unreadable: Sequence[Unreadable]) -> None:
        self.bad_images.report(self.rows, unreadable, self.table.image)

    def share_unreadable(self) -> None:
        """Lets each of several processes know the rows that the others left out; all of them call it."""
        for data in (self, *self.retention.values()):
            for reasons in processes.from_all(data.bad_images.reasons):
                data.bad_images.reasons.update(reasons)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the rows left out so far, as a run that goes on may not meet them again."""
        self.share_unreadable()
        return {"unreadable": self.bad_images.reasons}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers the rows that were left out before the run was stopped."""
        self.bad_images.reasons.update(state_dict["unreadable"])


def _part() -> Part:
    """Which part of each batch this process has."""
    return Part(processes.rank(), processes.count())

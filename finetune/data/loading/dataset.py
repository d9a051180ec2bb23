"""Rows of a table as samples, and samples stacked into a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from finetune.core.types import Batch, Sample
from finetune.data.checks.unreadable import Unreadable
from finetune.data.loading.choices import RowChoices
from finetune.data.loading.loader import Collated
from finetune.data.prepare.augmentation import Augmentation, Refused
from finetune.data.prepare.images import ImagePreparation, Pixels, try_image
from finetune.data.prepare.pixel_cache import PixelCache
from finetune.data.prepare.texts import TextEncoder
from finetune.data.remote.transfer import RemoteError
from finetune.data.table.rows import Rows
from finetune.data.table.stored import release_sometimes


@dataclass(frozen=True)
class ImageTextDataset(Dataset[Sample | Unreadable]):
    """The rows of one split. Items are asked for by (position, epoch), as augmentation depends on the epoch.

    A row whose image cannot be read, fetched or augmented is returned as `Unreadable`: an error raised in a worker
    would arrive as a traceback.

    Args:
        rows: The whole table.
        choices: The rows of this split: each an item of its own, or one of an image's rows drawn in each epoch.
        images: Prepares pixels as the checkpoint's processor does.
        texts: Encodes captions as the checkpoint's tokenizer does.
        templates: Sentences that labels are written into, one of them per row and epoch; empty for captions.
        augmentation: Applied to the image before it is prepared; None for evaluation.
        training: Whether templates are drawn; else it is the first.
        seed: Seed of augmentation and template choice.
        cache: Keeps prepared images; None where they are augmented, or nothing is kept.
    """

    rows: Rows
    choices: RowChoices
    images: ImagePreparation
    texts: TextEncoder
    templates: tuple[str, ...]
    augmentation: Augmentation | None
    training: bool
    seed: int
    cache: PixelCache | None = None

    def __len__(self) -> int:
        return len(self.choices)

    def __getitem__(self, key: tuple[int, int]) -> Sample | Unreadable:
        position, epoch = key
        release_sometimes()
        row = self.choices.draw(position, epoch, self.seed)
        try:
            pixels = self._read_pixels(row, epoch)
        except RemoteError as error:
            return Unreadable(row, str(error), is_lost=True)
        if isinstance(pixels, Unreadable):
            return pixels
        return Sample(
            pixel_values=torch.from_numpy(pixels),
            input_ids=self.texts.encode(self.caption(row, epoch)),
            row=row,
            image_id=int(self.rows.image_ids[row]),
            caption_id=int(self.rows.caption_ids[row]),
            label_id=self.label_id(row, epoch),
            weight=float(self.rows.weights[row]),
        )

    def _read_pixels(self, row: int, epoch: int) -> Pixels | Unreadable:
        path = self.rows.images[row]
        if self.cache is not None:
            kept = self.cache.read(path)
            return Unreadable(row, kept) if isinstance(kept, str) else kept
        image = try_image(path)
        if isinstance(image, str):
            return Unreadable(row, image)
        if self.augmentation is not None:
            augmented = self.augmentation.attempt(image, self.seed, epoch, row)
            if isinstance(augmented, Refused):
                return Unreadable(row, *augmented)
            image = Image.fromarray(augmented)
        return self.images(image)

    def label_id(self, row: int, epoch: int) -> int:
        """The class that a row's text names: its label; one drawn of several; without any, one drawn of all classes.

        A text that names none of an image's labels is a negative of that image, and so tells what it is not.
        """
        labels = self.rows.labels_of(row)
        if not len(labels):
            labels = np.arange(len(self.rows.classes))
        if len(labels) == 1:
            return int(labels[0])
        return int(np.random.default_rng([self.seed, epoch, row, 2]).choice(labels))

    def caption(self, row: int, epoch: int) -> str:
        """The text of a row as the model reads it: its caption, or its label in a template."""
        if not self.templates:
            return str(self.rows.captions[row])
        choice = 0
        if self.training and len(self.templates) > 1:
            choice = int(np.random.default_rng([self.seed, epoch, row]).integers(len(self.templates)))
        return self.templates[choice].replace("{}", self.rows.classes[self.label_id(row, epoch)])

    def collate_readable(self, items: Sequence[Sample | Unreadable]) -> Collated:
        """Stacks the rows whose images can be read, and puts the others beside them."""
        samples = [item for item in items if isinstance(item, Sample)]
        unreadable = [item for item in items if isinstance(item, Unreadable)]
        fault = "" if self.cache is None else self.cache.fault
        return Collated(self.collate(samples) if samples else None, unreadable, fault)

    def collate(self, samples: list[Sample]) -> Batch:
        """Stacks samples, which may be none; texts are padded to the longest of them."""
        input_ids, attention_mask = self.texts.pad([sample.input_ids for sample in samples])
        nothing = torch.empty(0, *(self.images.shape or (3, 1, 1)), dtype=torch.uint8)
        return Batch(
            pixel_values=torch.stack([sample.pixel_values for sample in samples]) if samples else nothing,
            input_ids=torch.as_tensor(input_ids),
            attention_mask=torch.as_tensor(attention_mask),
            rows=torch.tensor([sample.row for sample in samples], dtype=torch.int64),
            image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
            caption_ids=torch.tensor([sample.caption_id for sample in samples], dtype=torch.int64),
            label_ids=torch.tensor([sample.label_id for sample in samples], dtype=torch.int64),
            weights=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
            targets=torch.from_numpy(self.rows.targets(np.array([sample.row for sample in samples], dtype=np.int64))),
        )

"""Tar shards as Lightning's loaders."""

from finetune.data.datamodule import ImageTextDataModule
from finetune.data.rows import Rows
from finetune.data.sources import is_tar
from finetune.errors import RecipeError


class ShardedImageText(ImageTextDataModule):
    """Images with captions, or images with labels, from tar shards as img2dataset and WebDataset write them.

    Where each member lies in its tar is read first, so that rows can be read in any order: batches, their order,
    resuming and augmentation are those of `ImageTextDataModule`.

    Args:
        table: Its `path` is `shards/*.tar`. A row is a sample, the column `image` its picture, the column `txt` its
            text, and other columns are fields of its JSON.
        checkpoint: Hub id, local folder, or `align-mini`, whose processor prepares pixels and words.
        templates: Sentences that class names are written into in place of `{}`.
        augmentations: Albumentations transforms of the training images; null for none.
        image_size: Side of the image the towers see, in pixels; null for the checkpoint's own.
        batch_size: Largest number of rows in a batch.
        num_workers: Processes that read images; 0 reads in the main process.
        seed: Seed of the training order, of augmentations and of the template choice.
        sampling: Draws the training rows of an epoch; null takes each row once.
    """

    @property
    def rows(self) -> Rows:
        """The rows, one for each sample, read and checked at the first use.

        Raises:
            RecipeError: If the table is none of tars.
        """
        if not is_tar(self.table.path):
            raise RecipeError(
                f"Expected data.table.path to name tar shards, as in shards/*.tar, but got {self.table.source}. "
                "Leave out data.class_path for other tables."
            )
        return super().rows

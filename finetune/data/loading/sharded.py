"""Tar shards as Lightning's loaders."""

from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.rows import Rows
from finetune.data.table.sources import is_tar


class ShardedImageText(ImageTextDataModule):
    """Images with captions, or images with labels, from tar shards as img2dataset and WebDataset write them.

    Where each member lies in its tar is read first, so that rows can be read in any order: batches, their order,
    resuming and augmentation are those of `ImageTextDataModule`.

    The arguments are those of `ImageTextDataModule`. The table's `path` is `shards/*.tar`: a row is a sample, the
    column `image` its picture, the column `txt` its text, and other columns are fields of its JSON.
    """

    def read_rows(self) -> Rows:
        """Reads and checks the shards.

        Raises:
            RecipeError: If the table is none of tars.
        """
        if not is_tar(self.table.path):
            raise RecipeError(
                f"Expected data.table.path to name tar shards, as in shards/*.tar, but got {self.table.source}. "
                "Leave out data.class_path for other tables."
            )
        return super().read_rows()

"""Training checkpoints are written whole or not at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from finetune.core.files import write_file


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, and raises what goes wrong.

    Lightning's own writes it to `$TMPDIR` first, which may be another disk, and takes a missing permission for success.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:  # noqa: ARG002
        """Writes a checkpoint.

        Args:
            checkpoint: What to write.
            path: The file.
            storage_options: Not used.

        Raises:
            OSError: If it cannot be written; what was there before is still there.
        """
        with write_file(Path(path)) as file:
            torch.save(checkpoint, file)

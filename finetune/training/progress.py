"""The saves of a training: folders that hold what it needs to go on where it was."""

import csv
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file
from torch import Tensor

from finetune.core import processes
from finetune.core.console import say
from finetune.core.files import fingerprint_file, read_json, read_text, write_file, write_folder, write_json, write_text
from finetune.training.loggers import TensorBoardLog
from finetune.training.task import AlignTask

KEPT = 2
"""How many saves are kept: the older one until the newer one is whole, and then for the case that it is damaged."""

BEST = "best"
"""Name of the checkpoint with the best weights so far."""

_STATE, _LOG = "state.ckpt", "metrics.csv"
_FINGERPRINTS = "fingerprints.json"


class Progress:
    """The saves of one training: a folder `step-N` each, with the state after N steps and the files that go with it.

    They are a Lightning checkpoint, the values logged so far, the best weights so far, and the features kept of a
    frozen tower.

    Args:
        folder: Where they lie, beside the best weights.
        log: The training's log.
        board: Its log for TensorBoard, if it has one.
    """

    def __init__(self, folder: Path, log: CSVLogger, board: TensorBoardLog | None = None) -> None:
        self.folder = folder
        self.best = folder / f"{BEST}.ckpt"
        self.log = log
        self.board = board

    def write(self, trainer: Trainer, task: AlignTask) -> None:
        """Saves what there is between two steps. A save of the same step stays as it is.

        Args:
            trainer: In training.
            task: What it trains.

        Raises:
            OSError: If it cannot be written; the saves that were there still are.
        """
        target = self.folder / f"step-{trainer.global_step:08d}"
        if processes.from_first(lambda: target in list_saves(self.folder)):
            return
        kept = processes.from_all(task.towers.list_kept())
        if processes.is_first():
            self._write(trainer, target, kept)
        else:
            trainer.save_checkpoint(target / _STATE)  # has its part in what the first one writes
        processes.from_first(lambda: None)

    def _write(self, trainer: Trainer, target: Path, kept: Sequence[Mapping[str, Tensor]]) -> None:
        self.log.save()
        with write_folder(target) as staging:
            trainer.save_checkpoint(staging / _STATE)
            logged = Path(self.log.experiment.metrics_file_path)
            if logged.is_file():
                shutil.copyfile(logged, staging / _LOG)
            if self.best.is_file():
                _share(self.best, staging / self.best.name)
            for rank, features in enumerate(kept):
                save_file(dict(features), staging / name_features(rank))
            write_json(staging / _FINGERPRINTS, {file.name: fingerprint_file(file) for file in staging.iterdir()})
        for outdated in list_saves(self.folder)[KEPT:]:
            shutil.rmtree(outdated)

    def recover(self) -> Path | None:
        """Puts the files of the newest save back to where the training left them, and says so.

        Saves that are not as they were written are removed, and where none is left all checkpoints: a new training
        would go on from them, or keep them.

        Returns:
            The checkpoint from which Lightning goes on; None where there is no save.

        Raises:
            OSError: If the disk does not let a save be read.
        """
        save = self._take_newest()
        if self.board is not None:
            self.board.go_on((save or self.folder) / _LOG)
        if save is None:
            for path in self.folder.glob("*.ckpt"):
                path.unlink()
            return None
        say(f"goes on from {save}", file=sys.stderr)
        self._restore(save)
        return save / _STATE

    def _take_newest(self) -> Path | None:
        """The newest save that is as it was written; None where there is none."""
        for save in list_saves(self.folder):
            fault = _find_fault(save)
            if fault is None:
                return save
            say(f"warning: {save} is damaged and is removed: {fault}", file=sys.stderr)
            shutil.rmtree(save)
        return None

    def _restore(self, save: Path) -> None:
        self.best.unlink(missing_ok=True)
        if (save / self.best.name).is_file():
            _share(save / self.best.name, self.best)
        writer = self.log.experiment  # removes the log that is there
        if (save / _LOG).is_file():
            text = read_text(save / _LOG)
            write_text(Path(writer.metrics_file_path), text)
            writer.metrics_keys = next(csv.reader([text.splitlines()[0]]))


def name_features(rank: int) -> str:
    """Returns the name of the file with the features that a process keeps of a frozen tower.

    Args:
        rank: The process's number, from 0.
    """
    return f"features-{rank}.safetensors" if rank else "features.safetensors"


def list_saves(folder: Path) -> list[Path]:
    """Returns the saves that there are, the newest first.

    Args:
        folder: See `Progress`.
    """
    saves = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(saves, key=lambda save: int(save.name.removeprefix("step-")), reverse=True)


def clear_saves(folder: Path) -> None:
    """Removes the saves of a training that has ended.

    Args:
        folder: See `Progress`.
    """
    for save in list_saves(folder):
        shutil.rmtree(save)


def _find_fault(save: Path) -> str | None:
    """What is wrong with a save; None of one that is as it was written."""
    try:
        fingerprints = read_json(save / _FINGERPRINTS)
        for name, fingerprint in fingerprints.items():
            if fingerprint_file(save / name) != fingerprint:
                return f"{name} is not as it was written."
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None if _STATE in fingerprints else f"{_STATE} is missing."


def _share(source: Path, target: Path) -> None:
    """Copies a file that is only ever replaced as a whole: as a link to the same bytes where the disk has links."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as file, write_file(target) as copy:
            shutil.copyfileobj(file, copy)

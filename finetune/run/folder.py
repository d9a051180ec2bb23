"""The names and states of a run's files."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.core.errors import CheckpointError, RecipeError, did_you_mean
from finetune.core.files import is_staged, read_json, write_json
from finetune.core.places import AnyPath
from finetune.run.lock import LOCK
from finetune.run.results import MODELS

if TYPE_CHECKING:
    from pandas import DataFrame

BASE, AFTER, ZERO_SHOT_AFTER = "base", "after", "zero-shot-after"
MEASURED = (BASE, AFTER, ZERO_SHOT_AFTER)
"""The models that a run measures: its base, what it exports, and beside a classifier the merged checkpoint."""


@dataclass(frozen=True)
class RunFolder:
    """One run's folder; each property is the place of a file or folder in it.

    Args:
        path: The folder, `RUNS/NAME`.
    """

    path: Path

    def __fspath__(self) -> str:
        """The folder's path, so that a run stands wherever its path may."""
        return str(self.path)

    @property
    def recipe(self) -> Path:
        """The resolved recipe; it repeats the run."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, device, fingerprints of table and base."""
        return self.path / "environment.json"

    @property
    def table(self) -> Path:
        """The images, splits and hashed texts of the table that was trained on."""
        return self.path / "table.parquet"

    @property
    def frame(self) -> Path:
        """The DataFrame that the run was started with, where it was no file."""
        return self.path / "frame.parquet"

    @property
    def checkpoints(self) -> Path:
        """Lightning checkpoints `last` and `best`; while it trains also `step-N`, from which it can go on."""
        return self.path / "checkpoints"

    @property
    def started(self) -> Path:
        """The fingerprints of what a training was started from."""
        return self.checkpoints / "started.json"

    @property
    def fitted(self) -> Path:
        """Written when the steps of a training are over: which weights to keep, and what went wrong."""
        return self.checkpoints / "fitted.json"

    @property
    def adapter(self) -> Path:
        """Standard PEFT folder with the temperature's sidecar."""
        return self.path / "adapter"

    @property
    def witness(self) -> Path:
        """Held-back inputs and what the trained model makes of them."""
        return self.path / "witness.safetensors"

    @property
    def merged(self) -> Path:
        """`AlignModel` and `AlignProcessor`, with model card and proof."""
        return self.path / "merged"

    @property
    def processor(self) -> Path:
        """The processor that was trained with, as transformers reads it."""
        return self.path / "processor"

    @property
    def choice(self) -> Path:
        """The interpolation and the temperature at which the model is exported."""
        return self.path / "choice.json"

    @property
    def training(self) -> Path:
        """What went wrong in training."""
        return self.path / "training.json"

    def measurement(self, model: str) -> Path:
        """A measurement: of the base, or of a model that is exported.

        Args:
            model: One of `MEASURED`.
        """
        return self.path / "measurements" / model

    def stage(self, name: str) -> Path:
        """What a finished stage was made from.

        Args:
            name: The stage's name.
        """
        return self.path / "stages" / f"{name}.json"

    @property
    def head(self) -> Path:
        """The trained classification head, where there is one."""
        return self.path / "head.safetensors"

    @property
    def classifier(self) -> Path:
        """`EfficientNetForImageClassification` of image tower and head, with model card and proof."""
        return self.path / "classifier"

    @property
    def logged(self) -> Path:
        """Every logged value by step."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """The same values for TensorBoard, where it is installed and the recipe names no other logger."""
        return self.path / "tensorboard"

    def members(self, count: int) -> "list[RunFolder]":
        """Where the trainings that a soup averages keep checkpoints and logged values: the first in the run's folder.

        Args:
            count: How many there are.
        """
        return [self, *(RunFolder(self.path / "members" / str(number)) for number in range(2, count + 1))]

    @property
    def logs(self) -> list[Path]:
        """The files of logged values that there are, one of each training."""
        return [path for path in (self.logged, *sorted(self.path.glob("members/*/metrics.csv"))) if path.is_file()]

    @property
    def metrics(self) -> Path:
        """Before, after, retention."""
        return self.path / "metrics.json"

    def read_results(self) -> "DataFrame":
        """Reads the metrics of a finished run: a line each, a column for each model, as `before` and `after`.

        Raises:
            CheckpointError: If the run is not finished.
        """
        from pandas import DataFrame  # which takes as long as all else that names a run

        require_finished(self)
        metrics = read_json(self.metrics)
        return DataFrame({name: metrics[name] for name in MODELS if name in metrics})

    @property
    def predictions(self) -> Path:
        """Test rows with prediction and score."""
        return self.path / "predictions.csv"

    @property
    def skipped(self) -> Path:
        """Rows that were left out as their images cannot be read; absent where there are none."""
        return self.path / "skipped.csv"

    @property
    def report(self) -> Path:
        """All of it as one page."""
        return self.path / "report.html"

    @property
    def finished(self) -> Path:
        """Written last: only then is the run complete."""
        return self.path / "finished.json"

    @property
    def is_finished(self) -> bool:
        """Whether the run went to its end."""
        return self.finished.is_file()

    def create(self, overwrite: bool, needed: Sequence[Path] = ()) -> None:
        """Makes the folder for a new run. Whoever calls it holds the lock.

        Of a run that is there, the mark of the end goes first and the recipe last: one that was half removed when the
        process was killed is unfinished, and still a run.

        Args:
            overwrite: Whether a run that is already there is removed.
            needed: What the new run reads, which may not be removed with it.

        Raises:
            RecipeError: As `require_free`, or if the run that is there holds what is needed.
        """
        self.require_free(overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        inside = [path for path in needed if self.path.resolve() in path.resolve().parents]
        if inside and self.recipe.is_file():
            raise RecipeError(
                f"Expected what the run reads to lie outside {self.path}, which it replaces, but got {inside[0]}. "
                "Choose another name with --run NAME."
            )
        former = [path for path in self.path.iterdir() if path.name != LOCK]
        for path in sorted(former, key=lambda path: (path != self.finished, path == self.recipe)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def require_free(self, overwrite: bool) -> None:
        """Refuses a place where a new run has none, before any work is done.

        What a process left that was killed before it had written the recipe is no run: the place is free.

        Args:
            overwrite: Whether a run that is already there is to be removed.

        Raises:
            RecipeError: If a run of that name exists and `overwrite` is false, or a folder that is no run.
        """
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        if not self.recipe.is_file():
            if any(name != LOCK and not is_staged(name) for name in names):
                raise RecipeError(
                    f"Expected {self.path} to be a run or absent, but it holds other files and no recipe.yaml. "
                    "Choose another name with --run NAME."
                )
        elif not overwrite:
            resume = "" if self.is_finished else f"Go on with it by `finetune resume {self.path}`. Or: "
            raise RecipeError(
                f"Expected no run at {self.path}, but there is one. {resume}Replace it with --overwrite, or choose "
                "another name with --run NAME."
            )

    def finish(self, facts: dict[str, object]) -> None:
        """Marks the run complete."""
        write_json(self.finished, facts)


def open_run(path: AnyPath) -> RunFolder:
    """The folder of a run that was started.

    Args:
        path: The run's folder.

    Raises:
        RecipeError: If it is not there, naming the nearest run beside it.
    """
    run = RunFolder(Path(path).expanduser())
    if not run.recipe.is_file():
        parent = run.path.parent
        beside = [str(file.parent) for file in parent.glob("*/recipe.yaml")] if parent.is_dir() else []
        repair = did_you_mean(os.fspath(path), beside) if beside else "Start one with `finetune fit`."
        raise RecipeError(f"Expected {os.fspath(path)} to be a run, but it holds no recipe.yaml. {repair}")
    return run


def require_finished(run: RunFolder) -> None:
    """Refuses a run of which stages are left.

    Args:
        run: The run.

    Raises:
        CheckpointError: If it is not finished.
    """
    if not run.is_finished:
        raise CheckpointError(
            f"Expected {run.path} to be a finished run, but it is unfinished: it has no {run.finished.name}. "
            f"Do what is left of it: finetune resume {run.path}"
        )

"""The `run` part of a recipe."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from finetune.core.errors import RecipeError
from finetune.core.interpolation import Interpolation, parse_interpolation
from finetune.core.interval import Interval

LARGEST_SEED = 2**32 - 1  # NumPy's


@dataclass(frozen=True)
class RunSettings:
    """What is done around the training.

    Args:
        name: Name of the run's folder; null takes the recipe's file name.
        folder: Folder in which the run's folder is made.
        seed: Seed of adapters, dropout, training order and augmentations.
        soup: How many trainings, alike save for their seeds, are averaged into the model that is exported (a uniform
            soup, Wortsman et al. 2022, arXiv 2203.05482). Two learn more than one of twice the length if the learning
            rate is about twice what suits one.
        linear_probe: Whether a logistic regression on the base's frozen embeddings is measured too (tables with
            labels).
        neighbours: Of how many nearest training images the vote is measured too, as `test/knn_accuracy` (tables with
            labels): 20 as is usual, 1 as COYO-ALIGN's table; null for none. Embeds every training image.
        interpolation: Where the exported model lies between the base, 0, and the trained model, 1: a smaller number
            forgets less and keeps less of what was learned. Or a number for each tower, such as `{image: 0.7, text:
            0.3}`, or `[first, last]` for a tower's first and last block. `auto` measures models in between. Of those
            that lose at most `max_retention_loss` and score about as well as the best on the validation rows, it takes
            the one that loses least.
        max_retention_loss: The largest loss that `auto` allows on any table of `data.retention`, as a share of what the
            base can do there.
        calibrate: Whether the temperature is fitted on the validation rows (tables with a label a row), so that the
            probabilities of the classes are as high as they are right.
        save_every: How often a training saves what `finetune resume` needs to go on with it: a number of steps, or a
            time such as `10 minutes`; null only when it is asked to end, by Ctrl-C, SIGTERM or, under SLURM, SIGUSR1.
            Two saves are kept.
        timeout: How long one of several processes waits for the others within a step, such as `10 minutes`, before it
            gives them up and ends.
        module_folders: Where modules that are named by `--trust` are looked for, beside the recipe's own folder and the
            working directory. A run notes here where it found them; to be there is not to be trusted.

    Raises:
        RecipeError: If a number is out of its range.
    """

    name: str | None = None
    folder: str = "runs"
    seed: int = 0
    soup: int = 1
    linear_probe: bool = True
    neighbours: int | None = None
    interpolation: float | str | dict[str, Any] = 1.0
    max_retention_loss: float = 0.05
    calibrate: bool = True
    save_every: int | str | None = "10 minutes"
    timeout: str = "10 minutes"
    module_folders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LARGEST_SEED:
            raise RecipeError(f"Expected run.seed to be from 0 to {LARGEST_SEED}, but got {self.seed}.")
        if self.neighbours is not None and self.neighbours < 1:
            raise RecipeError(f"Expected run.neighbours to be at least 1 or null, but got {self.neighbours}.")
        if self.soup < 1:
            raise RecipeError(f"Expected run.soup to be at least 1, but got {self.soup}. 1 trains once.")
        _ = self.save_interval, self.longest_wait, self.fixed_interpolation  # refuse what is none
        if not 0 <= self.max_retention_loss <= 1:
            raise RecipeError(
                f"Expected run.max_retention_loss to be in [0, 1], but got {self.max_retention_loss}. It is a share: "
                "0.05 allows a twentieth of what the base can do."
            )

    @property
    def fixed_interpolation(self) -> float | Interpolation | None:
        """What `interpolation` stands for; None for `auto`, which chooses it after the training."""
        return None if self.interpolation == "auto" else parse_interpolation(self.interpolation, "run.interpolation")

    @property
    def save_interval(self) -> Interval | None:
        """What `save_every` stands for."""
        return None if self.save_every is None else Interval.parse(self.save_every, "run.save_every")

    @property
    def longest_wait(self) -> timedelta:
        """What `timeout` stands for."""
        seconds = Interval.parse(self.timeout, "run.timeout").seconds
        if seconds is None:
            raise RecipeError(f"Expected run.timeout to be a time, such as `10 minutes`, but got {self.timeout!r}.")
        return timedelta(seconds=seconds)

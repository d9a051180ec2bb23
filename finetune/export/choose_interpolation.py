"""How far from its base a trained model is exported, and at which temperature."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.core.errors import CheckpointError
from finetune.core.files import read_json, write_json
from finetune.core.interpolation import Interpolation, as_json, parse_interpolation
from finetune.core.types import ClassPrompts
from finetune.inference.models import HeadOnTower, RowModel, ask_towers
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.model.interpolate import interpolate
from finetune.model.towers import AlignTowers

INTERPOLATIONS = tuple(step / 10 for step in range(11))
"""What `auto` measures."""


class Point(NamedTuple):
    """One model between base and trained, and how it did.

    Attributes:
        interpolation: 0 is the base, 1 all that was trained.
        target: The metric that training is for, higher is better.
        retention_loss: What is lost on the retention tables, as a share of what the base can do there; below 0 for a
            gain.
        retention_error: Standard error of that, as retention rows are few.
    """

    interpolation: float
    target: float
    retention_loss: float
    retention_error: float


class Temperature(NamedTuple):
    """What the class scores are divided by.

    Attributes:
        trained: The model's, as training left it.
        fitted: As the validation rows ask for. Of a head's scores only its ratio to `trained` counts.
        rows: How many rows these are; None where an earlier release fitted it.
    """

    trained: float
    fitted: float
    rows: int | None = None


class Choice(NamedTuple):
    """What is exported of a trained model.

    Attributes:
        interpolation: 0 is the base, 1 all that was trained; a profile where it goes with tower and depth.
        temperature: None where it was not fitted.
        curve: What `auto` measured; None where the interpolation was given.
        max_retention_loss: What `auto` allowed.
    """

    interpolation: float | Interpolation
    temperature: Temperature | None = None
    curve: tuple[Point, ...] | None = None
    max_retention_loss: float | None = None

    @property
    def scale(self) -> float:
        """What the class scores have to be multiplied by."""
        return 1.0 if self.temperature is None else self.temperature.trained / self.temperature.fitted

    def as_metrics(self) -> dict[str, Any]:
        """Returns `interpolation` of `metrics.json`; nothing where all that was trained is exported unasked."""
        chosen = as_json(self.interpolation)
        if self.curve is not None:
            curve = [point._asdict() for point in self.curve]
            found = {"chosen": chosen, "max_retention_loss": self.max_retention_loss, "curve": curve}
            return {"interpolation": found}
        return {"interpolation": {"chosen": chosen}} if self.interpolation != 1 else {}

    def write(self, path: Path) -> None:
        """Writes the choice as JSON.

        Args:
            path: The file.
        """
        temperature = self.temperature and self.temperature._asdict()
        curve = self.curve and [point._asdict() for point in self.curve]
        chosen = as_json(self.interpolation)
        write_json(path, {**self._asdict(), "interpolation": chosen, "temperature": temperature, "curve": curve})

    @classmethod
    def read(cls, path: Path) -> "Choice":
        """Reads what `write` wrote.

        Args:
            path: The file.

        Raises:
            CheckpointError: If the file is missing or holds no choice.
        """
        try:
            values = read_json(path)
            temperature, curve = values.pop("temperature"), values.pop("curve")
            return cls(
                interpolation=parse_interpolation(values.pop("interpolation")),
                **values,
                temperature=temperature and Temperature(**temperature),
                curve=curve and tuple(Point(**point) for point in curve),
            )
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"Expected {path} to hold what its run exports, but got: {error!r}. Run it again."
            ) from error


class Line:
    """The models between a base and what was trained of it, one at a time in memory.

    Args:
        base: The base.
        adapted: State dict of the base with the adapters merged, None where no tower was adapted.
        head: The trained head, None where there is none.
        device: Where the models run.
    """

    def __init__(
        self, base: Base, adapted: Mapping[str, Tensor] | None, head: LinearHead | None, device: torch.device
    ) -> None:
        self.towers = AlignTowers(base.load(), levels=base.levels).to(device)
        self._base = base.state_dict()
        self._adapted = adapted
        self._head = head
        self._device = device

    @property
    def moves_towers(self) -> bool:
        """Whether the towers are the base's at interpolation 0 only."""
        return self._adapted is not None

    def towers_at(self, interpolation: float | Interpolation) -> AlignTowers:
        """Returns the towers of an interpolation, the same object at each call.

        Args:
            interpolation: In [0, 1], or a profile.
        """
        if self._adapted is not None:
            self.towers.align.load_state_dict(interpolate(self._base, self._adapted, interpolation))
        return self.towers

    def at(self, interpolation: float | Interpolation, prompts: ClassPrompts | None) -> RowModel:
        """Returns the model of an interpolation, with its head where there is one.

        Args:
            interpolation: In [0, 1], or a profile.
            prompts: The classes of the table; None where it has none.
        """
        towers = self.towers_at(interpolation)
        if self._head is None:
            return ask_towers(towers, prompts)
        return HeadOnTower(towers, self._head.at(interpolation).to(self._device))


def choose_interpolation(
    score: Callable[[float], tuple[float, float, float]], interpolations: Iterable[float], max_loss: float
) -> tuple[float, list[Point]]:
    """Chooses the interpolation with the best target among those that lose little enough on the retention tables.

    Of equal targets the one that loses least is taken, and then the one nearest to the base.

    Args:
        score: Returns target, retention loss and its error of an interpolation, see `Point`. It is called once for
            each.
        interpolations: What to measure. With 0 among them there always is a choice, as the base loses nothing.
        max_loss: The largest retention loss allowed.

    Returns:
        The interpolation, and the points in the order of `interpolations`.

    Raises:
        ValueError: If each of them loses more.

    Example:
        >>> choose_interpolation(lambda weight: (weight, weight**2, 0.01), [0.0, 0.5, 1.0], max_loss=0.3)[0]
        0.5
    """
    curve = [Point(interpolation, *score(interpolation)) for interpolation in interpolations]
    allowed = [point for point in curve if point.retention_loss <= max_loss]
    if not allowed:
        raise ValueError(f"Expected an interpolation that loses at most {max_loss}, but got none. Add 0 to them.")
    best = max(allowed, key=lambda point: (point.target, -point.retention_loss, -point.interpolation))
    return best.interpolation, curve

"""How far from its base a trained model is exported, and at which temperature."""

import itertools
import statistics
from collections.abc import Collection, Mapping
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
from finetune.model.layers import TOWERS, Tower
from finetune.model.towers import AlignTowers

INTERPOLATIONS = tuple(step / 10 for step in range(11))
"""What `auto` tries of each tower, with each of the other's; first the line on which both are alike."""


class Point(NamedTuple):
    """One model between base and trained, and how it did.

    Attributes:
        interpolation: 0 is the base, 1 all that was trained; a profile where it goes with tower and depth.
        target: The metric that training is for, higher is better.
        retention_loss: What is lost on the retention tables, as a share of what the base can do there; below 0 for a
            gain.
        retention_error: Standard error of that, as retention rows are few.
        target_error: Standard error of the target, as validation rows are few.
    """

    interpolation: float | Interpolation
    target: float
    retention_loss: float
    retention_error: float
    target_error: float = 0.0

    def as_record(self) -> dict[str, Any]:
        """Returns the attributes by name, as JSON holds them."""
        return {**self._asdict(), "interpolation": as_json(self.interpolation)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Point":
        """Reads what `as_record` wrote.

        Args:
            record: Values by the names of the attributes.
        """
        return cls(**{**record, "interpolation": parse_interpolation(record["interpolation"])})


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
        curve: What `auto` measured where both towers are alike; None where the interpolation was given.
        max_retention_loss: What `auto` allowed.
        profiles: What `auto` measured beside that.
    """

    interpolation: float | Interpolation
    temperature: Temperature | None = None
    curve: tuple[Point, ...] | None = None
    max_retention_loss: float | None = None
    profiles: tuple[Point, ...] = ()

    @property
    def scale(self) -> float:
        """What the class scores have to be multiplied by."""
        return 1.0 if self.temperature is None else self.temperature.trained / self.temperature.fitted

    def as_metrics(self) -> dict[str, Any]:
        """Returns `interpolation` of `metrics.json`; nothing where all that was trained is exported unasked."""
        chosen = as_json(self.interpolation)
        if self.curve is not None:
            curve, profiles = ([point.as_record() for point in points] for points in (self.curve, self.profiles))
            found = {"chosen": chosen, "max_retention_loss": self.max_retention_loss, "curve": curve}
            return {"interpolation": {**found, **({"profiles": profiles} if profiles else {})}}
        return {"interpolation": {"chosen": chosen}} if self.interpolation != 1 else {}

    def write(self, path: Path) -> None:
        """Writes the choice as JSON.

        Args:
            path: The file.
        """
        values = {
            "interpolation": as_json(self.interpolation),
            "temperature": self.temperature and self.temperature._asdict(),
            "curve": self.curve and [point.as_record() for point in self.curve],
            "profiles": [point.as_record() for point in self.profiles],
        }
        write_json(path, {**self._asdict(), **values})

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
            temperature, curve = values["temperature"], values["curve"]
            read = {
                "interpolation": parse_interpolation(values["interpolation"]),
                "temperature": temperature and Temperature(**temperature),
                "curve": curve and tuple(map(Point.of_record, curve)),
                "profiles": tuple(map(Point.of_record, values.get("profiles", ()))),  # earlier releases tried none
            }
            return cls(**{**values, **read})
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

    Attributes:
        moved: The names of the towers in which something was trained; the other one is the base's at every
            interpolation.
    """

    def __init__(
        self, base: Base, adapted: Mapping[str, Tensor] | None, head: LinearHead | None, device: torch.device
    ) -> None:
        self.towers = AlignTowers.of(base).to(device)
        self._base = base.state_dict()
        self._adapted = adapted
        self._head = head
        self._device = device
        self.moved = tuple(tower.name for tower in TOWERS if self._moves(tower))

    def _moves(self, tower: Tower) -> bool:
        adapted = self._adapted or {}
        return any(not self._base[name].equal(tensor) for name, tensor in adapted.items() if tower.owns(name))

    @property
    def has_head(self) -> bool:
        """Whether there is a head."""
        return self._head is not None

    def towers_at(self, interpolation: float | Interpolation) -> AlignTowers:
        """Returns the towers of an interpolation, the same object at each call.

        Args:
            interpolation: In [0, 1], or a profile.
        """
        if self._adapted is not None:
            self.towers.align.load_state_dict(interpolate(self._base, self._adapted, interpolation))
        return self.towers

    def temperature_at(self, interpolation: float | Interpolation) -> Tensor:
        """Returns the temperature of an interpolation, on the device.

        Args:
            interpolation: In [0, 1], or a profile.
        """
        name = "temperature"
        base, adapted = ({name: state[name]} for state in (self._base, self._adapted or self._base))
        return interpolate(base, adapted, interpolation)[name].to(self._device)

    def head_at(self, interpolation: float | Interpolation) -> LinearHead:
        """Returns the head of an interpolation, on the device.

        Args:
            interpolation: In [0, 1], or a profile.

        Raises:
            ValueError: If there is none.
        """
        if self._head is None:
            raise ValueError("Expected a head, but got none: nothing but towers was trained.")
        return self._head.at(interpolation).to(self._device)

    def at(self, interpolation: float | Interpolation, prompts: ClassPrompts | None) -> RowModel:
        """Returns the model of an interpolation, with its head where there is one.

        Args:
            interpolation: In [0, 1], or a profile.
            prompts: The classes of the table; None where it has none.
        """
        towers = self.towers_at(interpolation)
        if self._head is None:
            return ask_towers(towers, prompts)
        return HeadOnTower(towers, self.head_at(interpolation))


def choose_point(points: Collection[Point], max_loss: float) -> Point:
    """Chooses among models between base and trained: the rule of `auto`.

    Of those that lose at most `max_loss` on the retention tables, the best target counts, and all whose target is
    within a standard error of it are as good: on few validation rows the best one is the best by chance. Of these the
    one that loses least is taken, where a gain counts as no loss. This is the one-standard-error rule (Breiman et al.
    1984, Classification and Regression Trees, section 3.4.3), with the smaller loss in the place of the smaller tree.
    Of those that lose nothing, or equally much, the one nearest to what was trained is taken, and then the higher
    target.

    Args:
        points: What was measured. With the base among them there always is a choice, as it loses nothing.
        max_loss: The largest retention loss allowed.

    Raises:
        ValueError: If each of them loses more.

    Example:
        >>> points = [Point(0.0, 0.1, 0.0, 0.0), Point(0.5, 0.88, 0.02, 0.01, 0.03), Point(1.0, 0.9, 0.04, 0.01, 0.03)]
        >>> choose_point(points, max_loss=0.05).interpolation
        0.5
    """
    allowed = [point for point in points if point.retention_loss <= max_loss]
    if not allowed:
        raise ValueError(f"Expected an interpolation that loses at most {max_loss}, but got none. Add 0 to them.")
    best = max(allowed, key=lambda point: point.target)
    as_good = [point for point in allowed if point.target >= best.target - best.target_error]
    return min(
        as_good,
        key=lambda point: (max(0.0, point.retention_loss), -_distance(point.interpolation), -point.target),
    )


class Candidates(NamedTuple):
    """What `auto` tries.

    Attributes:
        asking: Those for which a tower has to be asked about the rows: the line.
        joined: Those that can be put together of what the towers have said by then.
        weights: At how many different weights each tower is asked, by its name.
    """

    asking: list[float | Interpolation]
    joined: list[float | Interpolation]
    weights: dict[str, int]


def list_candidates(moved: Collection[str]) -> Candidates:
    """Returns the line on which both towers are alike and, where both were trained, each other pair of weights.

    Where one tower alone was trained, the other goes along, as it is the same at every weight.

    Args:
        moved: The towers in which something was trained.
    """
    both = itertools.permutations(INTERPOLATIONS, 2) if len(moved) == len(TOWERS) else ()
    joined = [Interpolation((image, image), (text, text)) for image, text in both]
    weights = {tower.name: len(INTERPOLATIONS) if tower.name in moved else 1 for tower in TOWERS}
    if not moved:
        return Candidates([*INTERPOLATIONS[:1]], [*INTERPOLATIONS[1:]], weights)
    return Candidates([*INTERPOLATIONS], [*joined], weights)


def _distance(interpolation: float | Interpolation) -> float:
    """How far from the base an interpolation lies, in the mean."""
    return statistics.mean(sum(Interpolation.of(interpolation).by_tower().values(), ()))

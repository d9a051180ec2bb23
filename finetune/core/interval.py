"""How often something is done: after so many steps, or so much time."""

import re
from typing import NamedTuple, Self

from finetune.core.errors import RecipeError

_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}


class Interval(NamedTuple):
    """A number of steps or of seconds; the other one is None.

    Attributes:
        steps: Steps of the optimiser.
        seconds: Seconds of the clock.
    """

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: int | str, key: str) -> Self:
        """Reads a number of steps, or a time.

        Args:
            value: As in a recipe.
            key: The recipe key, for the error.

        Raises:
            RecipeError: If it is neither, or nothing is left of it.

        Example:
            >>> Interval.parse(200, "run.save_every"), Interval.parse("10 minutes", "run.save_every")
            (Interval(steps=200, seconds=None), Interval(steps=None, seconds=600.0))
        """
        words = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
        amount, unit = (float(words[1]), words[2]) if words else (0.0, "")
        if amount > 0 and not unit and amount.is_integer() and not isinstance(value, bool):
            return cls(steps=int(amount))
        seconds = _SECONDS.get(unit) or (_SECONDS.get(unit.removesuffix("s")) if len(unit) > 2 else None)
        if amount > 0 and seconds:
            return cls(seconds=amount * seconds)
        raise RecipeError(
            f"Expected {key} to be a number of steps, or a time such as `10 minutes` or `1 h`, but got {value!r}."
        )

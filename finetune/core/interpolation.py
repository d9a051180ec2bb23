"""How far a model lies from its base towards what was trained: one number, or a profile over towers and blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from finetune.core.errors import RecipeError, did_you_mean

HOW = "Write it as image=0.7,text=0.3, or as image=1:0.5,text=0.3 for weights from a tower's first block to its last."


@dataclass(frozen=True)
class Interpolation:
    """Weights of what was trained that go with tower and depth, where one number for the whole model is not enough.

    Block i of a tower's n, from 0, has the weight (1 - d) first + d last, where d = i / (n - 1) is its depth. What lies
    before the blocks (embeddings, stem) counts as the first block, what follows them (the text projection) as the last,
    and so does a tower's only block. The temperature belongs to both towers and has the mean of their last weights; a
    head has the last weight of the image tower.

    A profile that rises with depth is LiNeS (Wang et al. 2024, arXiv 2410.17246).

    Args:
        image: Weights of the image tower at its first and at its last block, in [0, 1]: 0 is the base, 1 is all that
            was trained. One number stands for both.
        text: Likewise of the text tower.

    Raises:
        RecipeError: If a weight is no number in [0, 1].

    Example:
        >>> falling = Interpolation(image=(1.0, 0.5), text=(0.3, 0.3))
        >>> falling.at("image", 0.5), falling.of_both, str(falling)
        (0.75, 0.4, 'image=1:0.5,text=0.3')
    """

    image: tuple[float, float]
    text: tuple[float, float]

    def __post_init__(self) -> None:
        for tower, weights in self.by_tower().items():
            object.__setattr__(self, tower, _read_weights(weights, tower))

    def __str__(self) -> str:
        """The profile as `parse_interpolation` reads it."""
        return ",".join(f"{tower}={_write_weights(weights)}" for tower, weights in self.by_tower().items())

    @classmethod
    def of(cls, interpolation: "float | Interpolation") -> "Interpolation":
        """Returns the profile of equal weights that a number stands for; a profile as it is.

        Args:
            interpolation: The number, or the profile.
        """
        if isinstance(interpolation, Interpolation):
            return interpolation
        return cls(image=(interpolation, interpolation), text=(interpolation, interpolation))

    def by_tower(self) -> dict[str, tuple[float, float]]:
        """Returns the weights of each tower by its name."""
        return {"image": self.image, "text": self.text}

    def at(self, tower: str, depth: float) -> float:
        """Returns the weight of a block.

        Args:
            tower: `image` or `text`.
            depth: Where it lies between the tower's first block, 0, and its last, 1.
        """
        first, last = self.by_tower()[tower]
        return first if first == last else (1 - depth) * first + depth * last

    @property
    def of_both(self) -> float:
        """The weight of what belongs to both towers, the temperature."""
        return (self.image[1] + self.text[1]) / 2

    @property
    def of_head(self) -> float:
        """The weight of a head."""
        return self.image[1]


def check_interpolation(interpolation: float | Interpolation, name: str = "interpolation") -> None:
    """Refuses what is no point between base and trained; a profile has refused it itself.

    Args:
        interpolation: The number, or the profile.
        name: What the user calls it.

    Raises:
        RecipeError: If it is not in [0, 1].
    """
    if not isinstance(interpolation, Interpolation) and not 0 <= interpolation <= 1:
        raise RecipeError(
            f"Expected {name} to be in [0, 1], but got {interpolation}. 0 is the base, 1 is all that was trained."
        )


def parse_interpolation(value: Any, name: str = "interpolation") -> float | Interpolation:
    """Reads an interpolation as recipes, files, commands and Python write it.

    Args:
        value: A number; a text such as `0.7` or `image=1:0.5,text=0.3`; a mapping with a number or a pair of numbers
            for `image` and for `text`; or a profile.
        name: What the user calls it.

    Returns:
        A profile, or the number that stands for one whose weights are all the same.

    Raises:
        RecipeError: If it is none of these, a tower is missing, or a weight is not in [0, 1].

    Example:
        >>> parse_interpolation({"image": [1, 0.5], "text": 0.3}) == parse_interpolation("image=1:0.5,text=0.3")
        True
        >>> parse_interpolation("image=0.7,text=0.7")
        0.7
    """
    if isinstance(value, Interpolation):
        return _simplify(value)
    if isinstance(value, str) and "=" in value:
        value = _read_text(value, name)
    if isinstance(value, Mapping):
        return _simplify(_read_towers(value, name))
    number = _read_number(value)
    if number is None:
        raise RecipeError(
            f"Expected {name} to be a number from 0 to 1, auto, or a weight for each tower, but got {value!r}. {HOW}"
        )
    check_interpolation(number, name)
    return number


def as_json(interpolation: float | Interpolation) -> float | dict[str, list[float]]:
    """Returns what files hold: the number, or the weights of each tower.

    Args:
        interpolation: What `parse_interpolation` reads back.
    """
    if not isinstance(interpolation, Interpolation):
        return interpolation
    return {tower: [float(weight) for weight in weights] for tower, weights in interpolation.by_tower().items()}


def name_interpolation(value: Any) -> str:
    """Returns what readers see of an interpolation, which commands take.

    Args:
        value: As for `parse_interpolation`.

    Example:
        >>> name_interpolation(0.7), name_interpolation({"image": [1.0, 0.5], "text": [0.3, 0.3]})
        ('0.7', 'image=1:0.5,text=0.3')
    """
    interpolation = parse_interpolation(value)
    return str(interpolation) if isinstance(interpolation, Interpolation) else _write_number(interpolation)


def _simplify(profile: Interpolation) -> float | Interpolation:
    weights = {*profile.image, *profile.text}
    return profile.image[0] if len(weights) == 1 else profile


def _read_towers(value: Mapping[Any, Any], name: str) -> Interpolation:
    towers = [field.name for field in fields(Interpolation)]
    if unknown := [key for key in value if key not in towers]:
        raise RecipeError(
            f"Expected {name} to name the towers image and text, but got {unknown[0]!r}. "
            f"{did_you_mean(str(unknown[0]), towers)}"
        )
    if missing := [tower for tower in towers if tower not in value]:
        raise RecipeError(
            f"Expected {name} to have weights for both towers, image and text, but got none for {missing[0]}. {HOW} "
            "0 leaves a tower as it was, 1 exports all that was trained."
        )
    return Interpolation(**{tower: _read_weights(value[tower], f"{tower} of {name}") for tower in towers})


def _read_text(text: str, name: str) -> dict[str, Any]:
    """The parts of a text such as `image=1:0.5,text=0.3`."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        tower, equals, weights = (word.strip() for word in part.partition("="))
        if not equals or tower in found:
            raise RecipeError(
                f"Expected {name} to give image and text their weights once each, but got {text!r}. {HOW}"
            )
        found[tower] = weights.split(":") if ":" in weights else weights
    return found


def _read_weights(value: Any, name: str) -> tuple[float, float]:
    """A tower's pair of weights, of which both are the same where one is given."""
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    numbers = [number for weight in pair if (number := _read_number(weight)) is not None]
    if len(pair) != 2 or len(numbers) != 2:
        raise RecipeError(
            f"Expected {name} to be a number, or two numbers for the first and the last block, but got {value!r}. {HOW}"
        )
    for number in numbers:
        check_interpolation(number, name)
    return numbers[0], numbers[1]


def _read_number(value: Any) -> float | None:
    """A number or its text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _write_weights(weights: tuple[float, float]) -> str:
    first, last = map(_write_number, weights)
    return first if first == last else f"{first}:{last}"


def _write_number(number: float) -> str:
    """The shortest text that is read back as this very number."""
    return str(float(number)).removesuffix(".0")

"""How often something is done, as recipes say it."""

import pytest

from finetune.core.errors import RecipeError
from finetune.core.interval import Interval
from finetune.run.settings import RunSettings


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, Interval(steps=1)),
        ("250", Interval(steps=250)),
        ("90 s", Interval(seconds=90)),
        ("1.5h", Interval(seconds=5400)),
        ("10 minutes", Interval(seconds=600)),
        ("1 Minute", Interval(seconds=60)),
        ("30 secs", Interval(seconds=30)),
    ],
)
def test_steps_and_times(value, expected):
    assert Interval.parse(value, "run.save_every") == expected


@pytest.mark.parametrize("value", [0, -5, "0", "0 s", "1.5", "often", "5 years", "500 ms", "", "s", True, "5 5", 2.5])
def test_what_is_neither_is_refused(value):
    with pytest.raises(RecipeError, match=r"Expected run\.save_every to be a number of steps, or a time such as"):
        Interval.parse(value, "run.save_every")
    with pytest.raises(RecipeError):
        RunSettings(save_every=value)

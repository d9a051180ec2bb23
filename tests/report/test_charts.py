"""Charts drawn at the right places, with round numbers, in words too."""

import re

import numpy as np
import pandas as pd
import pytest

from finetune.report.charts import HEIGHT, WIDTH, Axis, Series, draw_chart, find_ticks
from finetune.report.curves import MOST_POINTS, draw_training

from .conftest import Page

NUMBER = r"-?[\d.]+"


def drawn_points(svg, style):
    (line,) = [it for it in Page(f"{svg}").all("polyline") if it.attributes["class"] == style]
    return [tuple(map(float, pair.split(","))) for pair in line.attributes["points"].split()]


def axis_scale(svg, anchor, axis):
    """The linear map from a coordinate of the picture to a value, read off the ticks' labels."""
    labels = [it for it in Page(f"{svg}").all("text") if it.attributes["class"] == anchor and axis in it.attributes]
    places = [float(it.attributes[axis]) for it in labels]
    values = [float(it.text.rstrip(" %").replace(",", "")) for it in labels]
    return np.polynomial.Polynomial.fit(places, values, 1)


@pytest.mark.parametrize("is_share", [False, True])
def test_points_lie_where_the_axes_say(is_share):
    points = [(0, 0.13), (200, 0.5), (1400, 0.91)]
    chart = draw_chart("Title", [Series("one", points)], Axis("step"), Axis("value", is_share=is_share))
    to_x, to_y = axis_scale(chart.svg, "middle", "x"), axis_scale(chart.svg, "end", "y")
    for (x, y), (across, down) in zip(points, drawn_points(chart.svg, "line-1"), strict=True):
        assert to_x(across) == pytest.approx(x, abs=3)
        assert to_y(down - -4) == pytest.approx(y * (100 if is_share else 1), rel=0.02)
        assert 0 <= across <= WIDTH
        assert 0 <= down <= HEIGHT


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (-3.0, 17.0), (1e-5, 9e-5), (0.0499999, 0.0500001), (1234.5, 98765.4), (5.0, 5.0), (0, 0)],
)
def test_ticks_are_round_enclose_the_values_and_are_few(low, high):
    ticks = find_ticks([low, high], Axis("any"))
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 8
    steps = np.diff(ticks)
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert f"{steps[0]:.3e}"[:5] in ("1.000", "2.000", "5.000")


def test_ticks_begin_and_end_where_the_axis_says():
    assert find_ticks([0.4, 0.5], Axis("accuracy", low=0.0, high=1.0)) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_lines_differ_by_more_than_their_names():
    lines = [
        Series("a", [(0, 0), (1, 1)]),
        Series("limit", [(0, 1), (1, 1)], is_reference=True),
        Series("b", [(0, 1)], [4.0]),
    ]
    chart = draw_chart("Two & more", lines, Axis("x"), Axis("y"))
    assert chart.legend == (("line-1", "a"), ("reference", "limit"), ("line-2", "b"))
    svg = Page(f"{chart.svg}")
    assert svg.all("svg")[0].attributes["aria-label"] == "Two & more. y over x. a: 0 at 0, 1 at 1; b: 1 at 0, 1 at 0."
    assert [it.attributes["r"] for it in svg.all("circle")] == ["4.0"]
    assert "Two & more" not in chart.svg


class Logged:
    """What `draw_training` reads of a run."""

    def __init__(self, metrics, logged):
        self.metrics, self.logged = metrics, logged


def test_training_draws_what_was_logged_and_joins_neighbours():
    steps = np.arange(1000.0)
    logged = pd.DataFrame(
        {
            "step": steps,
            "train/loss": np.cos(steps),
            "train/temperature": np.inf,
            "lr-AdamW/pg1": 1e-3,
            "lr-AdamW/pg2": 1e-3,
            "lr-AdamW/pg3": 2e-3,
            "train/drift": steps,
            "val/mean_R@K": np.where(steps % 500 == 499, 0.5, np.nan),
        }
    )
    charts = {chart.title: chart for chart in draw_training(Logged({"after": {"test/mean_R@K": 0.5}}, logged))}
    assert list(charts) == ["Loss", "Validation", "Learning rate", "train/drift"]
    assert [name for _, name in charts["Learning rate"].legend] == ["lr-AdamW/pg1", "lr-AdamW/pg3"]
    assert len(drawn_points(charts["Validation"].svg, "line-1")) == 2
    assert len(drawn_points(charts["Loss"].svg, "line-1")) == MOST_POINTS
    assert charts["Loss"].note == "Each point is the mean of 5 logged values."
    to_y = axis_scale(charts["Loss"].svg, "end", "y")
    expected = np.cos(steps).reshape(-1, 5).mean(axis=1)
    found = [to_y(down + 4) for _, down in drawn_points(charts["Loss"].svg, "line-1")]
    assert found == pytest.approx(list(expected), abs=0.01)
    assert re.search(rf"step\. train/drift: {NUMBER} at {NUMBER}, {NUMBER} at {NUMBER}\.", charts["train/drift"].svg)

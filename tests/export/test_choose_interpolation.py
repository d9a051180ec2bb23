"""The models between base and trained, the rule that chooses one, and the choice as a file."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.core.errors import CheckpointError
from finetune.core.interpolation import Interpolation
from finetune.core.types import ClassPrompts
from finetune.export.choose_interpolation import (
    INTERPOLATIONS,
    Choice,
    Line,
    Point,
    Temperature,
    choose_point,
    list_candidates,
)
from finetune.inference.models import HeadOnTower, TwoTowers, ZeroShot
from finetune.model.head import LinearHead

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapted(base) -> dict[str, torch.Tensor]:
    """The base with noise in the text projection."""
    state = base.load().state_dict()
    noise = torch.randn(state["text_projection.weight"].shape, generator=torch.Generator().manual_seed(0))
    return {**state, "text_projection.weight": state["text_projection.weight"] + noise}


def test_line_gives_back_the_base_and_the_trained_and_their_average(base, adapted):
    line, stored = Line(base, adapted, None, CPU), load_file(base.folder / "model.safetensors")
    assert line.moved == ("text",)
    for interpolation in (1.0, 0.0, 0.25, 1.0):
        towers = line.towers_at(interpolation)
        assert towers is line.towers
        for name, tensor in towers.align.state_dict().items():
            average = (1 - interpolation) * stored[name].numpy() + interpolation * adapted[name].numpy()
            np.testing.assert_allclose(tensor.numpy(), average, rtol=1e-6, atol=1e-7)
    assert line.at(1.0, None).towers.align.text_projection.weight.equal(adapted["text_projection.weight"])
    assert line.at(0.0, None).towers.align.text_projection.weight.equal(stored["text_projection.weight"])
    assert base.tensors["text_projection.weight"].equal(stored["text_projection.weight"])  # shared, and not written to


def test_line_answers_with_the_head_where_there_is_one(base):
    start, weight = torch.zeros(3, 64), torch.ones(3, 64)
    head = LinearHead(weight, torch.ones(3), ("a", "b", "c"), False, start, torch.zeros(3))
    prompts = ClassPrompts(("a",), torch.tensor([[101, 102]]), torch.tensor([[1, 1]]), torch.tensor([0]))
    line = Line(base, None, head, CPU)
    assert line.moved == ()
    model = line.at(0.25, prompts)
    assert isinstance(model, HeadOnTower)
    assert model.scores(torch.ones(1, 64)).tolist() == [[16.25, 16.25, 16.25]]
    assert isinstance(Line(base, None, None, CPU).at(0.25, prompts), ZeroShot)
    assert isinstance(Line(base, None, None, CPU).at(0.25, None), TwoTowers)


def choose_by_hand(points, max_loss):
    """The rule in words, by brute force, on points that differ."""
    allowed = [point for point in points if point.retention_loss <= max_loss]
    best = max(point.target for point in allowed)
    error = next(point.target_error for point in allowed if point.target == best)
    as_good = [point for point in allowed if best - point.target <= error]
    lost = {point: max(0.0, point.retention_loss) for point in as_good}
    cheapest = [point for point in as_good if lost[point] == min(lost.values())]
    return max(cheapest, key=lambda point: point.interpolation)


@pytest.mark.parametrize("error", [0.0, 0.09, 0.11])
def test_what_loses_least_is_chosen_among_those_that_are_about_as_good_as_the_best_allowed(error):
    chosen = set()
    for targets in itertools.product([0.1, 0.2, 0.5], repeat=3):
        for losses in itertools.product([-0.1, 0.05, 0.15, 0.3], repeat=3):
            rows = zip([1.0, 0.5, 0.2], targets, losses, strict=True)
            points = [*(Point(*row, 0.1, error) for row in rows), Point(0.0, 0.1, 0.0, 0.0, error)]
            for max_loss in (0.0, 0.2):
                found = choose_point(points, max_loss)
                assert found == choose_by_hand(points, max_loss)
                assert found == choose_point(points[::-1], max_loss)
                chosen.add(found.interpolation)
    assert chosen == {0.0, 0.2, 0.5, 1.0}


def test_of_profiles_that_are_equally_good_the_one_nearest_to_what_was_trained_is_chosen():
    near, far = Interpolation((0.0, 0.5), (0.4, 0.4)), Interpolation((1.0, 0.0), (0.0, 1.0))
    points = [Point(interpolation, 0.5, 0.01, 0.0) for interpolation in (near, 0.4, far)]
    assert choose_point(points, 0.05).interpolation is far


def test_without_a_point_that_loses_little_enough_there_is_no_choice():
    with pytest.raises(ValueError, match=r"Expected an interpolation that loses at most 0\.05, but got none\. Add 0"):
        choose_point([Point(0.5, 1.0, 0.1, 0.0), Point(1.0, 1.0, 0.1, 0.0)], 0.05)
    assert INTERPOLATIONS[0] == 0
    assert INTERPOLATIONS[-1] == 1
    np.testing.assert_allclose(INTERPOLATIONS, np.linspace(0, 1, 11))


def test_candidates_are_the_line_and_each_pair_of_weights_off_it():
    found = list_candidates(("image", "text"))
    assert found.asking == list(INTERPOLATIONS)
    level = {(each.image[0], each.image[1], each.text[0], each.text[1]) for each in found.joined}
    grid = np.round(np.linspace(0, 1, 11), 12)
    expected = {(image, image, text, text) for image, text in itertools.product(grid, grid) if image != text}
    assert {tuple(np.round(each, 12)) for each in level} == expected
    assert len(found.joined) == 110
    assert {weight for each in found.joined for weight in (*each.image, *each.text)} <= {*INTERPOLATIONS}
    assert found.weights == {"image": 11, "text": 11}


@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_a_tower_in_which_nothing_was_trained_goes_along_and_is_asked_once(tower, other):
    found = list_candidates((tower,))
    assert (found.asking, found.joined) == (list(INTERPOLATIONS), [])
    assert found.weights == {tower: 11, other: 1}


def test_where_nothing_was_trained_in_a_tower_a_head_moves_on_the_line():
    found = list_candidates(())
    assert (found.asking, found.joined) == ([0.0], list(INTERPOLATIONS[1:]))
    assert found.weights == {"image": 1, "text": 1}


FALLING = Interpolation(image=(1.0, 0.5), text=(0.3, 0.3))
CURVE = (Point(0.0, 0.1, 0.0, 0.0), Point(1 / 3, 0.2, 0.01, 0.005))


@pytest.mark.parametrize(
    "choice",
    [
        Choice(1.0),
        Choice(FALLING),
        Choice(0.4, Temperature(0.02, 0.1)),
        Choice(1 / 3, Temperature(0.02, 0.05), CURVE, 0.05),
        Choice(1 / 3, None, CURVE, 0.05),
        Choice(FALLING, None, CURVE, 0.05, (Point(FALLING, 0.2, 0.01, 0.005, 0.03),)),
    ],
)
def test_choice_comes_back_from_its_file(choice, tmp_path):
    choice.write(tmp_path / "choice.json")
    found = Choice.read(tmp_path / "choice.json")
    assert found == choice
    assert type(found.temperature) is type(choice.temperature)
    assert found.curve is None or {type(point) for point in (*found.curve, *found.profiles)} == {Point}
    assert json.loads((tmp_path / "choice.json").read_text()).keys() == set(Choice._fields)


def test_a_choice_of_an_earlier_release_is_read(tmp_path):
    point = '{"interpolation": 0.5, "target": 0.2, "retention_loss": 0.01, "retention_error": 0.005}'
    (tmp_path / "choice.json").write_text(
        '{"interpolation": 0.5, "temperature": null, "max_retention_loss": 0.05, "curve": [' + point + "]}"
    )
    assert Choice.read(tmp_path / "choice.json") == Choice(0.5, None, (Point(0.5, 0.2, 0.01, 0.005),), 0.05)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"interpolation": 1.0}', '{"temperature": 1, "curve": null}'])
def test_a_file_that_holds_no_choice_is_refused(text, tmp_path):
    path = tmp_path / "choice.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match=r"Expected .*choice\.json to hold what its run exports, .* Run it again"):
        Choice.read(path)


def test_scale_turns_scores_at_the_trained_temperature_into_those_at_the_fitted():
    cosines = np.linspace(-1, 1, 5)
    choice = Choice(1.0, Temperature(trained=0.02, fitted=0.05))
    np.testing.assert_allclose(choice.scale * (cosines / 0.02), cosines / 0.05)
    assert Choice(1.0).scale == 1


def test_metrics_say_what_was_chosen_and_by_what():
    assert Choice(1.0, Temperature(0.02, 0.1)).as_metrics() == {}
    assert Choice(0.4).as_metrics() == {"interpolation": {"chosen": 0.4}}
    chosen = {"image": [1.0, 0.5], "text": [0.3, 0.3]}
    assert Choice(FALLING).as_metrics() == {"interpolation": {"chosen": chosen}}
    points = [
        {"interpolation": 0.0, "target": 0.1, "retention_loss": 0.0, "retention_error": 0.0, "target_error": 0.0},
        {"interpolation": 1 / 3, "target": 0.2, "retention_loss": 0.01, "retention_error": 0.005, "target_error": 0.0},
    ]
    expected = {"chosen": 1.0, "max_retention_loss": 0.05, "curve": points}
    assert Choice(1.0, None, CURVE, 0.05).as_metrics() == {"interpolation": expected}
    falling = (Point(FALLING, 0.2, 0.01, 0.005, 0.03),)
    found = Choice(FALLING, None, CURVE, 0.05, falling).as_metrics()["interpolation"]
    assert found == {
        "chosen": chosen,
        "max_retention_loss": 0.05,
        "curve": points,
        "profiles": [{**falling[0]._asdict(), "interpolation": chosen}],
    }

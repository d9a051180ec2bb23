"""Interpolations as recipes, commands, files and Python write them."""

import json

import pytest

from finetune.core.errors import RecipeError
from finetune.core.interpolation import Interpolation, as_json, name_interpolation, parse_interpolation

FALLING = Interpolation(image=(1.0, 0.5), text=(0.3, 0.3))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0.7, 0.7),
        (1, 1),
        ("0.7", 0.7),
        ({"image": 0.7, "text": 0.3}, Interpolation((0.7, 0.7), (0.3, 0.3))),
        ({"text": 0.3, "image": [1, 0.5]}, FALLING),
        ({"image": (1.0, 0.5), "text": [0.3, 0.3]}, FALLING),
        ("image=1:0.5,text=0.3", FALLING),
        (" text = 0.3 , image = 1:.5", FALLING),
        (FALLING, FALLING),
        ({"image": [0.7, 0.7], "text": 0.7}, 0.7),
        ("image=0,text=0:0", 0.0),
        (Interpolation((1, 1), (1.0, 1.0)), 1),
        (1 / 3, 1 / 3),
        ("1e-7", 1e-7),
        ({"image": [1 / 3, 1 - 1e-9], "text": 0.1 + 0.2}, Interpolation((1 / 3, 1 - 1e-9), (0.1 + 0.2, 0.1 + 0.2))),
    ],
)
def test_what_is_written_is_read_and_a_profile_of_equal_weights_is_their_number(written, meant):
    found = parse_interpolation(written)
    assert found == meant
    assert type(found) is type(meant)
    assert parse_interpolation(json.loads(json.dumps(as_json(found)))) == meant
    assert parse_interpolation(name_interpolation(as_json(found))) == meant


def test_files_hold_a_number_or_two_pairs():
    assert json.dumps(as_json(0.7)) == "0.7"
    assert json.dumps(as_json(Interpolation((1, 0.5), (0.3, 0.3)))) == '{"image": [1.0, 0.5], "text": [0.3, 0.3]}'
    assert name_interpolation(0.7) == "0.7"
    assert name_interpolation({"image": [1.0, 0.5], "text": [0.3, 0.3]}) == "image=1:0.5,text=0.3"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "most",
            r"Expected run\.interpolation to be a number from 0 to 1, auto, or .* but got 'most'\. Write",
        ),
        (True, r"Expected run\.interpolation to be a number .* but got True"),
        (None, r"Expected run\.interpolation to be a number .* but got None"),
        (1.5, r"Expected run\.interpolation to be in \[0, 1\], but got 1\.5\. 0 is the base, 1 is all"),
        ("nan", r"Expected run\.interpolation to be in \[0, 1\], but got nan"),
        (
            {"image": 0.7},
            r"Expected run\.interpolation to have weights for both towers, .* but got none for text\.",
        ),
        ("text=0.7", r"but got none for image\. Write it as image=0\.7,text=0\.3, or .* 0 leaves a tower as it was"),
        ({}, "but got none for image"),
        ({"image": 0.7, "test": 0.3}, r"to name the towers image and text, but got 'test'\. Did you mean 'text'\?"),
        ({"image": 1.5, "text": 0}, r"Expected image of run\.interpolation to be in \[0, 1\], but got 1\.5"),
        ("image=0,text=0.3:-1", r"Expected text of run\.interpolation to be in \[0, 1\], but got -1"),
        ({"image": [1, 0.5, 0], "text": 0}, r"Expected image of run\.interpolation to be a number, or two numbers for"),
        ({"image": [], "text": 0}, r"Expected image of run\.interpolation to be a number, or two .* but got \[\]"),
        ({"image": None, "text": 0}, "Expected image of run.interpolation to be a number, or two .* but got None"),
        ("image=1:x,text=0", "Expected image of run.interpolation to be a number, or two numbers"),
        (
            "image=1,image=0",
            "Expected run.interpolation to give image and text their weights once each, but got",
        ),
        ("image=1,text", "Expected run.interpolation to give image and text their weights once each"),
    ],
)
def test_what_is_no_interpolation_is_refused_with_how_to_write_one(written, message):
    with pytest.raises(RecipeError, match=message):
        parse_interpolation(written, "run.interpolation")


@pytest.mark.parametrize("image", [(0.5, 1.1), (-0.1, 0.5), (float("nan"), 0.0)])
def test_a_profile_with_a_weight_beyond_the_ends_is_not_made(image):
    with pytest.raises(RecipeError, match=r"Expected image to be in \[0, 1\], but got"):
        Interpolation(image, (0.5, 0.5))


def test_a_profile_holds_pairs_of_numbers_however_they_were_given():
    found = Interpolation(image=[1, "0.5"], text=0.3)
    assert (found.image, found.text) == ((1, 0.5), (0.3, 0.3))
    assert found == FALLING
    assert {found: "a key"}[FALLING] == "a key"
    assert found.at("text", 0.5) == 0.3


def test_weights_go_from_first_to_last_in_a_straight_line():
    assert [FALLING.at("image", depth) for depth in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.875, 0.75, 0.5]
    assert {FALLING.at("text", depth / 7) for depth in range(8)} == {0.3}  # not a rounding error away from it
    assert FALLING.of_head == 0.5
    assert FALLING.of_both == 0.4

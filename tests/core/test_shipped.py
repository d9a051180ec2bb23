"""Recipes by name and by path."""

import pytest

from finetune.core.errors import RecipeError
from finetune.core.shipped import find_recipe, recipe_goal, script, shipped_folder, shipped_recipes


def test_recipes_are_found_by_name_and_by_path(tmp_path):
    assert find_recipe("quickstart") == shipped_folder("recipes") / "quickstart.yaml"
    own = tmp_path / "own.yaml"
    own.write_text("# Goal: mine\n")
    assert find_recipe(str(own)) == own
    assert recipe_goal(own) == "mine"


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="got 'quikstart'. Did you mean 'quickstart'"):
        find_recipe("quikstart")


def test_every_shipped_recipe_says_its_goal():
    assert all(recipe_goal(path) for path in shipped_recipes().values())


def test_a_script_prints_its_result_or_its_error(capsys):
    @script
    def main(argv):
        if argv == ["refused"]:
            raise RecipeError("Expected a, but got b.")
        return f"wrote {argv}"

    assert main(["x"]) == 0
    assert capsys.readouterr() == ("wrote ['x']\n", "")
    assert main(["refused"]) == 2
    assert capsys.readouterr() == ("", "error: Expected a, but got b.\n")

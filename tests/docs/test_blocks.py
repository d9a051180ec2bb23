"""What stands in the documentation's blocks of code exists: commands, options, recipe keys, files."""

import re
import shlex

import pytest
import yaml

from finetune.commands.cli import build_parser
from finetune.core.shipped import shipped_recipes
from finetune.pipeline.recipe import read_recipe
from tests.docs.pages import PAGES, ROOT, find_arguments, read_blocks, read_commands

LANGUAGES = {"bash", "csv", "json", "mermaid", "python", "text", "yaml"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_block_says_what_it_holds(page):
    fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
    blocks = read_blocks(page)
    assert 2 * len(blocks) == len(fences)
    assert {block.language for block in blocks} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    parser = build_parser()
    for block in read_blocks(page, "bash"):
        for command in read_commands(block):
            for words in find_arguments(command):
                options, rest = parser.parse_known_args(words)  # which exits where a word is wrong
                if words[0] == "prepare":
                    script = (ROOT / "datasets" / f"{options.name}.py").read_text(encoding="utf-8")
                    assert all(f'"{word}"' in script for word in rest if word.startswith("--")), block
                elif not getattr(options, "takes_words", False):
                    assert not rest, block


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipe_keys_exist(page):
    parser, recipes = build_parser(), shipped_recipes()
    for block in read_blocks(page, "bash"):
        for command in read_commands(block):
            for words in find_arguments(command):
                options, rest = parser.parse_known_args(words)
                if getattr(options, "config", None):
                    read_recipe(recipes.get(options.config, recipes["retrieval_lora"]), rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_and_tests_exist(page):
    for block in read_blocks(page, "bash"):
        for command in read_commands(block):
            words = shlex.split(command)
            for place, word in enumerate(words):
                if word.startswith(("benchmarks/", "tests/")) and not word.startswith("benchmarks/results"):
                    assert (ROOT / word).exists(), block
                if word.startswith("benchmarks/") and word.endswith(".py"):
                    text = (ROOT / word).read_text(encoding="utf-8")
                    end = next((at for at, word in enumerate(words) if at > place and word == "&&"), len(words))
                    options = [word for word in words[place:end] if word.startswith("--") and "." not in word]
                    assert all(f'"{option}"' in text for option in options), block


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if read_blocks(page, "yaml")], ids=lambda page: page.name)
def test_yaml_is_part_of_a_recipe(page, tmp_path):
    for block in read_blocks(page, "yaml"):
        values = yaml.safe_load(block.text)
        if not values.keys() & {"model", "data", "trainer", "run"}:
            values = {"data": {"table": values}}
        data = values.setdefault("data", {})
        table = data.get("init_args", data).setdefault("table", {})
        table.setdefault("path", "t.csv")
        if "caption" not in table:
            table.setdefault("label", "label")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(values))
        read_recipe(recipe, [])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_can_be_parsed(page):
    for block in read_blocks(page, "python"):
        compile(block.text, str(block), "exec")


def test_the_reference_has_every_public_name_once():
    import finetune

    named = re.findall(r"^::: finetune\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(finetune.__all__)

"""Every shipped recipe: short, explained, parsed, and run for two steps on `align-mini`."""

import re

import pytest

from finetune.core.shipped import shipped_folder, shipped_recipes
from finetune.pipeline.recipe import read_recipe

OF_EACH_KIND = ("quickstart", "classify_head", "retrieval_lora", "zero_shot")  # prompts, a head, captions, no training
RECIPES = sorted(path for path in shipped_folder("recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_goal_data_command_and_override(path):
    lines = path.read_text().splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["# Goal", "# Data", "# Command", "# Override"]
    assert f"--config {path.stem}" in lines[2]
    assert f"--config {path.stem} --" in lines[3]
    assert len(lines) <= 45


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_rows_that_a_recipe_names_are_in_the_table(path):
    named = re.findall(r'^# Measured: (\S+), section (.+), rows "(.+)"$', path.read_text(), re.MULTILINE)
    assert len(named) == path.read_text().count("# Measured")
    for page, section, row in named:
        text = (path.parents[1] / page).read_text().split(f"## {section}\n")[1].split("\n## ")[0]
        assert f"| {row} |" in text


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem in OF_EACH_KIND else pytest.mark.slow, id=path.stem) for path in RECIPES],
)
def test_recipe_runs_two_steps(path, colour_table, tmp_path):
    recipe = read_recipe(
        path,
        [
            *("--model.checkpoint", "align-mini"),
            *("--data.table.path", str(colour_table)),
            *("--data.table.images", str(colour_table.parent)),
            *("--data.table.split", "split"),
            *("--data.image_size", "64"),
            *("--data.num_workers", "0"),
            *("--data.batch_size", "8"),
            *("--trainer.accelerator", "cpu"),
            *("--trainer.precision", "32-true"),
            *("--trainer.fast_dev_run", "2"),
            *("--trainer.default_root_dir", str(tmp_path)),
        ],
    )
    task, data = recipe.build_task(), recipe.build_data()
    trainer = recipe.build_trainer()
    if any(parameter.requires_grad for parameter in task.parameters()):
        trainer.fit(task, data)
        assert trainer.global_step == 2
        assert trainer.callback_metrics["train/loss"].isfinite()
    trainer.test(task, data)
    assert any(name.startswith("test/") for name in trainer.callback_metrics)


def test_work_recipes_default_to_the_real_checkpoint():
    named = {name: read_recipe(path).checkpoint for name, path in shipped_recipes().items()}
    assert named.pop("quickstart") == "align-mini"
    assert set(named.values()) == {"kakaobrain/align-base"}

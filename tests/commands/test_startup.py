"""What a command imports before it works: nobody waits for libraries that a command does not need."""

import json
import subprocess
import sys

import pytest

from finetune.commands.cli import COMMANDS

SCRIPT = """
import json, sys
from finetune.commands.cli import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as done:
        code = done.code
    found = [name for name in sys.argv[2:] if name in sys.modules]
    assert not found, f"{words[0]} imports {found}"
    assert not code, words
"""
TRAINING = ("lightning", "jsonargparse", "finetune.pipeline.recipe", "torchmetrics", "albumentations", "sklearn")
"""What a whole recipe needs and nothing else: several seconds on a slow machine."""

MODELS = ("transformers", "peft")
LIBRARIES = (*TRAINING, *MODELS, "torch", "numpy", "pandas", "yaml", "safetensors")


def run(*commands, without) -> str:
    """Runs commands, one after the other, in a process that may have imported none of some modules."""
    words = json.dumps([[*map(str, words)] for words in commands])
    done = subprocess.run([sys.executable, "-c", SCRIPT, words, *without], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_what_only_prints_imports_no_library():
    names = [command.__name__.rpartition(".")[2] for command in COMMANDS]
    helps = [[name, "--help"] for name in names]
    shown = run(["--help"], *helps, ["recipes", "list"], ["recipes", "show", "quickstart"], without=LIBRARIES)
    for name in names:
        assert f"usage: finetune {name} " in shown


def test_report_imports_nothing_that_trains_or_embeds(two_towers):
    without = {*TRAINING, *MODELS, "torch"} - {"jsonargparse"}  # which reads the table that the recipe names
    assert "report.html" in run(["report", two_towers.path], without=without)


def test_compare_imports_nothing_that_trains(two_towers, with_head):
    models = (two_towers.path, with_head.path / "classifier")
    assert " against " in run(["compare", *models], without={*TRAINING, *MODELS})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_towers", "with_head"])
def test_what_asks_or_exports_a_trained_model_imports_nothing_that_trains(request, colour_table, tmp_path, name):
    run_folder, image = request.getfixturevalue(name).path, colour_table.parent / "0.png"
    shown = run(
        ["verify", run_folder / ("classifier" if name == "with_head" else "merged")],
        ["export", run_folder, "--output", tmp_path / "merged", "--interpolation", "0.5"],
        ["classify", tmp_path / "merged", image, "--label", "a cat", "--label", "a dog"],
        *([["classify", run_folder, image]] if name == "with_head" else []),
        without=TRAINING,
    )
    assert shown.count("reproduces the interpolated model") == 1
    assert "zero-shot" in shown

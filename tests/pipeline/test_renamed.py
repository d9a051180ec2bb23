"""Old names of recipe keys, classes and options: refused with the new one, wherever they are written."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from finetune.commands.cli import main
from finetune.core.errors import RecipeError
from finetune.pipeline.parser import describe_keys
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.renamed import OPTIONS, RENAMED, refuse_renamed

ALPHA = "run.alpha is now run.interpolation. Rename the key."
FLOOR = "run.floor is now run.linear_probe. Rename the key."
RECOMPUTE = "model.image_checkpointing is now model.image_recompute. Rename the key."
PROBE = "model.head_start finetune.objectives.FromProbe is now model.head_start finetune.FromProbe. Rename the class."
TASK = "is now model.class_path finetune.ClassificationTask. lr_scale is now its head_lr_scale, and head_start stays"
TARS = "data finetune.ShardedImageText is now data finetune.ImageTextDataModule. It is the default"


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of the given text."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path, *words: str) -> str:
    with pytest.raises(RecipeError) as refused:
        read_recipe(path, words)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  alpha: 0.5\n", ALPHA),
        ("run.alpha: auto\n", ALPHA),
        ("run: {seed: 1, floor: false}\n", FLOOR),
        ("model:\n  image_checkpointing: true\n", RECOMPUTE),
        ("model:\n  class_path: finetune.AlignTask\n  init_args:\n    image_checkpointing: true\n", RECOMPUTE),
        ("model:\n  objective: finetune.Classification\n", f"model.objective finetune.Classification {TASK}"),
        ("model:\n  objective: Classification\n", f"model.objective Classification {TASK}"),
        (
            "model:\n  init_args:\n    objective:\n      init_args:\n        lr_scale: 0.3\n"
            "      class_path: finetune.objectives.Classification\n",
            f"model.objective finetune.objectives.Classification {TASK}",
        ),
        (
            "model:\n  class_path: finetune.ClassificationTask\n  init_args:\n"
            "    head_start:\n      class_path: finetune.objectives.FromProbe\n",
            PROBE,
        ),
        (
            "model:\n  class_path: finetune.ClassificationTask\n  init_args:\n"
            "    head_start: finetune.objectives.FromPrompts\n",
            "model.head_start finetune.objectives.FromPrompts is now model.head_start finetune.FromPrompts.",
        ),
        ("data:\n  class_path: finetune.ShardedImageText\n  init_args:\n    batch_size: 3\n", TARS),
        ("data: finetune.ShardedImageText\n", TARS),
    ],
)
def test_an_old_name_in_a_file_is_refused_with_the_new_one(recipe, text, message):
    path = recipe(text)
    assert refusal(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.alpha", "0.5"], "--run.alpha is now --run.interpolation. Rename the key."),
        (["--run.alpha=0.5"], "--run.alpha is now --run.interpolation. Rename the key."),
        (["--run", "{alpha: 0.5}"], "--run.alpha is now --run.interpolation. Rename the key."),
        (["--model.init_args.image_checkpointing", "true"], "--model.image_checkpointing is now"),
        (["--model.objective", "finetune.Classification"], "--model.objective finetune.Classification is now --model."),
        (["--model.objective.class_path=finetune.objectives.Classification"], "--model.objective finetune.objectives."),
        (["--model.objective.lr_scale", "0.3"], "--model.objective.lr_scale is now --model.head_lr_scale."),
        (["--model.init_args.objective.init_args.lr_scale=3"], "--model.objective.lr_scale is now --model.head_lr"),
        (["--model.objective.head_start.smoothing", "0.8"], "--model.objective.head_start is now --model.head_start."),
        (["--model.objective.head_start", "finetune.objectives.FromProbe"], "--model.objective.head_start is now"),
        (["--model.head_start", "finetune.objectives.FromProbe"], f"--{PROBE}".replace("now ", "now --")),
        (["--data", "finetune.ShardedImageText"], "--data finetune.ShardedImageText is now --data finetune.Image"),
        (["--data.class_path", "finetune.ShardedImageText"], "--data finetune.ShardedImageText is now --data finetune"),
        (["--config", "{run: {alpha: 0.5}}"], f"--config: {ALPHA}"),
    ],
)
def test_an_old_name_on_the_command_line_is_refused_with_the_new_one(recipe, words, message):
    assert refusal(recipe("{}"), *words).startswith(message)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lr_scale: 3", "model.lr_scale is now model.head_lr_scale. Rename the key."),
        ("label_smoothing: 0.1", "model.label_smoothing is now model.objective.label_smoothing."),
        ("text_lora: {rank: 4}", "model.text_lora is now no key of finetune.ClassificationTask. Leave it out: texts"),
        ("min_temperature: 0.1", "model.min_temperature is now no key of finetune.ClassificationTask. Leave it out."),
    ],
)
def test_old_keys_of_a_head_are_refused_with_the_new_ones_where_the_task_is_the_new_one(recipe, key, message):
    path = recipe(f"model:\n  class_path: finetune.ClassificationTask\n  init_args:\n    {key}\n")
    assert refusal(path).startswith(f"{path}: {message}")
    name, value = key.split(": ", 1)
    found = refusal(recipe("{}"), "--model", "finetune.ClassificationTask", f"--model.{name}", value)
    assert found.startswith(f"--{message.split(' is now ')[0]} is now ")


def test_all_old_names_are_reported_at_once_each_where_it_stands(recipe, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("run: {floor: false}\n")
    path = recipe("model: {image_checkpointing: true, objective: {class_path: Classification}}\nrun: {alpha: 1}\n")
    found = refusal(path, "--config", str(more), "--run.alpha=0.5")
    first, last = found.split(f" {more}: ")
    assert first.startswith(f"{path}: {RECOMPUTE} model.objective Classification {TASK}")
    assert first.endswith(ALPHA)
    assert last == f"{FLOOR} --run.alpha is now --run.interpolation. Rename the key."
    assert "\n" not in found


def test_class_of_the_users_own_may_use_any_name(recipe):
    own = recipe("model:\n  objective:\n    class_path: mine.Loss\n    init_args: {lr_scale: 3, head_start: x}\n")
    refuse_renamed(own, ["--model.objective.lr_scale", "4"])
    refuse_renamed(recipe("{}"), ["--model.objective", "mine.Classification", "--model.objective.head_start=x"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {image_lora: {alpha: 64}}\n", ["--model.image_lora.alpha", "3"]),
        ("data: {templates: [finetune.Classification]}\n", ["--run.name", "alpha"]),
        ("", ["--data.table.filter", "a == 'alpha: [1", "--data.table.path", "2024-13-45", "--flag"]),
        ("[1, 2", []),
    ],
)
def test_everything_else_is_left_to_the_parser(recipe, text, words):
    refuse_renamed(recipe(text), words)


def test_new_names_are_names_and_old_ones_are_not():
    keys = describe_keys()
    for old, (new, _) in RENAMED.items():
        key, _, name = new.partition(" ")
        if name:
            module, _, attribute = name.rpartition(".")
            assert getattr(import_module(module), attribute).__name__ == attribute
        else:
            assert f"--{key} " in keys
            assert f"--{old} " not in keys


@pytest.mark.parametrize("start", ["finetune.FromProbe", "finetune.FromPrompts"])
def test_a_recipe_that_follows_the_advice_is_read(recipe, start):
    text = recipe(
        "model:\n  class_path: finetune.ClassificationTask\n  init_args:\n    checkpoint: align-mini\n"
        f"    head_lr_scale: 0.3\n    head_start: {start}\n    image_recompute: true\n"
        "    objective: {class_path: finetune.CrossEntropy, init_args: {label_smoothing: 0.1, class_weights: [1, 2]}}\n"
        "data:\n  init_args:\n    table: {path: shards/*.tar, label: label}\n"
        "run: {interpolation: auto, linear_probe: false}\n"
    )
    recipe = read_recipe(text, ["--model.head_lr_scale", "0.4"])
    assert (recipe.run.interpolation, recipe.run.linear_probe) == ("auto", False)


@pytest.mark.parametrize("command", ["fit", "test", "suspects"])
def test_commands_refuse_old_names(recipe, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    path = recipe("run:\n  alpha: 0.5\n")
    assert main([command, "--config", str(path), "--run.floor", "false"]) == 2
    expected = f"error: {path}: {ALPHA} --run.floor is now --run.linear_probe. Rename the key.\n"
    assert capsys.readouterr().err == expected
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_check_reports_old_names_beside_what_is_wrong_with_the_table(recipe, colour_table, tmp_path, capsys):
    path = recipe(f"data:\n  table:\n    path: {colour_table}\n    label: lable\nrun:\n  alpha: 0.5\n")
    assert main(["check", "--config", str(path), "--output", str(tmp_path / "check.json")]) == 2
    shown = capsys.readouterr().out
    assert f"error: {path}: {ALPHA}\n" in shown
    assert "lable" in shown
    messages = [fault["message"] for fault in json.loads((tmp_path / "check.json").read_text())["errors"]]
    assert messages[-1] == f"{path}: {ALPHA}"


def test_check_refuses_a_data_module_that_is_gone(recipe, colour_table, tmp_path, capsys):
    path = recipe(
        f"data:\n  class_path: finetune.ShardedImageText\n  init_args:\n    table: {{path: {colour_table}}}\n"
    )
    assert main(["check", "--config", str(path), "--output", str(tmp_path / "check.json")]) == 2
    assert f"error: {path}: {TARS}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--alpha", "0.5"], ["--alpha=auto"]])
def test_option_of_export_is_refused_with_the_new_one(tmp_path, capsys, words):
    assert main(["export", "run", "--output", str(tmp_path / "never"), *words]) == 2
    assert capsys.readouterr().err == "error: --alpha is now --interpolation. Rename the option.\n"
    assert OPTIONS == {"--alpha": "--interpolation"}
    assert not list(tmp_path.iterdir())

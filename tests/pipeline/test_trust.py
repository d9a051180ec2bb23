"""A stranger's recipe: no module that is not trusted is imported, and no function is called, wherever it is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune.commands.cli import main
from finetune.core.errors import RecipeError
from finetune.data.checks.check import read_settings
from finetune.pipeline.recipe import read_recipe

LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
ONE_OF, SEQUENTIAL, FLIP = (f"albumentations.{name}" for name in ("OneOf", "Sequential", "HorizontalFlip"))


def build(name, /, **arguments):
    return {"class_path": name, "init_args": arguments} if arguments else {"class_path": name}


EVIL = build("evil.Task")
NESTED = build(SEQUENTIAL, transforms=[EVIL])
PLACES = {
    "model": {"model": EVIL},
    "data": {"data": EVIL},
    "run": {"run": EVIL},
    "objective": {"model": {"objective": EVIL}},
    "optimizer": {"model": {"optimizer": "evil.Task"}},
    "value of an optimizer": {"model": {"optimizer": build("torch.optim.AdamW", lr=EVIL)}},
    "other values of an optimizer": {
        "model": {"optimizer": {**build("torch.optim.AdamW"), "dict_kwargs": {"x": EVIL}}}
    },
    "lr_scheduler": {"model": {"lr_scheduler": EVIL}},
    "adapter": {"model": {"image_lora": EVIL}},
    "head": {"model": build("finetune.ClassificationTask", head_start="evil.Task")},
    "augmentation": {"data": {"augmentations": [EVIL]}},
    "augmentation inside": {
        "data": {"augmentations": [build(ONE_OF, transforms=[build(SEQUENTIAL, transforms=[EVIL])])]}
    },
    "function of an augmentation": {"data": {"augmentations": [build("albumentations.Lambda", image="evil.go")]}},
    "any value of an augmentation": {"data": {"augmentations": [build(FLIP, p=EVIL)]}},
    "sampling": {"data": {"sampling": "evil.Task"}},
    "caption": {"data": {"table": {"path": "t.csv", "caption": EVIL}}},
    "split": {"data": {"table": {"path": "t.csv", "label": "label", "split": EVIL}}},
    "retention": {"data": {"retention": [EVIL]}},
    "callback": {"trainer": {"callbacks": "evil.Task"}},
    "callbacks": {"trainer": {"callbacks": [EVIL]}},
    "function of a callback": {"trainer": {"callbacks": [build(LAMBDA, on_fit_start="evil.go")]}},
    "class in a callback": {"trainer": {"callbacks": [build(LAMBDA, on_fit_start=EVIL)]}},
    "logger": {"trainer": {"logger": [EVIL]}},
    "strategy": {"trainer": {"strategy": EVIL}},
    "plugin": {"trainer": {"plugins": [EVIL]}},
    "profiler": {"trainer": {"profiler": EVIL}},
    "another recipe": {"config": "other.yaml"},
    "file of the model": {"model": "part.yaml"},
    "file of a callback": {"trainer": {"callbacks": "part.yaml"}},
    "folders of modules": {"model": EVIL, "run": {"module_folders": ["."]}},
    "unknown key": {"model": {"unknown": "class_path='evil.Task'"}},
    "text like a message": {"trainer": {"max_epochs": "class_path='evil.Task' Option 'none'"}},
    "text like another message": {"trainer": {"max_epochs": "module 'evil' has no attribute 'X'"}},
}
CALLS = {
    "os.system": "os.system",
    "torch.os.system": "torch.os.system",
    "torch.hub.load": "torch.hub.load",
    "torch.load": "torch.load",
    "torch.jit.load": build("torch.jit.load", f="evil.pt"),
    "transformers.pipeline": build("transformers.pipeline", model="a/b", trust_remote_code=True),
    "a pickle": build("finetune.AlignTask.load_from_checkpoint", checkpoint_path="evil.ckpt"),
    "a command": build("finetune.commands.cli.main", arguments=["recipes"]),
    "a process": build("torch.utils.cpp_extension.subprocess.Popen", args="touch marker"),
}
TAGS = ("object/apply:os.system ['touch marker']", "name:evil.go", "module:evil", "object/new:evil.Task {}")


@pytest.fixture(autouse=True)
def evil(tmp_path, monkeypatch):
    """A module that can be imported, and leaves a file where it is."""
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\n\nPath(__file__).with_name('marker').touch()\n"
        "from finetune import AlignTask\n\n\nclass Task(AlignTask):\n    pass\n\n\ndef go(*_, **__):\n    pass\n"
    )
    (tmp_path / "t.csv").write_text("image,label\na.png,x\n")
    (tmp_path / "other.yaml").write_text("model: {class_path: evil.Task}\n")
    (tmp_path / "part.yaml").write_text("class_path: evil.Task\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert "evil" not in sys.modules
    assert not (tmp_path / "marker").exists()


def write(values):
    """A recipe file of values, with a table where they name none."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    data = values.setdefault("data", {})
    data.setdefault("init_args" if "class_path" in data else "table", {"path": "t.csv", "label": "label"})
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    return Path("recipe.yaml")


@pytest.mark.parametrize("place", PLACES)
def test_no_module_is_imported_unless_it_is_trusted(place):
    path = write(PLACES[place])
    with pytest.raises(RecipeError, match="Expected"):
        read_recipe(path)
    read_settings(path)  # which commands read before the recipe


@pytest.mark.parametrize("place", ["caption", "split", "retention"])
def test_a_table_is_read_without_imports(place):
    assert read_settings(write(PLACES[place])) is None


@pytest.mark.parametrize("call", CALLS)
def test_no_function_is_called_with_values_of_a_recipe(call):
    path = write({"trainer": {"callbacks": [build(LAMBDA, on_fit_start=CALLS[call])]}})
    with pytest.raises(RecipeError, match="Expected"):
        read_recipe(path)


def test_a_value_of_any_type_is_never_built():
    handler = "lightning.pytorch.cli.LightningCLI"
    path = write({"data": {"augmentations": [build(FLIP, p=build(handler, args=["fit"]))]}})
    with pytest.raises((RecipeError, ValueError)):
        _ = read_recipe(path).build_data().augmentation


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "other.yaml"],
        ["--config", "{model: {class_path: evil.Task}}"],
        ["--config", "model: !!python/module:evil"],
        ["--model", "part.yaml"],
        ["--model.help", "evil.Task"],
        ["--trainer.callbacks+=evil.Task"],
    ],
    ids=" ".join,
)
def test_words_of_the_command_line_import_nothing_either(words):
    with pytest.raises(RecipeError, match="Expected|could not|config"):
        read_recipe(write({}), words)


def test_the_environment_names_nothing(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name in ("FINETUNE_FIT_CONFIG", "FINETUNE_FIT_MODEL", "FINETUNE_FIT_MODEL__CLASS_PATH"):
        monkeypatch.setenv(name, "other.yaml" if name.endswith("CONFIG") else "evil.Task")
    assert read_recipe(write({})).task_class.__name__ == "AlignTask"


@pytest.mark.parametrize("tag", TAGS)
def test_tags_of_yaml_build_no_objects(tag):
    Path("recipe.yaml").write_text(f"model: !!python/{tag}\n")
    with pytest.raises(RecipeError, match="Expected valid YAML"):
        read_recipe("recipe.yaml")


def test_functions_of_a_trusted_module_may_be_called(tmp_path):
    (tmp_path / "own_calls.py").write_text(
        "from lightning import Callback\n\n\nclass Quiet(Callback):\n    pass\n\n\n"
        "def make() -> Quiet:\n    return Quiet()\n"
    )
    (tmp_path / "t.csv").write_text("image,label\na.png,x\n")
    path = write({"trainer": {"callbacks": [build("own_calls.make")]}})
    assert read_recipe(path, trust=["own_calls"]).name == "recipe"


@pytest.mark.parametrize("command", ["fit", "check", "suspects"])
def test_a_command_refuses_a_strangers_recipe(evil, command, capsys):
    path = write(PLACES["callbacks"] | PLACES["folders of modules"])
    assert main([command, "--config", str(path)]) == 2
    screen = capsys.readouterr()
    assert "If you trust that module, pass --trust evil." in screen.out + screen.err
    assert not (evil / "runs").exists()


@pytest.mark.slow
def test_a_strangers_recipe_runs_nothing(evil):
    """As a user would start it: from the folder of the recipe, where the module lies too."""
    path = write(PLACES["callbacks"] | PLACES["folders of modules"])
    words = [sys.executable, "-m", "finetune", "fit", "--config", str(path)]
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert done.returncode == 2
    assert "If you trust that module, pass --trust evil." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (evil / "runs").exists()

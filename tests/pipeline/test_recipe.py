"""Recipes: parsed to objects, refused with the nearest valid name, repeated from what a run writes."""

import dataclasses
import inspect
import sys
from pathlib import Path

import pytest
import yaml
from docstring_parser import parse

import finetune
from finetune.core.errors import RecipeError
from finetune.core.interpolation import Interpolation
from finetune.core.shipped import find_recipe
from finetune.data.checks.concerns import name_steps
from finetune.pipeline.parser import describe_keys
from finetune.pipeline.recipe import read_recipe

CLASSES = [
    getattr(finetune, name)
    for name in finetune.__all__
    if inspect.isclass(getattr(finetune, name)) and not issubclass(getattr(finetune, name), Exception | tuple)
]


@pytest.fixture
def recipe_file(tmp_path, colour_table):
    path = tmp_path / "colours.yaml"
    path.write_text(f"model:\n  checkpoint: align-mini\ndata:\n  table:\n    path: {colour_table}\n    label: label\n")
    return path


def test_values_come_from_the_file_and_then_from_the_command_line(recipe_file):
    recipe = read_recipe(recipe_file, ["--data.batch_size", "7", "--model.image_lora.rank", "3", "--run.seed", "5"])
    assert recipe.name == "colours"
    assert recipe.checkpoint == "align-mini"
    data = recipe.build_data()
    assert (data.batch_size, data.seed) == (7, 5)
    assert data.rows.classes == ("blue", "green", "red")
    task = recipe.build_task()
    ranks = {module.r["default"] for module in task.modules() if hasattr(module, "lora_A")}
    assert ranks == {3, 16}


def test_resolved_recipe_repeats_itself_without_the_run_name(recipe_file, tmp_path):
    recipe = read_recipe(recipe_file, ["--run.name", "other", "--model.text_lora", "null"])
    assert recipe.name == "other"
    again = tmp_path / "recipe.yaml"
    again.write_text(recipe.resolved)
    assert "other" not in recipe.resolved
    assert read_recipe(again).resolved == recipe.resolved
    assert "text_lora: null" in recipe.resolved


@pytest.mark.parametrize(
    "words",
    [
        ["--data.table.label", "null", "--data.table.caption", "caption"],
        ["--data.table.label=null", "--data.table.caption=caption"],
        ["--data.init_args.table.label", "null", "--data.table.caption", "caption"],
    ],
)
def test_a_null_replaces_a_value_that_lies_deep(recipe_file, words):
    table = read_recipe(recipe_file, [*words, "--model.image_lora.last_blocks", "null"]).build_data().table
    assert (table.label, table.caption) == (None, "caption")


def test_a_text_that_is_null_stays_a_text(recipe_file):
    recipe = read_recipe(recipe_file, ["--data.table.filter", "source == 'null'", "--run.name", "null"])
    assert recipe.build_data().table.filter == "source == 'null'"
    assert recipe.name == "colours"


def test_flat_keys_and_class_path_are_both_accepted(recipe_file, tmp_path):
    nested = tmp_path / "nested.yaml"
    nested.write_text(
        "model:\n  class_path: finetune.AlignTask\n  init_args:\n"
        "    checkpoint: align-mini\n    min_temperature: 0.02\n"
        + recipe_file.read_text().split("checkpoint: align-mini\n")[1]
    )
    assert read_recipe(nested).build_task().towers.min_temperature == 0.02
    flat = read_recipe(recipe_file, ["--model.min_temperature", "0.02"])
    assert flat.resolved == read_recipe(nested).resolved


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.chekpoint", "x", r"'model.chekpoint'. Did you mean 'checkpoint'"),
        ("model.image_lora.rnk", "4", r"'model.image_lora.rnk'. Did you mean 'rank'"),
        ("model.objective.label_smothing", "0.1", r"'model.objective.label_smothing'. Did you mean 'label_smoothing'"),
        ("model.optimizer.lrr", "0.1", r"'model.optimizer.lrr'. Did you mean 'lr'"),
        ("data.table.pth", "x", r"'data.table.pth'. Did you mean 'path'"),
        ("data.batchsize", "3", r"'data.batchsize'. Did you mean 'batch_size'"),
        ("run.sed", "3", r"'run.sed'. Did you mean 'seed'"),
        ("trainer.max_epoch", "3", r"'trainer.max_epoch'. Did you mean 'max_epochs'"),
        ("modle.checkpoint", "x", r"'modle.checkpoint'"),
        ("data.table.split.vl", "0.1", r"'data.table.split.vl'. Did you mean 'val'"),
    ],
)
@pytest.mark.parametrize("source", ["option", "file"])
def test_unknown_key_names_the_nearest(recipe_file, tmp_path, key, value, message, source):
    overrides = [f"--{key}", value]
    if source == "file":
        *outer, last = key.split(".")
        lines = ["  " * depth + f"{name}:" for depth, name in enumerate(outer)]
        path = tmp_path / "extra.yaml"
        path.write_text("\n".join([*lines, "  " * len(outer) + f"{last}: {value}"]) + "\n")
        overrides = ["--config", str(path)]
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe_file, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--model.image_lora.rank", "x"], r"model.image_lora.rank: Expected a <class 'int'>. Got value: x"),
        (["--trainer.max_epochs", "x"], r"trainer.max_epochs"),
        (["--model.objective", "Contrastiv"], r"model.objective: .*Contrastiv"),
    ],
)
def test_wrong_value_names_its_key(recipe_file, overrides, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe_file, overrides)


PROFILE = Interpolation(image=(1.0, 0.5), text=(0.3, 0.3))


@pytest.mark.parametrize("written", ["{image: [1, 0.5], text: 0.3}", "image=1:0.5,text=0.3"])
@pytest.mark.parametrize("source", ["option", "file"])
def test_interpolation_may_be_a_profile(recipe_file, tmp_path, written, source):
    words = ["--run.interpolation", written]
    if source == "file":
        (tmp_path / "extra.yaml").write_text(f"run:\n  interpolation: {written}\n")
        words = ["--config", str(tmp_path / "extra.yaml")]
    recipe = read_recipe(recipe_file, words)
    assert recipe.run.fixed_interpolation == PROFILE
    (tmp_path / "resolved.yaml").write_text(recipe.resolved)
    assert read_recipe(tmp_path / "resolved.yaml").run.fixed_interpolation == PROFILE


def test_python_hands_a_profile_over_as_it_is(recipe_file):
    assert read_recipe(recipe_file, {"run.interpolation": PROFILE}).run.fixed_interpolation == PROFILE


def test_interpolation_is_a_number_or_auto(recipe_file):
    assert read_recipe(recipe_file).run.fixed_interpolation == 1.0
    recipe = read_recipe(recipe_file, ["--run.interpolation", "0.7"])
    assert recipe.run.interpolation == recipe.run.fixed_interpolation == 0.7
    recipe = read_recipe(recipe_file, ["--run.interpolation", "auto", "--run.max_retention_loss", "0.02"])
    assert (recipe.run.interpolation, recipe.run.max_retention_loss) == ("auto", 0.02)
    assert recipe.run.fixed_interpolation is None
    assert "interpolation: auto" in recipe.resolved


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("interpolation", "1.5", r"Expected run.interpolation to be in \[0, 1\], but got 1.5. 0 is the base"),
        ("interpolation", "-0.1", r"Expected run.interpolation to be in \[0, 1\], but got -0.1"),
        (
            "interpolation",
            "best",
            "Expected run.interpolation to be a number from 0 to 1, auto, .* but got 'best'",
        ),
        ("interpolation", "true", "Expected run.interpolation to be a number from 0 to 1, auto, .* but got"),
        (
            "interpolation",
            "{image: 0.7}",
            "Expected run.interpolation to have weights for both .* none for text",
        ),
        ("interpolation", "{image: 0.7, text: 2}", r"Expected text of run.interpolation to be in \[0, 1\], but got 2"),
        ("max_retention_loss", "5", r"Expected run.max_retention_loss to be in \[0, 1\], but got 5.0. It is a share"),
        ("max_retention_loss", "-1", r"Expected run.max_retention_loss to be in \[0, 1\], but got -1.0"),
    ],
)
def test_settings_of_the_run_out_of_range_are_refused(recipe_file, key, value, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe_file, [f"--run.{key}={value}"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("precision", "bf16-true", "to keep the weights in float32, but got bf16-true: .* Set it to bf16-mixed"),
        ("precision", "16-true", "to keep the weights in float32, but got 16-true: .* Set it to 16-mixed"),
    ],
)
def test_a_trainer_whose_model_could_not_be_proven_is_refused(recipe_file, key, value, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe_file, [f"--trainer.{key}={value}"])


@pytest.mark.parametrize("devices", [1, [3]])
def test_any_one_device_is_taken(recipe_file, devices):
    resolved = read_recipe(recipe_file, [f"--trainer.devices={devices}"]).resolved
    assert str(yaml.safe_load(resolved)["trainer"]["devices"]) == str(devices)


def test_constructor_errors_name_the_part(recipe_file):
    with pytest.raises(RecipeError, match="rank to be at least 1, but got 0"):
        read_recipe(recipe_file, ["--model.image_lora.rank", "0"]).build_task()
    with pytest.raises(RecipeError, match="batch_size to be at least 1"):
        read_recipe(recipe_file, ["--data.batch_size", "0"]).build_data()


@pytest.mark.parametrize(
    ("given", "found"), [("kept", "{}/kept"), ("~/kept", str(Path.home() / "kept")), ("auto", "auto"), ("null", None)]
)
def test_the_folder_of_decoded_images_lies_in_the_working_directory(recipe_file, tmp_path, monkeypatch, given, found):
    monkeypatch.chdir(tmp_path)
    data = read_recipe(recipe_file, ["--data.cache", given]).build_data()
    assert data.cache == (found and found.format(tmp_path))


def test_foreign_module_is_neither_taken_nor_imported_without_trust(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign_task.py").write_text(
        "from finetune import AlignTask\n\n\nclass Mine(AlignTask):\n    '''Mine.'''\n"
    )
    nested = tmp_path / "nested.yaml"
    nested.write_text(
        "model:\n  class_path: foreign_task.Mine\n  init_args:\n    checkpoint: align-mini\n"
        + recipe_file.read_text().split("checkpoint: align-mini\n")[1]
    )
    with pytest.raises(RecipeError, match="got 'foreign_task.Mine'.*pass --trust foreign_task"):
        read_recipe(nested)
    assert "foreign_task" not in sys.modules
    assert type(read_recipe(nested, trust=["foreign_task"]).build_task()).__name__ == "Mine"


def test_what_is_trusted_for_one_recipe_is_not_for_another(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "once_trusted.py").write_text("from finetune import AlignTask\n\n\nclass Mine(AlignTask):\n    pass\n")
    trusted = read_recipe(recipe_file, ["--model.class_path", "once_trusted.Mine"], trust=["once_trusted"])
    with pytest.raises(RecipeError, match="pass --trust once_trusted"):
        read_recipe(recipe_file, ["--model.class_path", "once_trusted.Mine"])
    assert type(trusted.build_task()).__name__ == "Mine"


@pytest.mark.parametrize("module", ["", "my-module", "folder/my_module", "my_module..task"])
def test_a_module_is_trusted_by_its_name(recipe_file, module):
    with pytest.raises(RecipeError, match="--trust to name a module, such as my_module, but got"):
        read_recipe(recipe_file, trust=[module])


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: owner.__name__)
def test_every_key_of_every_public_class_has_help(owner):
    owner = next(kind for kind in owner.__mro__ if "__init__" in vars(kind))  # whose help its subclasses show
    described = {entry.arg_name: entry.description for entry in parse(inspect.getdoc(owner) or "").params}
    if dataclasses.is_dataclass(owner):
        arguments = [field.name for field in dataclasses.fields(owner) if field.init]
    else:
        arguments = [name for name in inspect.signature(owner.__init__).parameters if name != "self"]
    arguments = [name for name in arguments if name not in ("args", "kwargs")]
    assert {name for name in arguments if not described.get(name)} == set()
    assert len(arguments) <= 15


FLIP, CROP = "albumentations.HorizontalFlip", {"class_path": "albumentations.RandomCrop"}


def one_of(*transforms):
    return {"class_path": "albumentations.OneOf", "init_args": {"transforms": list(transforms)}}


@pytest.mark.parametrize(
    ("augmentations", "found"),
    [
        pytest.param(
            [one_of(FLIP, {"class_path": FLIP, "init_args": {"p": 1}})],
            "Compose/OneOf/HorizontalFlip/HorizontalFlip",
            marks=pytest.mark.slow,
        ),
        (
            [FLIP, {"class_path": "albumentations.Sequential", "init_args": {"transforms": [one_of(one_of(FLIP))]}}],
            "Compose/HorizontalFlip/Sequential/OneOf/OneOf/HorizontalFlip",
        ),
        pytest.param(
            [{"class_path": "albumentations.OneOrOther", "init_args": {"first": FLIP, "second": one_of(FLIP)}}],
            "Compose/OneOrOther/HorizontalFlip/OneOf/HorizontalFlip",
            marks=pytest.mark.slow,
        ),
        (one_of(FLIP), "Compose/OneOf/HorizontalFlip"),
    ],
)
def test_compositions_of_transforms_are_taken_at_any_depth_and_repeat_themselves(
    recipe_file, tmp_path, augmentations, found
):
    values = yaml.safe_load(recipe_file.read_text())
    values["data"]["augmentations"] = augmentations
    recipe_file.write_text(yaml.safe_dump(values))
    recipe = read_recipe(recipe_file)
    (tmp_path / "resolved.yaml").write_text(recipe.resolved)
    for each in (recipe, read_recipe(tmp_path / "resolved.yaml")):
        assert "/".join(name_steps(each.build_data().augmentation.compose)) == found


@pytest.mark.parametrize(
    "wrap",
    [lambda transform: one_of(one_of(transform)), *(pytest.param(f, marks=pytest.mark.slow) for f in (dict, one_of))],
)
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            {"class_path": "albumentations.RandmCrop"},
            "a class of albumentations, but got 'RandmCrop'. Did you mean 'Rand",
        ),
        (CROP | {"init_args": {"heigth": 9, "width": 9}}, "heigth'. Did you mean 'height'"),
        (CROP | {"init_args": {"width": 9}}, "arguments are required: height"),
        (
            CROP | {"init_args": {"height": "x", "width": 9}},
            "Expected height to be valid, but got 'x': .* valid integer",
        ),
        ({"class_path": FLIP, "init_args": {"p": 3}}, "Expected p to be valid, but got 3: .* less than or equal to 1"),
    ],
)
def test_the_fault_of_a_transform_is_named_at_any_depth(recipe_file, wrap, transform, message):
    values = yaml.safe_load(recipe_file.read_text())
    values["data"]["augmentations"] = [wrap(transform)]
    recipe_file.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=f"data.augmentations.*{message}"):
        read_recipe(recipe_file).build_data()


def test_described_keys_include_both_towers_the_head_and_the_trainer():
    text = describe_keys()
    for key in (
        "--model.image_lora",
        "--model.text_lora",
        "--model.head_start",
        "--model.head_lr_scale",
        "--data.table",
        "--trainer.max_epochs",
        "--run.linear_probe",
    ):
        assert key in text


def test_shipped_recipe_is_parsed_by_name():
    assert read_recipe(find_recipe("quickstart")).checkpoint == "align-mini"


def test_keys_are_described_with_the_defaults_that_a_recipe_has():
    text = describe_keys()
    for key, default in (("devices", "1"), ("log_every_n_steps", "5"), ("enable_model_summary", "False")):
        described = text.split(f"--trainer.{key} ")[-1].split("\n  --")[0]
        assert f"default: {default})" in " ".join(described.split())


def test_a_default_that_is_an_enum_is_written_as_its_text(tmp_path):
    """As that of Lightning's Timer, which YAML could not write: the run ended before it began."""
    recipe = read_recipe("quickstart", {"trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]})
    (tmp_path / "again.yaml").write_text(recipe.resolved)
    (timer,) = yaml.safe_load(recipe.resolved)["trainer"]["callbacks"]
    assert timer["init_args"]["interval"] == "step"
    assert yaml.safe_load(read_recipe(tmp_path / "again.yaml").resolved) == yaml.safe_load(recipe.resolved)


@pytest.mark.parametrize(
    "words",
    [
        ("--data.table.split.test", "1"),
        ("--data.retention", '[{"path": "p.csv", "caption": "c", "split": {"val": 0, "test": 1}}]'),
    ],
)
def test_a_split_that_leaves_nothing_for_training_is_refused_in_its_own_words(words):
    recipe = read_recipe("retrieval_lora", ["--model.checkpoint", "align-mini", *words])
    with pytest.raises(RecipeError, match=r"^Expected split\.test to be a fraction from 0 to below 1, but got 1\.0\.$"):
        recipe.build_data()

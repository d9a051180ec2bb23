"""What would end a run is refused before anything is written or measured, whichever recipe key asks for it."""

import csv
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetune import Base, RandomSplit, Table
from finetune.commands.cli import main
from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.pipeline.check_recipe import _logged_in_training, _logged_in_validation, check_recipe
from finetune.pipeline.parser import build_parser
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.train import fit
from finetune.run.folder import RunFolder

WRONG = ("null", "-1", "0", "1000000000000000000", "some text", "[1, 2]", "{a: 1}", "true", "0.01", '""')
OF_EACH_KIND = (
    *("model", "model.class_path", "model.init_args", "model.init_args.image_lora", "model.init_args.image_lora.rank"),
    *("model.init_args.optimizer", "model.init_args.optimizer.init_args.lr", "model.init_args.head_start.init_args"),
    *("data", "data.init_args.table", "data.init_args.table.path", "data.init_args.table.split.val"),
    *("data.init_args.sampling.class_path", "data.init_args.augmentations", "trainer", "trainer.max_epochs"),
    *("trainer.callbacks", "trainer.precision", "run", "run.seed", "run.module_folders"),
)
OTHER_CLASSES = [
    ["--model", "finetune.ClassificationTask", "--model.head_start", "finetune.FromProbe"],
    ["--data.sampling", "finetune.ClassBalanced", "--data.table.split", "{val: 0.2, test: 0.2}"],
]


@pytest.fixture(scope="module")
def base(tiny) -> Base:
    """The base, whose weights are read once."""
    return Base.open(tiny)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, colour_table, tiny) -> Path:
    folder = tmp_path_factory.mktemp("checked")
    path = folder / "colours.yaml"
    values = {
        "model": {"checkpoint": tiny, "image_lora": {"rank": 2}},
        "data": {"table": {"path": str(colour_table), "label": "label", "split": "split"}, "batch_size": 8},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"folder": str(folder / "runs"), "linear_probe": False},
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def check(recipe_file, base) -> Callable[..., None]:
    """Reads the recipe with other values and checks it, as `check` and `fit` do."""

    def run(*words: str) -> None:
        recipe = read_recipe(recipe_file, words)
        if recipe.checkpoint in (base.name, str(base.folder)):
            vars(recipe)["base"] = base  # whose weights are open
        check_recipe(recipe, recipe.build_data())

    return run


@cache
def list_keys() -> list[str]:
    """Every key of a recipe, also those of the classes that it names, as the parser itself knows them."""
    parser = build_parser()
    default = ["--model", "finetune.AlignTask", "--data", "finetune.ImageTextDataModule", "--data.table.path", "x.csv"]
    keys: dict[str, None] = {}
    for words in ([], *OTHER_CLASSES):
        config = parser.parse_args([*default, "--data.table.label", "x", *words], defaults=True)
        keys |= dict.fromkeys(_walk(config.as_dict()))
    keys.pop("config")
    return list(keys)


def _walk(value: Any, key: str = "") -> Iterator[str]:
    if key:
        yield key
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from _walk(inner, f"{key}.{name}".lstrip("."))


def _try(check: Callable[..., None], key: str, values: tuple[str, ...]) -> None:
    other = next((words for words in OTHER_CLASSES if any(part in key for part in ("head", "sampling."))), [])
    for value in values:
        with suppress(RecipeError, TableError, CheckpointError):
            check(*other, f"--{key}={value}")


@pytest.mark.parametrize("key", OF_EACH_KIND)
def test_a_null_for_a_key_of_any_kind_is_taken_or_refused_and_never_a_traceback(check, key):
    assert key in list_keys()
    _try(check, key, ("null",))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(list_keys())), ids=list_keys())
def test_wrong_values_of_any_key_are_taken_or_refused_and_never_a_traceback(check, number):
    """A third of them for each key, other ones for the next."""
    _try(check, list_keys()[number], WRONG[number % 3 :: 3])


PLANNED = "[{class_path: lightning.pytorch.callbacks.GradientAccumulationScheduler, init_args: {scheduling: {0: 3}}}]"
EARLY = "[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: %s}}]"
ON_ERROR = "[{class_path: lightning.pytorch.callbacks.OnExceptionCheckpoint, init_args: {dirpath: left}}]"
AVERAGES = "[{class_path: lightning.pytorch.callbacks.StochasticWeightAveraging, init_args: {swa_lrs: 0.01}}]"
REFUSED = [
    (["--trainer.max_epochs", "0"], "at least one step of training, but got none of 3 batches"),
    (["--trainer.max_steps", "0"], "at least one step of training, but got none"),
    (["--trainer.limit_train_batches", "0"], "at least one step of training, but got none"),
    (["--trainer.limit_train_batches", "0.01"], r"none of 3 batches, .*limit_train_batches 0\.01\. Raise"),
    (["--trainer.limit_val_batches", "0.01"], "limit_val_batches to leave a batch of the 9 validation rows"),
    (["--trainer.max_epochs", "-1", "--trainer.max_time", "00:01:00:00"], "say how long the training is"),
    (["--trainer.max_time", "00:00:00:00"], "max_time to leave time to train, but got none"),
    (
        ["--trainer.val_check_interval", "100"],
        "val_check_interval to be at most the 3 batches of an epoch, but got 100",
    ),
    (["--trainer.check_val_every_n_epoch", "0"], "check_val_every_n_epoch to be at least 1 or null, but got 0"),
    (["--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches to be at least 1, but got 0"),
    (["--model.objective.class_weights", "{a: 1}"], "every key to be known, but got 'model.objective.class_weights.a'"),
    (["--trainer.overfit_batches", "1"], "overfit_batches to be 0, but got 1"),
    (["--trainer.fast_dev_run", "true"], r"fast_dev_run to be false, .*such as --trainer\.max_steps 3"),
    (["--trainer.enable_checkpointing", "false"], "`enable_checkpointing=False` but found `ModelCheckpoint`"),
    (["--trainer.strategy", "ddp"], "strategy to be auto, but got DDPStrategy"),
    (["--trainer.callbacks", EARLY % "val_loss"], r"EarlyStopping .* but got 'val_loss'\. Did you mean 'val/loss'"),
    (["--trainer.callbacks", EARLY % "val/loss", "--trainer.limit_val_batches", "0"], "but got 'val/loss'"),
    (["--trainer.callbacks", EARLY % "train/los"], "but got 'train/los'. Did you mean 'train/loss'"),
    (
        ["--trainer.callbacks", EARLY % "val/accuracy"],
        r"mode of EarlyStopping .* to be max for val/accuracy, but got min: it would take worse for better\. Set it",
    ),
    (["--trainer.callbacks", "[lightning.pytorch.callbacks.LearningRateFinder]"], "to name no LearningRateFinder"),
    (["--trainer.callbacks", PLANNED], "no GradientAccumulationScheduler, by which .* Set trainer.accumulate_grad_"),
    (
        ["--trainer.callbacks", "[finetune.training.head_first.HeadFirst]"],
        "used with ClassificationTask, .* got AlignTask",
    ),
    (["--trainer.callbacks", EARLY % "train/text_distance"], "but got 'train/text_distance'"),
    (
        ["--trainer.callbacks", ON_ERROR],
        "to name no OnExceptionCheckpoint",
    ),
    (
        ["--trainer.callbacks", AVERAGES],
        r"to name no StochasticWeightAveraging, whose state is lost .* Set run\.soup",
    ),
    (["--trainer.plugins", "[lightning.pytorch.plugins.io.TorchCheckpointIO]"], "multiple values for .*CheckpointIO"),
    (
        ["--trainer.logger", "[lightning.pytorch.loggers.WandbLogger]"],
        "what .*WandbLogger needs to be installed, .*wandb",
    ),
    (["--model.optimizer.lr", "-1"], r"model\.optimizer .*learning rate: -1"),
    (["--model.lr_scheduler.warmup", "2"], r"lr_scheduler .*warmup to be in \[0, 1\], but got 2"),
    (["--run.seed", "-1"], r"run\.seed to be from 0 to 4294967295, but got -1"),
    (["--run.seed", "4294967296"], r"run\.seed to be from 0"),
    (["--data.table.split", "null"], r"data\.table\.split to have a value, but got null\. Leave it out"),
    (["--data.num_workers", "1000000"], "num_workers to be at most 1,024, but got 1000000"),
    (["--data.image_size", "1000000"], "image_size to be from 32 to 4096 pixels"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda value: " ".join(value)[:60])
def test_what_would_fail_once_the_base_was_measured_is_refused_before(check, words, message):
    with pytest.raises(RecipeError, match=message):
        check(*words)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_an_accelerator_that_this_machine_lacks_is_refused_before(check):
    with pytest.raises(RecipeError, match="No supported gpu backend"):
        check("--trainer.accelerator", "gpu")


@pytest.mark.parametrize("words", [["--trainer.max_epochs", "0"], ["--run.seed", "-1"], ["--data.table.split", "null"]])
def test_check_and_fit_refuse_alike_and_leave_nothing(recipe_file, tmp_path, capsys, words):
    settings = ["--config", str(recipe_file), "--run.folder", str(tmp_path / "runs"), *words]
    assert main(["check", *settings, "--output", str(tmp_path / "check.json")]) == 2
    checked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert main(["fit", *settings]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == checked[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["check.json"]


@pytest.mark.parametrize("split", [{"val": 0.1}, None, 0.1])
def test_a_split_of_another_type_is_refused_in_python(split):
    with pytest.raises(RecipeError, match=r"data\.table\.split to name a column.*RandomSplit"):
        Table("photos.csv", label="label", split=split)
    assert Table("photos.csv", label="label", split=RandomSplit(val=0.2)).split.val == 0.2


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.max_epochs", "-1", "--trainer.max_steps", "2"],
        pytest.param(["--trainer.limit_val_batches", "0"], marks=pytest.mark.slow),
        pytest.param(["--trainer.val_check_interval", "00:00:00:01"], marks=pytest.mark.slow),
        ["--trainer.val_check_interval", "5", "--trainer.check_val_every_n_epoch", "null"],
        pytest.param(["--trainer.callbacks", EARLY % "train/image_gradient_norm"], marks=pytest.mark.slow),
        ["--trainer.callbacks", EARLY % "train/text_distance", "--model.text_preservation", "{}"],
        ["--trainer.callbacks", "[lightning.pytorch.callbacks.Timer, lightning.pytorch.callbacks.ModelCheckpoint]"],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_values_that_are_seldom_used_train(recipe_file, base, tmp_path, words):
    recipe = read_recipe(recipe_file, words)
    vars(recipe)["base"] = base
    data = recipe.build_data()
    run = RunFolder(tmp_path / "run")
    fit(recipe, check_recipe(recipe, data), data, run)
    assert (run.checkpoints / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("words", "is_exact"),
    [
        (["--data.table.label", "null", "--data.table.caption", "caption"], True),
        (["--model.text_lora", "null", "--model.train_temperature", "false"], True),
        (["--data.table.label_separator", "e"], False),  # not every class is among the validation rows
        (["--model", "finetune.ClassificationTask"], False),  # a head has no temperature that is trained
    ],
    ids=("captions", "one tower", "several labels", "head"),
)
def test_the_metrics_that_callbacks_may_monitor_are_those_that_a_training_logs(
    recipe_file, base, tmp_path, words, is_exact
):
    recipe = read_recipe(recipe_file, [*words, "--trainer.log_every_n_steps", "1"])
    vars(recipe)["base"] = base
    data, run = recipe.build_data(), RunFolder(tmp_path / "run")
    task = check_recipe(recipe, data)
    known = {*_logged_in_training(task), *_logged_in_validation(task, data.kind)}
    fit(recipe, task, data, run)
    with run.logged.open(newline="") as file:
        logged = {*next(csv.reader(file))} - {"epoch", "step"}
    assert logged == known if is_exact else logged <= known
    assert ("val/text_spread" in known) == ("val/text_spread" in logged)


FAULTY = """
from lightning import Callback
from finetune import AlignTask


class Missing(AlignTask):
    def __init__(self, checkpoint: str) -> None:
        super().__init__(checkpoint)
        self.head.bias


class Counted(AlignTask):
    def __init__(self, checkpoint: str, layers: int = 0) -> None:
        super().__init__(checkpoint)
        if layers < 1:
            raise ValueError(f"Expected layers to be at least 1, but got {layers}.")


class Silent(Callback):
    def __init__(self) -> None:
        {}["name"]
"""


def test_faults_in_code_stay_what_they_are_and_wrong_values_are_told(recipe_file, tmp_path, monkeypatch):
    (tmp_path / "faulty_code.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    values = yaml.safe_load(recipe_file.read_text())
    values["model"].pop("image_lora")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))

    def read(*words: str) -> Any:
        return read_recipe(path, words, trust=["faulty_code"])

    with pytest.raises(AttributeError, match="no attribute 'head'"):
        read("--model.class_path", "faulty_code.Missing").build_task()
    with pytest.raises(RecipeError, match="model: Expected layers to be at least 1, but got 0"):
        read("--model.class_path", "faulty_code.Counted").build_task()
    with pytest.raises(KeyError, match="name"):
        read("--trainer.callbacks", "[faulty_code.Silent]").build_trainer()

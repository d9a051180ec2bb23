"""Where a run logs its values: in its own folder, and wherever its recipe says, each read by its own library."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from finetune.core.errors import RecipeError
from finetune.core.files import read_json
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.stages import TRAIN
from finetune.pipeline.work import Work
from finetune.run.folder import RunFolder


def test_a_run_is_shown_by_tensorboard_as_its_own_log_has_it(two_towers):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunFolder(two_towers.path)
    events = reader.EventAccumulator(str(run.tensorboard))
    events.Reload()
    logged, metrics = pd.read_csv(run.logged), read_json(run.metrics)
    for name in ("val/loss", "val/accuracy"):
        expected = logged[["step", name]].dropna()
        assert [(one.step, one.value) for one in events.Scalars(name)] == [
            (step, pytest.approx(value)) for step, value in expected.itertuples(index=False)
        ]
    last = int(logged["step"].max())
    for part, prefix in (("after", ""), ("before", "base/")):
        for name, value in metrics[part].items():
            assert [(one.step, one.value) for one in events.Scalars(prefix + name)] == [(last, pytest.approx(value))]
    (told,) = [str(value) for value in events.summary_metadata["_hparams_/session_start_info"].ListFields()]
    assert "model/init_args/image_lora/init_args/rank" in told or "rank" in told


@pytest.mark.parametrize(("logger", "takes"), [("null", True), ("true", True), ("false", False)])
def test_tensorboard_is_for_recipes_that_name_no_logger(two_towers, logger, takes):
    assert read_recipe(two_towers.recipe, ["--trainer.logger", logger]).takes_tensorboard == takes


def test_a_logger_that_is_not_installed_is_refused(two_towers, monkeypatch):
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    named = [
        "--trainer.logger",
        "[{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: x}}]",
    ]
    recipe = read_recipe(two_towers.recipe, named)
    assert not recipe.takes_tensorboard
    with pytest.raises(RecipeError, match=r"Expected what .*TensorBoardLogger needs to be installed, but got: Neither"):
        recipe.build_trainer()


@pytest.fixture(scope="module")
def logged(two_towers, tmp_path_factory) -> Path:
    """The folder of a run that has logged to four loggers at once."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("logged")
    places = {
        "WandbLogger": {"project": "colours", "save_dir": str(folder), "offline": True},
        "MLFlowLogger": {"experiment_name": "colours", "tracking_uri": f"file:{folder}/mlruns"},
        "TensorBoardLogger": {"save_dir": str(folder), "name": "board"},
        "CSVLogger": {"save_dir": str(folder), "name": "csv"},
    }
    loggers = [{"class_path": f"lightning.pytorch.loggers.{name}", "init_args": init} for name, init in places.items()]
    words = ["--config", str(two_towers.recipe), "--runs", str(folder / "runs"), "--trainer.logger", str(loggers)]
    environment = {**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_SILENT": "true"}
    command = [sys.executable, "-m", "finetune", "fit", *words, "--trainer.log_every_n_steps", "1"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return folder


def expected_of(folder: Path) -> tuple[list[float], float, dict]:
    """Losses of the run's own log, the accuracy after, and the recipe."""
    run = RunFolder(folder / "runs" / "colours")
    accuracy = read_json(run.metrics)["after"]["test/accuracy"]
    return pd.read_csv(run.logged)["train/loss"].dropna().tolist(), accuracy, yaml.safe_load(run.recipe.read_text())


@pytest.mark.slow
def test_mlflow_has_values_recipe_and_results(logged, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    losses, accuracy, recipe = expected_of(logged)
    client = MlflowClient(f"file:{logged}/mlruns")
    (run,) = client.search_runs([client.get_experiment_by_name("colours").experiment_id])
    history = sorted(client.get_metric_history(run.info.run_id, "train/loss"), key=lambda one: one.step)
    assert [one.value for one in history] == pytest.approx(losses)
    assert run.data.metrics["test/accuracy"] == pytest.approx(accuracy)
    assert run.data.params["trainer/max_epochs"] == str(recipe["trainer"]["max_epochs"])
    assert run.info.status == "FINISHED"


def read_records(content: bytes) -> Iterator[bytes]:
    """The records of a file of Weights & Biases: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.slow
def test_weights_and_biases_has_values_recipe_and_results(logged):
    from wandb.proto import wandb_internal_pb2

    losses, accuracy, recipe = expected_of(logged)
    (file,) = logged.glob("wandb/offline-run-*/run-*.wandb")
    values, told = [], {}
    for data in read_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        updates = [*record.run.config.update, *record.config.update]
        told |= {one.key: one.value_json for one in updates}
        values.append({one.key or one.nested_key[0]: yaml.safe_load(one.value_json) for one in record.history.item})
    assert [one["train/loss"] for one in values if "train/loss" in one] == pytest.approx(losses)
    assert [one["test/accuracy"] for one in values if "test/accuracy" in one] == [pytest.approx(accuracy)]
    assert yaml.safe_load(told["trainer"])["max_epochs"] == recipe["trainer"]["max_epochs"]


@pytest.mark.slow
def test_other_loggers_of_the_recipe_have_the_same(logged):
    losses, accuracy, recipe = expected_of(logged)
    named = pd.read_csv(logged / "csv" / "version_0" / "metrics.csv")
    assert named["train/loss"].dropna().tolist() == losses
    assert named["test/accuracy"].dropna().tolist() == [pytest.approx(accuracy)]
    told = yaml.safe_load((logged / "csv" / "version_0" / "hparams.yaml").read_text())
    assert told["trainer"]["max_epochs"] == recipe["trainer"]["max_epochs"]
    assert list((logged / "board" / "version_0").glob("events.*"))
    assert not RunFolder(logged / "runs" / "colours").tensorboard.exists()


@pytest.mark.parametrize("logger", ["null", "false"])
def test_a_run_without_tensorboard_says_once_how_to_install_it(two_towers, tmp_path, monkeypatch, capsys, logger):
    monkeypatch.setattr("finetune.pipeline.stages.has_tensorboard", lambda: False)
    recipe = read_recipe(two_towers.recipe, ["--trainer.logger", logger])
    work = Work(recipe, RunFolder(tmp_path / "run"))
    work.run.create(overwrite=False)
    work.run.recipe.write_text(recipe.resolved)
    TRAIN.prepare(work)
    TRAIN.prepare(work)
    line = f"values are logged to {work.run.logged}; for TensorBoard too: pip install 'align-finetune[tensorboard]'\n"
    assert capsys.readouterr().err.count(line) == (logger == "null")

"""Runs on several devices, in real processes: they end as a run on one device does, stopped, killed or not."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from finetune.core.errors import RecipeError
from finetune.core.files import read_json
from finetune.pipeline.check_recipe import check_recipe
from finetune.pipeline.recipe import read_recipe
from finetune.run.folder import RunFolder

from ..data.remote.servers import needs_nginx, run_nginx
from ..data.shards import sample, write_tar
from .results import contents

STOPS = """
import os, signal
from pathlib import Path

from lightning import Callback


class Stops(Callback):
    '''Sends one process a signal, once.'''

    def __init__(self, step: int, rank: int, how: str) -> None:
        self.step, self.rank, self.how, self.mark = step, rank, how, Path("was-sent")

    def on_train_batch_end(self, trainer, *_) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank) and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), getattr(signal, self.how))
"""

CAPTIONS = {
    "model": {"init_args": {"text_lora": {"rank": 2}, "text_preservation": {"weight": 1, "texts": 3}}},
    "table": {"caption": "caption"},
}
CALM = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0005}}
LABELS = {
    "model": {
        "class_path": "finetune.ClassificationTask",
        "init_args": {"optimizer": CALM, "image_preservation": {"weight": 1, "images": 4}},
    },
    "table": {"label": "label"},
}
FROZEN = {"model": {"init_args": {"image_lora": None, "text_lora": {"rank": 2}}}, "table": {"caption": "caption"}}


@pytest.fixture
def write_recipe(tiny, colour_table, tmp_path) -> Callable[..., Path]:
    """Writes a recipe of 3 epochs of 3 batches of 6 rows, trained by plain descent: Adam would amplify rounding."""

    def write(kind: dict[str, Any] = CAPTIONS, stop: tuple[int, int, str] | None = None, **run: Any) -> Path:
        sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}
        common = {"checkpoint": tiny, "image_lora": {"rank": 2}, "optimizer": sgd}
        model = {"class_path": "finetune.AlignTask", **kind["model"]}
        model["init_args"] = {**common, **model["init_args"]}
        trainer: dict[str, Any] = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False}
        if stop:
            (tmp_path / "stops.py").write_text(STOPS)
            names = dict(zip(("step", "rank", "how"), stop, strict=True))
            trainer["callbacks"] = [{"class_path": "stops.Stops", "init_args": names}]
        values = {
            "model": model,
            "data": {"table": {"path": str(colour_table), "split": "split", **kind["table"]}, "batch_size": 7},
            "trainer": trainer,
            "run": {"save_every": 2, "linear_probe": False, **run},
        }
        path = tmp_path / "colours.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def finetune(*words: object, cwd: Path, code: int = 0, start: tuple[str, ...] = (sys.executable,)) -> str:
    """Runs a command, and returns what it says on the standard error stream."""
    command = [*start, "-m", "finetune", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr


def torchrun(processes: int, restarts: int = 0) -> tuple[str, ...]:
    module = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return (*module, f"--nproc-per-node={processes}", f"--max-restarts={restarts}")


def assert_alike(found: RunFolder, expected: RunFolder) -> None:
    """The same steps, to summation order: what was logged, what was trained, and what was measured of it."""
    logs = [pd.read_csv(run.logged) for run in (found, expected)]
    pd.testing.assert_frame_equal(*logs, rtol=1e-4, atol=1e-5)
    weights = [load_file(run.adapter / "adapter_model.safetensors") for run in (found, expected)]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
    before, after = (pd.json_normalize(read_json(run.metrics)).select_dtypes("number") for run in (found, expected))
    pd.testing.assert_frame_equal(before, after, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_devices_end_as_one(write_recipe, tmp_path):
    recipe = write_recipe()
    for devices in (1, 2):
        said = finetune("fit", "--config", recipe, "--run", devices, "--trainer.devices", devices, cwd=tmp_path)
        assert said.count("stage train") == 1  # one process speaks
    one, two = (RunFolder(tmp_path / "runs" / name) for name in ("1", "2"))
    assert contents(one).keys() == contents(two).keys()
    assert_alike(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LABELS, FROZEN], ids=["a head", "a frozen image tower"])
def test_three_processes_of_torchrun_end_as_one(write_recipe, tmp_path, kind):
    recipe = write_recipe(kind)
    finetune("fit", "--config", recipe, "--run.name", "one", cwd=tmp_path)
    finetune("fit", "--config", recipe, "--run.name", "three", cwd=tmp_path, start=torchrun(3))
    assert_alike(RunFolder(tmp_path / "runs" / "three"), RunFolder(tmp_path / "runs" / "one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (CAPTIONS, ["--trainer.accumulate_grad_batches", 2, "--model.micro_batch", 2]),
        (LABELS, ["--data.sampling", "finetune.ClassBalanced", "--trainer.val_check_interval", 2]),
    ],
    ids=["batches of several steps", "balanced classes"],
)
def test_further_ways_of_training_end_as_on_one(write_recipe, tmp_path, kind, words):
    recipe = write_recipe(kind)
    for devices in (1, 2):
        finetune("fit", "--config", recipe, "--run", devices, "--trainer.devices", devices, *words, cwd=tmp_path)
    assert_alike(*(RunFolder(tmp_path / "runs" / name) for name in ("2", "1")))


@pytest.mark.slow
def test_two_processes_choose_what_one_chooses(write_recipe, colour_table, tmp_path):
    retention = f"[{{path: {colour_table}, label: label, split: split}}]"
    words = ("--run.interpolation", "auto", "--run.max_retention_loss", 0.3, "--data.retention", retention)
    finetune("fit", "--config", write_recipe(), "--run", "one", *words, cwd=tmp_path)
    one, two = (RunFolder(tmp_path / "runs" / name) for name in ("one", "two"))
    shutil.copytree(one.path, two.path)
    for path in (two.choice, two.stage("choose"), two.finished):
        path.unlink()
    said = finetune("resume", "runs/two", "--anyway", cwd=tmp_path, start=torchrun(2))
    assert "stage choose" in said
    assert "stage train" not in said
    chosen = read_json(one.choice)
    assert len(chosen["profiles"]) == 110
    assert read_json(two.choice) == chosen


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_is_left_out_by_all(write_recipe, colour_table, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(colour_table.parent, folder)
    rows = pd.read_csv(colour_table)
    damaged = folder / rows.image[rows.split == "train"].iloc[4]
    damaged.write_bytes(damaged.read_bytes()[:40])
    words = ("--config", write_recipe(), "--data.table.path", folder / colour_table.name, "--data.on_bad_image", "skip")
    for devices in (1, 2):
        finetune("fit", *words, "--run", devices, "--trainer.devices", devices, cwd=tmp_path)
    one, two = (RunFolder(tmp_path / "runs" / name) for name in ("1", "2"))
    assert damaged.name in one.skipped.read_text()
    assert two.skipped.read_text() == one.skipped.read_text()
    assert_alike(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 1, 3])
def test_a_stopped_run_goes_on_with_any_number(write_recipe, tmp_path, devices):
    finetune("fit", "--config", write_recipe(), "--run", "whole", "--trainer.devices", 2, cwd=tmp_path)
    recipe = write_recipe(stop=(3, 1, "SIGTERM"))
    trust = ("--trust", "stops")
    finetune("fit", "--config", recipe, "--run", "cut", "--trainer.devices", 2, *trust, cwd=tmp_path, code=143)
    said = finetune("resume", "runs/cut", "--devices", devices, *trust, cwd=tmp_path)
    assert "step-00000003" in said
    cut, whole = (RunFolder(tmp_path / "runs" / name) for name in ("cut", "whole"))
    if devices == 2:
        assert contents(cut) == contents(whole)  # to the last bit
    assert_alike(cut, whole)


@needs_nginx
@pytest.mark.slow
def test_shards_of_a_server_are_read_by_all_and_in_one_order(write_recipe, tmp_path, monkeypatch):
    """Stopped on two devices and ended on one, it is the run that one device made, with each shard fetched once."""
    served = tmp_path / "served"
    served.mkdir()
    for shard in range(6):
        write_tar(served / f"{shard}.tar", *(sample(5 * shard + row, split="train") for row in range(5)))
    for number, split in enumerate(("val", "test")):
        write_tar(served / f"{split}.tar", *(sample(40 + 10 * number + row, split=split) for row in range(5)))
    with run_nginx(served, tmp_path / "nginx") as nginx:
        words: list[object] = ["--data.table.path", f"{nginx.url}/*.tar", "--data.table.caption", "txt"]
        words += ["--data.mix_shards", 2]
        for name, devices, stop in (("one", 1, None), ("two", 2, (3, 1, "SIGTERM"))):
            monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path / name))
            recipe, asked = write_recipe(stop=stop), len(nginx.requests())
            trust = ("--trust", "stops") if stop else ()
            fit = ("fit", "--config", recipe, "--run", name, "--trainer.devices", devices, *words, *trust)
            finetune(*fit, cwd=tmp_path, code=143 if stop else 0)
            if stop:
                finetune("resume", "runs/two", "--devices", 1, *trust, cwd=tmp_path)
            fetched = Counter(line for line in nginx.requests()[asked:] if line.startswith("GET") and ".tar" in line)
            assert len(fetched) == 8
            assert {*fetched.values()} == {1}
    assert_alike(*(RunFolder(tmp_path / "runs" / name) for name in ("two", "one")))


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_is_named(write_recipe, tmp_path):
    recipe = write_recipe(stop=(3, 1, "SIGKILL"))
    words = ("fit", "--config", recipe, "--trainer.devices", 2, "--trust", "stops")
    said = finetune(*words, cwd=tmp_path, code=2)
    assert "Expected all processes of the training to go on, but one has ended" in said
    assert "It was process 1, which was ended by SIGKILL." in said
    assert "finetune resume" in said
    assert "Traceback" not in said
    finetune("resume", "runs/colours", "--trust", "stops", cwd=tmp_path)
    assert RunFolder(tmp_path / "runs" / "colours").is_finished


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(write_recipe, tmp_path):
    recipe = write_recipe(stop=(3, 1, "SIGSTOP"), timeout="3 s")
    words = ("fit", "--config", recipe, "--trainer.devices", 2, "--trust", "stops")
    said = finetune(*words, cwd=tmp_path, code=2)
    assert "but one does not answer" in said


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again(write_recipe, tmp_path):
    finetune("fit", "--config", write_recipe(), "--run.name", "whole", cwd=tmp_path, start=torchrun(2))
    recipe = write_recipe(stop=(3, 1, "SIGKILL"))
    words = ("fit", "--config", recipe, "--run.name", "again", "--trust", "stops")
    said = finetune(*words, cwd=tmp_path, start=torchrun(2, restarts=1))
    assert "goes on from" in said
    again, whole = (RunFolder(tmp_path / "runs" / name) for name in ("again", "whole"))
    assert contents(again) == contents(whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--data.batch_size", "2", "--trainer.devices", "3"],
            "data.batch_size to be at least 3, a row for each device",
        ),
        (
            ["--model.image_lora.train_statistics", "true", "--trainer.devices", "2"],
            "train_statistics to be false on several devices",
        ),
    ],
)
def test_what_devices_cannot_share_is_refused(write_recipe, words, message):
    recipe = read_recipe(write_recipe(), words)
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe, recipe.build_data())

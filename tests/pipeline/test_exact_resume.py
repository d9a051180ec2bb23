"""A training that is stopped goes on where it was saved and ends as one that nobody stopped, to the last bit."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.core.errors import RecipeError
from finetune.core.files import fingerprint_file, read_json
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.run_recipe import resume_run
from finetune.pipeline.stages import TRAIN
from finetune.pipeline.work import Work
from finetune.run.folder import RunFolder

DIES = """
import signal
from pathlib import Path

from lightning import Callback

from finetune import AlignTask


class DiesAfter(Callback):
    '''Raises an error, or SIGTERM, after each of some steps, once.'''

    def __init__(self, folder: str, steps: list[int], asks: bool = False) -> None:
        self.folder, self.steps, self.asks = Path(folder), steps, asks

    def on_train_batch_end(self, trainer, *_) -> None:
        once = self.folder / f"died-{trainer.fit_loop.epoch_loop._batches_that_stepped}-{trainer.global_step}"
        if trainer.global_step in self.steps and not once.exists():
            once.touch()
            if not self.asks:
                raise ZeroDivisionError
            signal.raise_signal(signal.SIGTERM)


class Logs(AlignTask):
    '''Logs a mean, a sum and extremes over an epoch, and something now and then.'''

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        size = len(batch.rows)
        self.log("train/mean", loss.detach(), on_step=False, on_epoch=True, batch_size=size)
        for name, reduce in (("sum", "sum"), ("most", "max"), ("least", "min")):
            self.log(f"train/{name}", loss.detach(), on_step=True, on_epoch=True, reduce_fx=reduce, batch_size=size)
        if batch_idx == 1:
            self.log("train/seldom", loss.detach(), on_step=False, on_epoch=True, batch_size=size)
        return loss
"""

LORA = {"rank": 2, "dropout": 0.1}
BRIGHT = [{"class_path": "albumentations.RandomBrightnessContrast"}]
TWO_TOWERS = {
    "model": {
        "init_args": {
            "image_lora": LORA,
            "text_lora": LORA,
            "image_preservation": {"images": 2},
            "text_preservation": {"texts": 3},
        }
    },
    "data": {"augmentations": BRIGHT},
}
KINDS: dict[str, dict[str, Any]] = {
    "two towers": TWO_TOWERS,
    "two workers": {**TWO_TOWERS, "data": {"augmentations": BRIGHT, "num_workers": 2}},
    "frozen image tower": {"model": {"init_args": {"image_lora": None, "text_lora": LORA}}, "data": {}},
    "head first": {
        "model": {
            "class_path": "finetune.ClassificationTask",
            "init_args": {"image_lora": LORA, "head_start": {"class_path": "finetune.FromProbe"}},
        },
        "data": {"sampling": {"class_path": "finetune.ClassBalanced"}},
        "trainer": {
            "callbacks": [
                {"class_path": "finetune.training.head_first.HeadFirst"},
                {
                    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                    "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 0.05},
                },
            ]
        },
    },
    "parts of epochs": {
        "model": {"class_path": "dies.Logs", "init_args": {"image_lora": LORA, "text_lora": LORA, "micro_batch": 2}},
        "data": {},
        "trainer": {
            "accumulate_grad_batches": 2,
            "val_check_interval": 2,
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}],
        },
    },
    "validated by steps": {
        **TWO_TOWERS,
        "trainer": {"val_check_interval": 4, "check_val_every_n_epoch": None, "max_epochs": -1, "max_steps": 13},
    },
    "soup": {**TWO_TOWERS, "run": {"soup": 2}},
    "stops early": {
        **TWO_TOWERS,
        "trainer": {
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                    "init_args": {"monitor": "val/accuracy", "mode": "max", "patience": 1, "min_delta": 1.0},
                }
            ]
        },
    },
    "linear probe": {
        "model": {
            "class_path": "finetune.ClassificationTask",
            "init_args": {
                "image_lora": None,
                "head_start": {"class_path": "finetune.FromPrompts", "init_args": {"rows": 5}},
            },
        },
        "data": {},
    },
}


@pytest.fixture(scope="module")
def write_recipe(tiny, colour_table) -> Callable[..., Path]:
    """Writes a recipe of 3 epochs of 5 batches that is saved after every second step."""

    def write(kind: str, steps: list[int], folder: Path, asks: bool = False, **data: object) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "dies.py").write_text(DIES)
        values: dict[str, Any] = json.loads(json.dumps(KINDS[kind]))
        values["model"].setdefault("class_path", "finetune.AlignTask")
        values["model"]["init_args"] |= {"checkpoint": tiny}
        table = {"path": str(colour_table), "label": "label", "split": "split"}
        values["data"] |= {"table": table, "batch_size": 4, **data}
        dies = {"class_path": "dies.DiesAfter", "init_args": {"folder": str(folder), "steps": steps, "asks": asks}}
        trainer = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
        values["trainer"] = {**trainer, **values.get("trainer", {})}
        values["trainer"]["callbacks"] = [*values["trainer"].get("callbacks", []), dies]
        values["run"] = {"folder": str(folder / "runs"), "save_every": 2, **values.get("run", {})}
        path = folder / "colours.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def begin(recipe: Path) -> RunFolder:
    """A run of which nothing is done."""
    parsed = read_recipe(recipe, trust=["dies"])
    run = RunFolder(parsed.folder)
    run.create(overwrite=False)
    run.recipe.write_text(parsed.resolved)
    return run


def go_on(run: RunFolder) -> None:
    TRAIN.run(Work(read_recipe(run.recipe, trust=["dies"]), run))


def train(recipe: Path) -> RunFolder:
    """Trains, in a run of which nothing else is done, as often as the training dies and goes on."""
    run = begin(recipe)
    while not run.stage(TRAIN.name).is_file():
        try:
            go_on(run)
        except (ZeroDivisionError, SystemExit):
            assert not run.adapter.exists()
            wait_for_the_next_second(run)
    return run


def wait_for_the_next_second(run: RunFolder) -> None:
    """TensorBoard orders files by name: by the second, then the process, which is one here, and file 10 before 9."""
    started = [int(file.name.split(".")[3]) for file in run.path.rglob("events.out.tfevents.*")]
    while time.time() < max(started, default=0) + 1:
        time.sleep(0.05)


def read_board(folder: Path, name: str) -> list[float]:
    """The values that TensorBoard shows."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [one.value for one in events.Scalars(name)]


def contents(run: RunFolder) -> dict[str, Any]:
    """What is left of a training, to the bit: what was trained, logged, noticed, and kept as best."""
    places = [run.adapter, run.witness, run.training, run.logged, run.head, run.path / "members"]
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    found: dict[str, Any] = {
        file.relative_to(run.path).as_posix(): fingerprint_file(file)
        for file in files
        if file.suffix != ".ckpt" and file.parent.name != "tensorboard"
    }
    best = torch.load(run.checkpoints / "best.ckpt", weights_only=True)
    found["best"] = {name: tensor.tolist() for name, tensor in best["state_dict"].items()}
    return found | {"step": best["global_step"], "fitted": read_json(run.fitted)}


@pytest.fixture(scope="module")
def whole(write_recipe, tmp_path_factory) -> Callable[[str], dict[str, Any]]:
    """What a training of a kind leaves that nobody stops."""
    known: dict[str, dict[str, Any]] = {}

    def find(kind: str) -> dict[str, Any]:
        if kind not in known:
            known[kind] = contents(train(write_recipe(kind, [], tmp_path_factory.mktemp("whole") / "run")))
        return known[kind]

    return find


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("two towers", [5, 8]),  # at an epoch's end; within the next, right after a save
        pytest.param("head first", [4, 12], marks=pytest.mark.slow),
        pytest.param("soup", [9], marks=pytest.mark.slow),
        ("linear probe", [4]),
        pytest.param("stops early", [7], marks=pytest.mark.slow),
        pytest.param("frozen image tower", [7], marks=pytest.mark.slow),
        pytest.param("parts of epochs", [4, 5], marks=pytest.mark.slow),
        *(
            pytest.param(kind, steps, marks=pytest.mark.slow)
            for kind in KINDS
            for steps in ([5, 9], [1, 2, 3, 4, 5, 6, 7, 8])
        ),
    ],
)
def test_a_training_that_dies_goes_on_and_ends_as_one_that_does_not(write_recipe, whole, tmp_path, kind, steps):
    run = train(write_recipe(kind, steps, tmp_path / "run"))
    assert list((tmp_path / "run").glob("died-*"))
    assert contents(run) == whole(kind)
    assert not list(run.path.rglob("step-*"))
    for log in run.logs:
        logged = pd.read_csv(log)["train/loss"].dropna()
        assert read_board(log.parent / "tensorboard", "train/loss") == pytest.approx(logged.tolist())


@pytest.mark.slow
def test_a_training_that_stops_early_says_why(whole, write_recipe, tmp_path):
    run = train(write_recipe("stops early", [], tmp_path / "run"))
    (notice,) = [one for one in read_json(run.training)["notices"] if one["about"] == "early end"]
    assert notice["message"].startswith("It ended early, after step 10 of 15: Monitored metric val/accuracy did not")
    assert whole("stops early")["step"] <= 10


@pytest.mark.slow
def test_of_two_saves_the_older_serves_where_the_newer_is_damaged(write_recipe, whole, tmp_path, capsys):
    recipe = write_recipe("two towers", [9], tmp_path / "run")
    run = begin(recipe)
    with pytest.raises(ZeroDivisionError):
        go_on(run)
    (run.checkpoints / "step-step=99.ckpt").write_text("a user's own")
    older, newer = sorted(run.checkpoints.glob("step-0*"))
    assert (older.name, newer.name) == ("step-00000006", "step-00000008")
    content = bytearray((newer / "state.ckpt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (newer / "state.ckpt").write_bytes(content)
    (run.logged).write_text("step\n1")  # torn
    moved = RunFolder(run.path.rename(tmp_path / "moved"))
    capsys.readouterr()
    go_on(moved)
    told = capsys.readouterr().err
    assert f"warning: {moved.checkpoints / newer.name} is damaged and is removed: state.ckpt is not as" in told
    assert f"goes on from {moved.checkpoints / older.name}" in told
    expected, found = whole("two towers"), contents(moved)
    card = str(moved.adapter.relative_to(moved.path) / "README.md")  # which names the run
    assert {**found, card: expected[card]} == expected


@pytest.fixture(scope="module")
def stopped(write_recipe, tmp_path_factory) -> RunFolder:
    """A training that died after 3 steps, saved after 2."""
    recipe = write_recipe("two towers", [3], tmp_path_factory.mktemp("stopped") / "run")
    run = begin(recipe)
    with pytest.raises(ZeroDivisionError):
        go_on(run)
    return run


@pytest.fixture
def copy(stopped, tmp_path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "colours")))


def test_a_changed_recipe_is_refused_and_named(copy):
    copy.recipe.write_text(copy.recipe.read_text().replace("max_epochs: 3", "max_epochs: 4"))
    with pytest.raises(RecipeError, match=r"these have changed: trainer\. Put them back.*or pass --anyway"):
        resume_run(copy.path, trust=["dies"])


def test_a_changed_version_is_refused_and_named(copy, whole):
    facts = read_json(copy.environment)
    before, facts["versions"]["torch"] = facts["versions"]["torch"], "1.0"
    copy.environment.write_text(json.dumps(facts))
    expected = rf"these have changed: torch from 1\.0 to {before}.*pass --anyway: then it goes on"
    with pytest.raises(RecipeError, match=expected.replace("+", r"\+")):
        resume_run(copy.path, trust=["dies"])
    go_on(copy)  # as --anyway does
    assert read_json(copy.environment)["versions"]["torch"] == before
    assert contents(copy) == whole("two towers")


@pytest.mark.slow
def test_a_changed_recipe_is_trained_from_the_start_where_that_is_wanted(copy, capsys):
    copy.recipe.write_text(copy.recipe.read_text().replace("rank: 2", "rank: 3"))
    go_on(copy)  # as --anyway does
    assert "goes on from" not in capsys.readouterr().err
    assert read_json(copy.adapter / "adapter_config.json")["r"] == 3
    steps = pd.read_csv(copy.logged)["train/loss"].dropna()
    assert len(steps) == 15


def test_a_save_that_cannot_be_read_now_is_not_lost(copy):
    """An error of the disk may pass."""
    (save,) = copy.checkpoints.glob("step-*")
    state = (save / "state.ckpt").read_bytes()
    (save / "state.ckpt").unlink()
    (save / "state.ckpt").mkdir()
    with pytest.raises(IsADirectoryError):
        go_on(copy)
    (save / "state.ckpt").rmdir()
    (save / "state.ckpt").write_bytes(state)
    go_on(copy)


@pytest.mark.parametrize(
    "steps", [[15], pytest.param([7], marks=pytest.mark.slow), pytest.param([2, 5, 15], marks=pytest.mark.slow)]
)
def test_what_is_asked_to_end_saves_first_and_remembers_the_rows_it_left_out(
    write_recipe, colour_table, tmp_path, steps
):
    """SIGTERM, in the last step too, after which no step follows that could heed it; saves are made for it alone."""
    folder = tmp_path / "colours"
    shutil.copytree(colour_table.parent, folder)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:500])
    table = {"path": str(folder / "colours.csv"), "label": "label", "split": "split"}
    found = {}
    for name, stops in (("whole", []), ("stopped", steps)):
        recipe = write_recipe("two towers", stops, tmp_path / name, asks=True, table=table, on_bad_image="skip")
        recipe.write_text(recipe.read_text().replace("save_every: 2", "save_every: null"))
        run = train(recipe)
        skipped = read_json(run.stage(TRAIN.name))["skipped"]
        assert [Path(row["image"]).name for row in skipped] == ["0.png"]
        found[name] = {**contents(run), "skipped": skipped}
    assert len(list((tmp_path / "stopped").glob("died-*"))) == len(steps)
    assert found["stopped"] == found["whole"]

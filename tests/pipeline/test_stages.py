"""Runs that are killed, moved, changed or damaged between their stages, and resumed: real trainings of a tiny model."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.core.files import fingerprint_file, read_json
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.run_recipe import resume_run, run_recipe
from finetune.pipeline.stages import STAGES
from finetune.pipeline.work import Work
from finetune.run.folder import RunFolder

from ..fingerprints import fingerprint_weights
from .results import contents

pytestmark = pytest.mark.usefixtures("share_opener")

NAMES = ("measure-base", "train", "choose", "export", "measure", "report")


@pytest.fixture(scope="module")
def table(tmp_path_factory, colour_table) -> Path:
    """The colours, of which a training, a validation and a test image are cut off."""
    folder = tmp_path_factory.mktemp("damaged") / "colours"
    shutil.copytree(colour_table.parent, folder)
    for name in ("0.png", "6.png", "9.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:1_000])
    return folder / "colours.csv"


@pytest.fixture(scope="module")
def write_recipe(own_tiny, table) -> Callable[..., Path]:
    """Writes a recipe whose run exports a merged checkpoint and a classifier, and has a retention table."""

    def write(folder: Path, table: Path = table, base: str = own_tiny) -> Path:
        path = folder / "colours.yaml"
        path.write_text(
            f"model:\n  class_path: finetune.ClassificationTask\n  init_args:\n    checkpoint: {base}\n"
            "    image_lora: {rank: 2}\n"
            f"data:\n  table: {{path: {table}, label: label, split: split}}\n"
            f"  retention: [{{path: {table}, caption: caption, split: split}}]\n"
            "  augmentations: [{class_path: albumentations.RandomBrightnessContrast}]\n"
            "  batch_size: 8\n  on_bad_image: skip\n"
            "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}\n"
            f"run: {{interpolation: 0.6, neighbours: 3, folder: {folder / 'runs'}}}\n"
        )
        return path

    return write


@pytest.fixture(scope="module")
def whole(write_recipe, tmp_path_factory) -> RunFolder:
    """A run that nobody interrupted."""
    return run_recipe(read_recipe(write_recipe(tmp_path_factory.mktemp("whole"))))


@pytest.fixture
def run(whole, tmp_path) -> RunFolder:
    """A copy of it, to be changed."""
    return RunFolder(Path(shutil.copytree(whole.path, tmp_path / "colours")))


def list_files(folder: Path) -> dict[str, tuple[int, str]]:
    """When each file was written, and what is in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, fingerprint_file(path)) for path in files}


def start(recipe: Path, *words: str) -> Work:
    """A run of which nothing is done but its folder."""
    parsed = read_recipe(recipe, words)
    work = Work(parsed, RunFolder(Path(parsed.run.folder) / parsed.name))
    work.run.create(overwrite=False)
    work.run.recipe.write_text(parsed.resolved)
    return work


def reopen(run: RunFolder) -> Work:
    return Work(read_recipe(run.recipe), run)


def not_done(run: RunFolder) -> list[str]:
    work = reopen(run)
    return [stage.name for stage in STAGES if not stage.is_done(work)]


def resume(run: RunFolder) -> list[str]:
    """Resumes a run and returns the stages that it went through again."""
    before = {name: run.stage(name).stat().st_mtime_ns for name in NAMES if run.stage(name).is_file()}
    resume_run(run.path, anyway=True)
    return [name for name in NAMES if run.stage(name).stat().st_mtime_ns != before.get(name)]


def change_recipe(run: RunFolder, old: str, new: str) -> None:
    text = run.recipe.read_text()
    assert text.count(old) == 1, old
    run.recipe.write_text(text.replace(old, new))


# ---- in order


def test_each_stage_leaves_its_files_and_a_record_of_what_it_read(whole):
    written = [whole.stage(name).stat().st_mtime_ns for name in NAMES]
    assert tuple(stage.name for stage in STAGES) == NAMES
    assert written == sorted(written)
    records = {name: read_json(whole.stage(name)) for name in NAMES}
    outputs = {name: {Path(file).parts[0] for file in record["outputs"]} for name, record in records.items()}
    assert outputs == {
        "measure-base": {"measurements"},
        "train": {
            *("adapter", "environment.json", "head.safetensors", "processor", "table.parquet", "training.json"),
            "witness.safetensors",
        },
        "choose": {"choice.json"},
        "export": {"classifier", "merged"},
        "measure": {"measurements"},
        "report": {
            *("classifier", "finished.json", "merged", "metrics.json", "predictions.csv", "report.html", "skipped.csv")
        },
    }
    listed = {file for record in records.values() for file in record["outputs"]}
    unlisted = {name for name in list_files(whole.path) if name not in listed}
    of_training = {"checkpoints", "metrics.csv", "tensorboard"}
    assert {Path(name).parts[0] for name in unlisted} == {*of_training, "recipe.yaml", "stages"}
    for record in records.values():
        for name, digest in record["inputs"].items():
            if (whole.path / name).is_file():
                assert digest == fingerprint_file(whole.path / name)
    base = Path(read_json(whole.environment)["checkpoint"]["name"])
    assert records["train"]["inputs"]["base"] == fingerprint_weights(base)


def test_nothing_is_written_where_nothing_is_left(run):
    before = list_files(run.path)
    assert resume(run) == []
    assert list_files(run.path) == before


@pytest.mark.slow
def test_a_run_that_is_resumed_and_moved_between_all_stages_is_the_one_that_was_not(write_recipe, whole, tmp_path):
    work = start(write_recipe(tmp_path))
    for stage in STAGES:
        assert not_done(work.run)[0] == stage.name
        before = list_files(work.run.path)
        if stage.name == "train":  # what a training leaves that is killed, and what one leaves that ended
            for path in (work.run.checkpoints / "best.ckpt", work.run.adapter / "of_another.json", work.run.logged):
                path.parent.mkdir(exist_ok=True)
                path.write_text("old")
        stage.run(work)
        after = list_files(work.run.path)
        kept = [name for name in before if not name.endswith("README.md")]  # which the report fills in
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        assert work.run.is_finished == (stage is STAGES[-1])
        work = reopen(RunFolder(work.run.path.rename(tmp_path / f"after {stage.name}")))
        assert stage.is_done(work)
    assert contents(work.run) == contents(whole)
    assert resume(work.run) == []


# ---- killed


def finetune(*words: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "finetune", *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_run_that_is_killed_goes_on_where_it_was(write_recipe, whole, own_tiny, tmp_path, count_opens, name):
    """Either process reads the base's weights from disk once."""
    run, weights = RunFolder(tmp_path / "runs" / "colours"), Path(own_tiny) / "model.safetensors"
    opens = count_opens(weights)
    with finetune("fit", "--config", write_recipe(tmp_path), cwd=tmp_path) as process:
        wait_for(run.stage(name), process)
        process.send_signal(signal.SIGSTOP)
        assert opens() == 1
        with pytest.raises(RecipeError, match="no other process to be at work on .*colours, but there is one"):
            resume_run(run.path)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not run.is_finished
    done = [stage for stage in NAMES if stage not in not_done(run)]
    assert done == list(NAMES[: NAMES.index(name) + 1])
    kept = [f"stages/{stage}.json" for stage in done]
    kept += [file for stage in done for file in read_json(run.stage(stage))["outputs"] if "README" not in file]
    before = list_files(run.path)
    for staged in (run.path / ".merged.k3_x9vq1", run.path / "measurements" / ".after.former.abcdefgh"):
        staged.mkdir(exist_ok=True)
        (staged / "model.safetensors").write_text("half of it")
    opens = count_opens(weights)
    with finetune("resume", run.path, cwd=tmp_path) as process:
        screen = process.communicate()[1]
    assert process.returncode == 0, screen
    assert opens() == 1
    left = [line for line in screen.splitlines() if line.startswith("stage ")]
    assert left == [f"stage {stage}" for stage in NAMES if stage not in done]
    after = list_files(run.path)
    assert {file: after[file] for file in kept} == {file: before[file] for file in kept}
    assert contents(run) == contents(whole)
    assert not [path for path in run.path.rglob(".*") if path.name != ".lock"]


# ---- changed


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ("linear_probe: true", "linear_probe: false", ["measure-base", "report"]),
        ("neighbours: 3", "neighbours: 1", ["measure-base", "measure", "report"]),
        ("max_epochs: 1\n", "max_epochs: 2\n", ["train", "report"]),
        ("soup: 1", "soup: 2", ["train", "report"]),
        ("rank: 2", "rank: 4", ["train", "report"]),
        ("interpolation: 0.6", "interpolation: 0.5", ["choose", "report"]),
        ("calibrate: true", "calibrate: false", ["choose", "report"]),
        ("a photo of a {}.", "a {}.", ["measure-base", "train", "choose", "measure", "report"]),
    ],
)
def test_a_recipe_value_is_read_by_some_stages(run, old, new, stages):
    """What is made again of these has to be read again by those that follow."""
    change_recipe(run, old, new)
    assert not_done(run) == stages


def test_what_a_recipe_says_in_other_words_is_the_same(run):
    run.recipe.write_text("# mine\n" + run.recipe.read_text().replace("interpolation: 0.6", "interpolation:   0.60"))
    assert not_done(run) == ["report"]  # which shows the file


@pytest.mark.parametrize(
    ("place", "stages"),
    [
        ("choice.json", ["choose", "export", "measure", "report"]),
        ("adapter/adapter_config.json", ["train", "choose", "export"]),
        ("head.safetensors", ["train", "choose", "export"]),
        ("classifier/model.safetensors", ["export"]),
        ("classifier/merge_proof.json", ["export", "measure", "report"]),
        ("measurements/zero-shot-after/figures.safetensors", ["measure", "report"]),
        ("predictions.csv", ["report"]),
        ("skipped.csv", ["report"]),
        ("merged/measurement/measurement.json", ["report"]),
    ],
)
def test_a_file_that_is_gone_is_made_again(run, place, stages):
    (run.path / place).unlink()
    assert not_done(run) == stages
    shutil.rmtree(run.path / place.split("/")[0], ignore_errors=True)
    assert set(not_done(run)) >= set(stages)


def test_another_table_and_another_base_start_everything_again(run, own_tiny, tmp_path):
    recipe = run.recipe.read_text()
    base = Path(shutil.copytree(own_tiny, tmp_path / "base"))
    run.recipe.write_text(recipe.replace(own_tiny, str(base)))
    assert not_done(run) == ["train", "report"]  # the same base, whose name a training records
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"temperature": tensors["temperature"] + 1}, base / "model.safetensors")
    assert not_done(run) == [*NAMES]
    shutil.copytree(own_tiny, base, dirs_exist_ok=True)
    settings = read_json(base / "preprocessor_config.json")
    (base / "preprocessor_config.json").write_text(json.dumps(settings | {"rescale_factor": 0.5}))
    assert not_done(run) == ["measure-base", "train", "choose", "measure", "report"]


def test_the_names_of_labels_belong_to_the_table(write_recipe, tmp_path):
    (tmp_path / "names.csv").write_text("red,rot\ngreen,grün\nblue,blau\n")
    work = start(write_recipe(tmp_path), "--data.table.names", str(tmp_path / "names.csv"))
    assert work.sources[str(tmp_path / "names.csv")] == fingerprint_file(tmp_path / "names.csv")


def test_what_comes_out_the_same_is_not_read_again(run):
    change_recipe(run, "max_retention_loss: 0.05", "max_retention_loss: 0.1")  # of which a given number takes no notice
    before = list_files(run.path)
    assert resume(run) == ["choose", "report"]
    after = list_files(run.path)
    for name in (
        "merged/model.safetensors",
        "measurements/after/measurement.json",
        "adapter/adapter_model.safetensors",
    ):
        assert after[name] == before[name]
    assert after["choice.json"][1] == before["choice.json"][1]
    assert after["metrics.json"][1] == before["metrics.json"][1]


@pytest.mark.slow
def test_another_choice_is_exported_measured_and_shown(run, capsys):
    choice = read_json(run.choice)
    run.choice.write_text(json.dumps(choice | {"interpolation": 0.0}))
    assert resume(run) == ["export", "measure", "report"]
    assert "stage export, again for choice.json" in capsys.readouterr().err
    base = Path(read_json(run.environment)["checkpoint"]["name"])
    assert fingerprint_weights(run.merged) == fingerprint_weights(base)
    metrics = read_json(run.metrics)
    assert metrics["interpolation"] == {"chosen": 0.0}
    same = set(metrics["before"]) - {"test/expected_calibration_error"}
    assert {key: metrics["zero-shot after"][key] for key in same} == {key: metrics["before"][key] for key in same}
    assert "Interpolation 0: " in (run.merged / "README.md").read_text()


@pytest.mark.slow
def test_a_folder_that_is_exported_again_has_its_measurement_and_card_again(run, whole):
    shutil.rmtree(run.merged)
    assert resume(run) == ["export", "report"]  # of the same files the same is measured
    assert contents(run) == contents(whole)


@pytest.mark.slow
def test_another_table_is_trained_on_and_recorded(run, table, tmp_path):
    rows = pd.read_csv(table, dtype=str)
    changed = tmp_path / "changed.csv"
    rows.assign(image=[str(table.parent / name) for name in rows["image"]]).iloc[3:].to_csv(changed, index=False)
    recipe = run.recipe.read_text().replace(str(table), str(changed))
    run.recipe.write_text(recipe.replace("outside: false", "outside: true"))
    assert resume(run) == [*NAMES]
    assert read_json(run.environment)["table"] == [{"path": str(changed), "sha256": fingerprint_file(changed)}]
    skipped = pd.read_csv(run.skipped, dtype=str)
    assert set(skipped["file"]) == {str(changed)}
    assert skipped["image"].map(lambda path: Path(path).name).tolist() == ["6.png", "9.png"]  # 0.png is not in it


# ---- damaged


def test_a_stage_that_fails_leaves_no_output(run, whole):
    """An adapter that is not the one that the witness recorded."""
    file = run.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    assert not_done(run) == ["choose", "export"]
    with pytest.raises(CheckpointError, match="Expected the merged model to reproduce the witness"):
        resume_run(run.path)
    assert not run.merged.exists()
    assert not run.is_finished
    assert not_done(run) == ["export", "measure", "report"]
    assert not [path for path in run.path.rglob(".*") if path.name != ".lock"]
    shutil.copy(whole.adapter / file.name, file)
    assert resume(run) == ["choose", "export", "report"]
    assert contents(run) == contents(whole)


def test_a_measurement_that_fails_leaves_the_one_before(run, table, tmp_path):
    copied = Path(shutil.copytree(table.parent, tmp_path / "damaged")) / table.name
    run.recipe.write_text(run.recipe.read_text().replace(str(table), str(copied)).replace(": skip", ": error"))
    before = list_files(run.measurement("base"))
    with pytest.raises(TableError, match="colours.csv:11:image: Expected a whole image"):
        resume_run(run.path, anyway=True)
    assert list_files(run.measurement("base")) == before
    assert not run.stage("measure-base").exists()
    assert not run.is_finished
    assert not_done(run)[0] == "measure-base"


# ---- read once


@pytest.mark.slow
def test_a_run_and_an_export_read_the_base_from_disk_once(write_recipe, tiny, tmp_path, count_opens):
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    run = tmp_path / "runs" / "colours"
    words = ("fit", "--config", write_recipe(tmp_path, base=str(base))), ("export", run, "--output", tmp_path / "again")
    for command in words:
        opens = count_opens(base / "model.safetensors")
        with finetune(*command, cwd=tmp_path) as process:
            screen = process.communicate()[1]
        assert process.returncode == 0, screen
        assert opens() == 1
    assert fingerprint_weights(tmp_path / "again") == fingerprint_weights(run / "merged")

"""A run is started in one folder, with paths as a user types them, and used from any other."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from finetune.commands.cli import main
from finetune.core.files import read_json
from finetune.core.shipped import find_recipe
from finetune.pipeline.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("share_opener")

OWN = """
from finetune import AlignTask
from places_package.words import WORD


class OwnTask(AlignTask):
    '''One that is the user's.'''
"""
LOGGER = "[{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: ~/logs, name: mine, version: ''}}]"


class Home(NamedTuple):
    """A user's folders.

    Attributes:
        path: The home directory, with the run in `runs/mine`.
        project: Where the run was started, with table, base and recipe.
    """

    path: Path
    project: Path

    @property
    def run(self) -> Path:
        return self.path / "runs" / "mine"


@pytest.fixture(scope="module")
def home(tiny, colour_table, tmp_path_factory) -> Iterator[Home]:
    """A run with relative paths, paths from `~`, and a module of a package beside the recipe."""
    path = tmp_path_factory.mktemp("home")
    project = path / "project"
    shutil.copytree(colour_table.parent, project / "colours")
    shutil.copytree(tiny, project / "base")
    package = project / "recipes" / "places_package"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("words", "WORD = 1\n"), ("task", OWN)):
        (package / f"{name}.py").write_text(text)
    table = {"path": "colours/*.csv", "label": "label", "split": "split"}
    task = {"class_path": "places_package.task.OwnTask", "init_args": {"checkpoint": "base", "image_lora": {"rank": 2}}}
    values = {
        "model": task,
        "data": {"table": table, "retention": [{**table, "path": "~/project/colours/colours.csv"}]},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "run": {"linear_probe": False},
    }
    (project / "recipes" / "mine.yaml").write_text(yaml.safe_dump(values))
    words = ["--run.folder", "~/runs", "--trainer.logger", LOGGER, "--trust", "places_package"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(path))
        patch.delenv("ALIGN_FINETUNE_CACHE", raising=False)
        patch.delenv("XDG_CACHE_HOME", raising=False)
        patch.chdir(project)
        patch.setattr("sys.path", [*__import__("sys").path])
        assert main(["fit", "--config", "recipes/mine.yaml", *words]) == 0
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield Home(path, project)


def test_paths_from_the_home_directory_lie_there(home):
    assert (home.run / "finished.json").is_file()
    assert {path.name for path in home.project.iterdir()} == {"base", "colours", "recipes"}
    assert {path.name for path in home.path.iterdir()} == {".cache", "logs", "project", "runs"}


def test_a_run_notes_absolute_places_and_what_they_were_relative_to(home):
    recipe = (home.run / "recipe.yaml").read_text()
    assert recipe.startswith(f"# Paths were given relative to {home.project}\n")
    values = yaml.safe_load(recipe)
    data = values["data"]["init_args"]
    assert data["table"]["path"] == f"{home.project}/colours/*.csv"
    assert data["retention"][0]["path"] == f"{home.project}/colours/colours.csv"
    assert values["model"]["init_args"]["checkpoint"] == str(home.project / "base")
    assert values["run"]["module_folders"] == [str(home.project / "recipes")]
    tables = read_json(home.run / "environment.json")["table"]
    assert [table["path"] for table in tables] == [f"{home.project}/colours/colours.csv"]


def test_a_run_keeps_its_own_log_beside_a_logger_that_the_recipe_names(home):
    own, named = pd.read_csv(home.run / "metrics.csv"), pd.read_csv(home.path / "logs" / "mine" / "metrics.csv")
    assert own["train/loss"].notna().sum() == named["train/loss"].notna().sum() > 0
    assert "Loss" in (home.run / "report.html").read_text().split('<section id="training">')[1]


def test_commands_use_a_run_from_any_working_directory(home, capsys, tmp_path):
    page = (home.run / "report.html").read_text()
    assert "data:image/" in page
    assert main(["report", "~/runs/mine"]) == 0
    assert (home.run / "report.html").read_text() == page
    assert main(["test", "~/runs/mine", "--trust", "places_package", f"--output={tmp_path}/measured"]) == 0
    assert main(["compare", "~/runs/mine", str(tmp_path / "measured")]) == 0
    os.chdir(home.run.parent)
    assert main(["report", "mine"]) == 0
    assert (home.run / "report.html").read_text() == page
    before = (home.run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    for name in ("finished.json", "stages/report.json"):
        (home.run / name).unlink()
    capsys.readouterr()
    assert main(["resume", "mine", "--trust", "places_package.task"]) == 0
    assert capsys.readouterr().err.splitlines() == ["stage report"]
    assert (home.run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("command", [["test"], ["export", "--interpolation", "auto", "--output", "never"]])
def test_a_run_trusts_nothing_by_itself(home, refused, command):
    assert "If you trust that module, pass --trust places_package." in refused(command[0], home.run, *command[1:])


def test_a_table_that_is_gone_is_named_where_it_was_and_a_page_keeps_its_pictures(home, refused, tmp_path):
    run = Path(shutil.copytree(home.run, tmp_path / "run"))
    page = (run / "report.html").read_text()
    (home.project / "colours").rename(home.project / "moved")
    try:
        place = f"{home.project}/colours/colours.csv"
        found = refused("report", run)
        assert f"The table {place} is no longer there. Put it back, or remove {run}/report.html" in found
        assert (run / "report.html").read_text() == page
        found = refused("test", run, "--trust", "places_package")
        assert f"{home.project}/colours/*.csv: Expected files that match the pattern" in found
    finally:
        (home.project / "moved").rename(home.project / "colours")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.table.images", "~/pictures", "{home}/pictures"),
        ("data.table.names", "names.csv", "{here}/names.csv"),
        ("data.table.split", "{val: val/*.csv, test: ~/test.csv}", "{here}/val/*.csv {home}/test.csv"),
        ("data.table.path", "../a.csv", "{here}/../a.csv"),
        ("data.table.path", "/data/a.csv", "/data/a.csv"),
        ("model.checkpoint", "owner/name", "owner/name"),
        ("model.checkpoint", "~/base", "{home}/base"),
        ("trainer.default_root_dir", "~/logs", "{home}/logs"),
        ("run.folder", "~/runs", "{home}/runs"),
        ("run.folder", "runs", "runs"),
    ],
)
def test_every_path_in_a_recipe_is_expanded_where_it_enters(tmp_path, monkeypatch, key, value, expected):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    resolved = yaml.safe_load(read_recipe(find_recipe("quickstart"), [f"--{key}", value]).resolved)
    for name in key.replace("model.", "model.init_args.").replace("data.", "data.init_args.").split("."):
        resolved = resolved[name]
    found = f"{resolved['val']} {resolved['test']}" if isinstance(resolved, dict) else resolved
    assert found == expected.format(home=home, here=here)


def test_a_run_that_is_written_is_not_replaced_under_its_feet(home, refused):
    before = {path: path.stat().st_mtime_ns for path in home.run.rglob("*")}
    words = ["--config", home.project / "recipes" / "mine.yaml", "--trust", "places_package", "--run.folder", "~/runs"]
    os.chdir(home.project)
    with FileLock(home.run / ".lock"):
        assert "no other process to be at work on" in refused("fit", *words, "--overwrite")
    assert {path: path.stat().st_mtime_ns for path in home.run.rglob("*")} == before
    assert "Replace it with --overwrite" in refused("fit", *words)

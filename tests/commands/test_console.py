"""What the commands print: their own lines alone, in any encoding, and names as they can be shown."""

import gc
import os
import shutil
import subprocess
import sys
import warnings

import pandas as pd
import pytest

from finetune import __main__ as entrance
from finetune.__main__ import let_threads_sleep
from finetune.commands.cli import main

NOT_UTF8 = os.fsdecode(b"caf\xe9")


def finetune(*words, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "finetune", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", b"# caf\\xe9 \\u2192 \\u65e5\n"), ("cp1252", b"# caf\xe9 \\u2192 \\u65e5\n"), ("ascii:strict", None)],
)
def test_a_character_that_the_console_lacks_is_shown_by_its_number(tmp_path, encoding, shown):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("# café → 日\n", encoding="utf-8")
    done = finetune("recipes", "show", recipe, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == shown or shown is None


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_progress_bar_needs_no_character_of_the_console(two_towers, tmp_path, encoding):
    words = ["--config", two_towers.recipe, "--runs", tmp_path, "--trainer.enable_progress_bar", "true"]
    done = finetune("fit", *words, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"train/loss" in done.stderr


def test_names_of_images_that_are_not_utf8_are_shown_by_their_bytes(tiny, colour_table, tmp_path, capsys):
    image = tmp_path / f"{NOT_UTF8}.png"
    shutil.copy(colour_table.parent / "0.png", image)
    output = tmp_path / f"{NOT_UTF8}.csv"
    words = ["classify", tiny, str(tmp_path), "--label", "red", "--label", "blue", "--output", str(output)]
    assert main(words) == 0
    assert r"caf\udce9.csv" in capsys.readouterr().out
    assert set(pd.read_csv(output)["image"]) == {rf"{tmp_path}/caf\udce9.png"}


def test_names_that_are_not_utf8_are_refused_where_libraries_need_them(
    refused, two_towers, colour_table, tiny, tmp_path
):
    folder = tmp_path / NOT_UTF8
    shutil.copytree(colour_table.parent, folder)
    image = colour_table.parent / "0.png"
    label = refused("classify", tiny, image, "--label", NOT_UTF8, "--label", "b")
    assert r"each --label to be UTF-8 text, but got 'caf\udce9'" in label
    assert r"Choose another name" in refused("export", two_towers.path, "--output", folder / "exported")
    fit = ["fit", "--config", two_towers.recipe, "--runs", tmp_path / "runs"]
    assert r"caf\udce9'. Choose another name" in refused(*fit, "--run", NOT_UTF8)
    done = finetune("check", "--config", two_towers.recipe, "--data.table.path", folder / colour_table.name)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert rb"Expected names of files and folders to be UTF-8, but got" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [NOT_UTF8]


def test_exporting_prints_nothing_of_other_libraries(two_towers, tmp_path, capfd):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert main(["export", str(two_towers.path), "--output", str(tmp_path / "exported")]) == 0
    assert not [str(warning.message) for warning in found]
    shown = capfd.readouterr()
    assert shown.err == ""
    assert shown.out.count("\n") == 1


def test_albumentations_is_not_asked_whether_it_is_the_newest():
    script = (
        "import sys, urllib.request\n"
        "urllib.request.OpenerDirector.open = lambda *_, **__: sys.exit('asked the network')\n"
        "import finetune, albumentations"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
    script = "import os, finetune; assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '0'"
    environment["NO_ALBUMENTATIONS_UPDATE"] = "0"
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    ("own", "policy"),
    [
        ({}, "passive"),
        ({"OMP_WAIT_POLICY": "active"}, "active"),
        ({"GOMP_SPINCOUNT": "100"}, None),
        ({"KMP_BLOCKTIME": "0"}, None),
    ],
)
def test_threads_sleep_while_they_wait_unless_the_user_says_how_they_wait(monkeypatch, own, policy):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    let_threads_sleep()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_threads_are_told_before_torch_is_there():
    script = (
        "import sys, finetune.__main__ as entrance\n"
        "entrance.let_threads_sleep = lambda: sys.exit(7 if 'torch' in sys.modules else 5)\n"
        "entrance.main()"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 5


def test_a_command_leaves_the_garbage_collector_as_it_was(monkeypatch):
    """Else a process that runs several commands would keep the models of all of them."""
    monkeypatch.setattr("sys.argv", ["finetune", "recipes", "list"])
    threshold, frozen = gc.get_threshold(), gc.get_freeze_count()
    assert entrance.main() == 0
    assert gc.isenabled()
    assert gc.get_threshold() == threshold
    assert gc.get_freeze_count() <= frozen  # what the tests froze may have been freed meanwhile

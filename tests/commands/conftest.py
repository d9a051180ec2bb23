"""Runs of a small model, started by the command as a user would."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from finetune.commands.cli import main


class Started(NamedTuple):
    """A finished run.

    Attributes:
        path: The run's folder.
        recipe: The recipe it was started from.
        shown: What `finetune fit` printed.
    """

    path: Path
    recipe: Path
    shown: str


def start(folder: Path, table: Path, model: dict) -> Started:
    """Fits a model to the colours for an epoch, the same rows with their captions as a retention table."""
    values = {
        "model": model,
        "data": {
            "table": {"path": str(table), "label": "label", "split": "split"},
            "retention": [{"path": str(table), "caption": "caption", "split": "split"}],
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"folder": str(folder / "runs"), "linear_probe": False},
    }
    recipe = folder / "colours.yaml"
    recipe.write_text(yaml.safe_dump(values))
    shown = StringIO()
    with redirect_stdout(shown):
        assert main(["fit", "--config", str(recipe)]) == 0
    return Started(folder / "runs" / "colours", recipe, shown.getvalue())


@pytest.fixture(scope="session")
def two_towers(tiny, colour_table, tmp_path_factory) -> Started:
    """A run that adapted both towers to class prompts."""
    lora = {"rank": 2}
    model = {"checkpoint": tiny, "image_lora": lora, "text_lora": lora}
    return start(tmp_path_factory.mktemp("two_towers"), colour_table, model)


@pytest.fixture(scope="session")
def with_head(tiny, colour_table, tmp_path_factory) -> Started:
    """A run that trained a head with the image tower."""
    values = {"checkpoint": tiny, "image_lora": {"rank": 2}, "head_start": "finetune.FromProbe"}
    model = {"class_path": "finetune.ClassificationTask", "init_args": values}
    return start(tmp_path_factory.mktemp("with_head"), colour_table, model)


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Runs a command that has to fail, and returns its one line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1
        return found.err

    return run
